"""A LLaVA of a few thousand random weights, letters as tokens, that can say Yes and No."""

from pathlib import Path

import torch
from clips import LETTERS
from tokenizers import Tokenizer, models
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 16, 8
TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} so {% endif %}"
)


def tiny_vlm(folder: Path, seed: int = 0) -> Path:
    """Write the model and its processor in transformers' layout."""
    torch.manual_seed(seed)
    signs = ["<unk>", "<pad>", " ", *LETTERS]
    letters = Tokenizer(models.BPE({s: i for i, s in enumerate(signs)}, [], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.add_tokens(["<image>", "Yes", "No", "yes", "no"])
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**tower, num_hidden_layers=2, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(
        **tower, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(tokenizer),
        bos_token_id=None, eos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    return folder
