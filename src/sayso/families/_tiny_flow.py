"""Random flow-matching pipelines of a few thousand weights, made from configs, for tests.

All make 16 × 16 latents of 32-pixel images, and read letters as tokens.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from sayso.families._tiny import LETTERS, tiny_clip_text, tiny_tokenizer, tiny_vae

TEXT = 32
"""Width of a text encoder's states."""
CHANNELS = 4
"""Channels of the latents."""
# these libraries type their classes narrower than they take them
_d: Any = diffusers
_t: Any = transformers
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tiny_sd3(folder: Path) -> Path:
    torch.manual_seed(0)
    clip = tiny_tokenizer(folder / "vocabulary")
    projected = _t.CLIPTextModelWithProjection
    encoders = [tiny_clip_text(len(clip), projected, num_hidden_layers=2) for _ in range(2)]
    network = _d.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=2 * TEXT,
        caption_projection_dim=32, pooled_projection_dim=2 * TEXT, pos_embed_max_size=16,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return _saved(
        folder, _d.StableDiffusion3Pipeline, network, _autoencoder(), _scheduler(shift=3.0),
        text_encoder=encoders[0], tokenizer=clip, text_encoder_2=encoders[1], tokenizer_2=clip,
        text_encoder_3=_t5(2 * TEXT), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip


def tiny_flux(folder: Path, guidance_embeds: bool = True) -> Path:
    torch.manual_seed(0)
    clip = tiny_tokenizer(folder / "vocabulary")
    network = _d.FluxTransformer2DModel(
        in_channels=4 * CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=TEXT,
        guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return _saved(
        folder, _d.FluxPipeline, network, _autoencoder(),
        _scheduler(shift=3.0, use_dynamic_shifting=True, max_image_seq_len=4096),
        text_encoder=tiny_clip_text(len(clip)), tokenizer=clip, text_encoder_2=_t5(TEXT),
        tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


def tiny_qwen_image(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer()
    network = _d.QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS, out_channels=CHANNELS, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = _d.AutoencoderKLQwenImage(
        base_dim=8, z_dim=CHANNELS, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.2, 1.0],
    )  # fmt: skip
    text = _t.Qwen2_5_VLConfig(
        text_config=_language(len(tokenizer)) | {
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": TEXT, "fullatt_block_indexes": [0], "window_size": 28,
        },
        image_token_id=0, video_token_id=1, vision_start_token_id=2, vision_end_token_id=3,
    )  # fmt: skip
    return _saved(
        folder, _d.QwenImagePipeline, network, vae,
        _scheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        text_encoder=_t.Qwen2_5_VLForConditionalGeneration(text), tokenizer=tokenizer,
    )  # fmt: skip


def tiny_z_image(folder: Path, shift: float = 6.0) -> Path:
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer()
    network = _d.ZImageTransformer2DModel(
        in_channels=CHANNELS, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=TEXT, axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return _saved(
        folder, _d.ZImagePipeline, network, _autoencoder(), _scheduler(shift=shift),
        text_encoder=_t.Qwen3Model(_t.Qwen3Config(**_language(len(tokenizer)), head_dim=8)),
        tokenizer=tokenizer,
    )  # fmt: skip


def _saved(
    folder: Path, pipeline: Any, network: Any, vae: Any, scheduler: Any, **text: Any
) -> Path:
    # some layers begin at 0, so that the network would predict 0 whatever it is shown
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    pipeline(transformer=network, vae=vae, scheduler=scheduler, **text).save_pretrained(folder)
    return folder


def _scheduler(**options: Any) -> Any:
    return _d.FlowMatchEulerDiscreteScheduler(**options)


def _autoencoder() -> Any:
    return tiny_vae(
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    )


def _t5(width: int) -> Any:
    return _t.T5EncoderModel(_t.T5Config(
        vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip


def _t5_tokenizer() -> Any:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in LETTERS]
    return _t.T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=48)


def _qwen_tokenizer() -> Any:
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    return _t.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    )  # fmt: skip


def _language(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": TEXT, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "bos_token_id": vocabulary - 3,
        "eos_token_id": vocabulary - 3,
    }  # fmt: skip
