"""Published models by their architecture: folders of configs without weights.

They say how large a model is where its weights are not on this machine, and are filled with random
weights to measure speed and memory. The numbers are those of the models' own config files.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sayso.families._tiny import LETTERS
from sayso.families._tiny_flow import CHAT

CLIP_WORDS, T5_WORDS, QWEN_WORDS = 49_408, 32_128, 151_643
DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"


class Published(NamedTuple):
    """A model: the names that the hub has it under, its pipeline, and the config of each part."""

    names: tuple[str, ...]
    pipeline: str
    parts: Mapping[str, tuple[str, str, Mapping[str, Any]]]
    """Subfolder → library, class and config."""


def find_published(base_model: str) -> Published | None:
    """The published model of that hub id; None if its architecture is not known here."""
    return next((model for model in PUBLISHED if base_model in model.names), None)


def write_published(model: Published, folder: Path) -> Path:
    """Write its configs in diffusers' layout, and tokenizers with as many words, which are filler.

    Returns: a folder that a family loads on the meta device.
    """
    index: dict[str, Any] = {"_class_name": model.pipeline}
    for part, (library, kind, config) in model.parts.items():
        index[part] = [library, kind]
        (folder / part).mkdir(parents=True)
        if "Tokenizer" in kind:
            WRITERS[kind](folder / part, config)
            continue
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps({"_class_name": kind, **config}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _clip_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    letters = [letter + end for end in ("", "</w>") for letter in LETTERS]
    filler = [f"word{i}</w>" for i in range(CLIP_WORDS - len(letters) - 2)]
    words = [*letters, *filler, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **config})
    )


def _t5_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁word{i}", -9.0) for i in range(32_000 - len(special) - len(LETTERS))]
    build: Any = T5Tokenizer
    vocabulary = [*special, *((letter, -3.0) for letter in LETTERS), *words]
    build(vocab=vocabulary, extra_ids=100, **config).save_pretrained(folder)


def _qwen_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"word{i}" for i in range(QWEN_WORDS - len(symbols)))]
    build: Any = Qwen2Tokenizer
    build(
        vocab={word: i for i, word in enumerate(words)}, merges=[], chat_template=CHAT,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"], **config,
    ).save_pretrained(folder)  # fmt: skip


WRITERS: Mapping[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "CLIPTokenizer": _clip_tokenizer,
    "T5Tokenizer": _t5_tokenizer,
    "Qwen2Tokenizer": _qwen_tokenizer,
}


def _clip(hidden: int, layers: int, heads: int, projection: int, act: str) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model", "vocab_size": CLIP_WORDS, "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "max_position_embeddings": 77, "projection_dim": projection, "hidden_act": act,
        "bos_token_id": CLIP_WORDS - 2, "eos_token_id": CLIP_WORDS - 1,
        "pad_token_id": CLIP_WORDS - 1,
    }  # fmt: skip


def _vae(latent_channels: int, sample_size: int, **more: Any) -> tuple[str, str, dict[str, Any]]:
    return (DIFFUSERS, "AutoencoderKL", {
        "latent_channels": latent_channels, "sample_size": sample_size, "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        **more,
    })  # fmt: skip


def _noising(kind: str, **more: Any) -> tuple[str, str, dict[str, Any]]:
    return (DIFFUSERS, kind, {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, **more,
    })  # fmt: skip


def _flow(**more: Any) -> tuple[str, str, dict[str, Any]]:
    return (DIFFUSERS, "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, **more})


CLIP_L = _clip(768, 12, 12, 768, "quick_gelu")
CLIP_G = _clip(1280, 32, 20, 1280, "gelu")
CLIP_TOKENIZER = (TRANSFORMERS, "CLIPTokenizer", {"model_max_length": 77})
T5 = (TRANSFORMERS, "T5EncoderModel", {
    "model_type": "t5", "vocab_size": T5_WORDS, "d_model": 4096, "d_ff": 10_240, "d_kv": 64,
    "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
})  # fmt: skip
T5_TOKENIZER = (TRANSFORMERS, "T5Tokenizer", {"model_max_length": 512})

STABLE_DIFFUSION = Published(
    (
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5",
        "CompVis/stable-diffusion-v1-4",
    ),
    "StableDiffusionPipeline",
    {
        "unet": (DIFFUSERS, "UNet2DConditionModel", {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "attention_head_dim": 8, "norm_num_groups": 32,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        }),
        "vae": _vae(4, 512, scaling_factor=0.18215),
        "text_encoder": (TRANSFORMERS, "CLIPTextModel", CLIP_L),
        "tokenizer": CLIP_TOKENIZER,
        "scheduler": _noising("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False),
    },
)  # fmt: skip
STABLE_DIFFUSION_XL = Published(
    ("stabilityai/stable-diffusion-xl-base-1.0",),
    "StableDiffusionXLPipeline",
    {
        "unet": (DIFFUSERS, "UNet2DConditionModel", {
            "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        }),
        "vae": _vae(4, 1024, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": (TRANSFORMERS, "CLIPTextModel", CLIP_L),
        "text_encoder_2": (TRANSFORMERS, "CLIPTextModelWithProjection", CLIP_G),
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "scheduler": _noising("EulerDiscreteScheduler", timestep_spacing="leading"),
    },
)  # fmt: skip
STABLE_DIFFUSION_3 = Published(
    ("stabilityai/stable-diffusion-3.5-medium",),
    "StableDiffusion3Pipeline",
    {
        "transformer": (DIFFUSERS, "SD3Transformer2DModel", {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        }),
        "vae": _vae(16, 1024, scaling_factor=1.5305, shift_factor=0.0609, force_upcast=True,
                    use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": (TRANSFORMERS, "CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": (TRANSFORMERS, "CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": T5,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": T5_TOKENIZER,
        "scheduler": _flow(shift=3.0),
    },
)  # fmt: skip
FLUX = Published(
    ("black-forest-labs/FLUX.1-dev",),
    "FluxPipeline",
    {
        "transformer": (DIFFUSERS, "FluxTransformer2DModel", {
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": True,
            "axes_dims_rope": [16, 56, 56],
        }),
        "vae": _vae(16, 1024, scaling_factor=0.3611, shift_factor=0.1159, force_upcast=True,
                    use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": (TRANSFORMERS, "CLIPTextModel", CLIP_L),
        "text_encoder_2": T5,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": T5_TOKENIZER,
        "scheduler": _flow(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
            base_image_seq_len=256, max_image_seq_len=4096,
        ),
    },
)  # fmt: skip
QWEN_IMAGE = Published(
    ("Qwen/Qwen-Image",),
    "QwenImagePipeline",
    {
        "transformer": (DIFFUSERS, "QwenImageTransformer2DModel", {
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
            "guidance_embeds": False, "axes_dims_rope": [16, 56, 56],
        }),
        "vae": (DIFFUSERS, "AutoencoderKLQwenImage", {
            "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "temperal_downsample": [False, True, True],
        }),
        "text_encoder": (TRANSFORMERS, "Qwen2_5_VLForConditionalGeneration", {
            "model_type": "qwen2_5_vl", "tie_word_embeddings": False,
            "text_config": {
                "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
                "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                "out_hidden_size": 3584,
            },
        }),
        "tokenizer": (TRANSFORMERS, "Qwen2Tokenizer", {}),
        "scheduler": _flow(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256,
            max_image_seq_len=8192, shift_terminal=0.02,
        ),
    },
)  # fmt: skip
Z_IMAGE = Published(
    ("Tongyi-MAI/Z-Image",),
    "ZImagePipeline",
    {
        "transformer": (DIFFUSERS, "ZImageTransformer2DModel", {
            "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30,
            "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
        }),
        "vae": FLUX.parts["vae"],
        "text_encoder": (TRANSFORMERS, "Qwen3Model", {
            "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2560,
            "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960,
        }),
        "tokenizer": (TRANSFORMERS, "Qwen2Tokenizer", {}),
        "scheduler": _flow(shift=6.0),
    },
)  # fmt: skip
PUBLISHED = (
    STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX, QWEN_IMAGE, Z_IMAGE
)  # fmt: skip
