"""What is known of a base model by its pipeline's class, before it is loaded and without torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ANY_LENGTH = 1 << 30
INSTRUCTION = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity,"
    " text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    "{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What Qwen-Image's text encoder reads; the model was trained with these words."""
INSTRUCTION_TOKENS = 34
"""Tokens of `INSTRUCTION` before the text."""


class Reader(NamedTuple):
    """The tokenizer that sets how long a text may be.

    Args:
        tokenizer: its subfolder.
        kind: its class in transformers.
        most: the most tokens that the pipeline gives the model, with those around the text.
        around: what the text stands in, at {}; "" = the tokenizer's own chat template.
    """

    tokenizer: str
    kind: str
    most: int = ANY_LENGTH
    around: str = "{}"

    def written(self, tokenizer: Any, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer is given them."""
        if self.around:
            return [self.around.replace("{}", text) for text in texts]
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            for text in texts
        ]


_CLIP = Reader("tokenizer", "CLIPTokenizer")


class Pipeline(NamedTuple):
    """How a pipeline reads and draws.

    Args:
        readers: what limits a text; the first whose tokenizer the folder has.
        num_inference_steps, guidance_scale: what a study draws with unless told otherwise.
        no_guidance: the guidance scale that is none, the least that there is.
        latents: side of the latents that the model was trained on, if its config does not say.
        told_guidance: whether the network is told that scale as a number.
    """

    readers: tuple[Reader, ...] = (_CLIP,)
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    no_guidance: float = 1.0
    latents: int | None = None
    told_guidance: bool = False


PIPELINES = {
    "StableDiffusionPipeline": Pipeline(),
    "StableDiffusionXLPipeline": Pipeline(num_inference_steps=30, guidance_scale=5.0),
    "StableDiffusion3Pipeline": Pipeline(
        (Reader("tokenizer_3", "T5Tokenizer", 256), _CLIP), 28, 7.0
    ),
    "FluxPipeline": Pipeline(
        (Reader("tokenizer_2", "T5Tokenizer", 512),), 28, 3.5, latents=128, told_guidance=True
    ),
    "QwenImagePipeline": Pipeline(
        (Reader("tokenizer", "Qwen2Tokenizer", INSTRUCTION_TOKENS + 512, INSTRUCTION),), 50, 4.0,
        latents=128,
    ),
    "ZImagePipeline": Pipeline(
        (Reader("tokenizer", "Qwen2Tokenizer", 512, ""),), 50, 5.0, no_guidance=0.0, latents=128
    ),
}  # fmt: skip
"""By class. Steps and guidance of the flow models are the defaults of their pipelines in diffusers,
Qwen-Image's guidance being its `true_cfg_scale`."""
