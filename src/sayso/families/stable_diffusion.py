"""Stable Diffusion 1 and 2: U-Net on autoencoder latents, CLIP text states, eps or v prediction."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sayso.base.errors import UserError
from sayso.base.files import read_json
from sayso.base.types import Sampler, Size
from sayso.base.weights import (
    load_part,
    load_tokenizer,
    put,
    read_tensors,
    readable,
    refuse_differences,
)
from sayso.families import PARTS, Cond, Policy
from sayso.families._folder import (
    class_name,
    diffusers_class,
    refuse_other_inputs,
    refuse_strangers,
)
from sayso.families._schedulers import accepted, check_scheduler, load_scheduler
from sayso.families._tiny import tiny_stable_diffusion

SMALL_LATENTS = 32
"""Side of latents up to which attention matrices are small enough to be written out."""
LORA_FILE = "pytorch_lora_weights.safetensors"
REMAKE = "make the run anew: sayso align under another --name"


class StableDiffusion(Policy):
    """A folder that diffusers' StableDiffusionPipeline loads, used without the pipeline."""

    pipelines = ("StableDiffusionPipeline",)
    network_kind = "U-Net"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, unet: Any, vae: Any, text: Any, tokenizer: Any, scheduler: Any) -> None:
        self.unet, self.vae, self.text = unet, vae, text
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.network = unet
        self.device = unet.device
        self.channels: int = unet.config.in_channels
        self.scaling_factor: float = vae.config.scaling_factor
        self.pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
        # a tokenizer whose file says nothing of it takes any length
        self.max_tokens = min(tokenizer.model_max_length, text.config.max_position_embeddings)
        """The most tokens a text may have, start and end tokens included."""
        self.kind = "v" if scheduler.config.get("prediction_type") == "v_prediction" else "eps"
        noising: Any = DDPMScheduler.from_config(scheduler.config)
        self.alphas_cumprod: Tensor = noising.alphas_cumprod.to(self.device)
        for frozen in (vae, text):
            frozen.requires_grad_(False).eval()
        if self.device.type == "cpu" and _is_small(unet):
            unet.set_attn_processor(_ShortAttention())

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        weights: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        parts: Sequence[str] = PARTS,
    ) -> "StableDiffusion":
        index = read_json(path / "model_index.json")
        vae_class = diffusers_class(class_name(index, "vae", path), path)
        scheduler = load_scheduler(path, class_name(index, "scheduler", path))
        unet = load_part(UNet2DConditionModel, path, "unet")
        refuse_other_inputs(unet.config, path / "unet")
        vae = load_part(vae_class, path, "vae")
        text = load_part(CLIPTextModel, path, "text_encoder")
        tokenizer = load_tokenizer(CLIPTokenizer, path / "tokenizer")
        refuse_strangers(path, unet.config, vae.config, text.config, tokenizer)
        policy = cls(unet.to(device), vae, text, tokenizer, scheduler)
        for part, module in (("network", unet), ("vae", vae), ("text", text)):
            if part not in parts:
                policy.release(part)
            elif dtype != torch.float32:
                module.to(device, dtype)
            else:
                module.to(device)
        if weights is not None:
            policy.load_weights(weights)
        return policy

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_stable_diffusion(folder)

    def release(self, part: str) -> None:
        for name in ("network", "unet") if part == "network" else (part,):
            setattr(self, name, None)

    @classmethod
    def evaluations(cls, path: Path, num_inference_steps: int) -> int:
        index = read_json(path / "model_index.json")
        scheduler = load_scheduler(path, class_name(index, "scheduler", path))
        # Heun's asks twice for all steps but the last, PNDM's twice for one
        scheduler.set_timesteps(num_inference_steps)
        return len(scheduler.timesteps)

    # text and images

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        factor = self.pixels_per_latent
        if any(side <= 0 or side % factor for side in size):
            raise UserError(
                f"image_size {size} is not possible with this model; give a width and a height "
                f"that are multiples of {factor}"
            )
        return (self.channels, size.height // factor, size.width // factor)

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        check_scheduler(self.scheduler, sampler)

    def check_prompts(self, texts: Sequence[str]) -> None:
        limit = self.max_tokens
        if not texts:  # the tokenizer takes no empty list
            return
        for text, ids in zip(texts, self.tokenizer(list(texts)).input_ids, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"prompt {text!r} has {len(ids) - 2} tokens and would be cut; "
                    f"the model reads {limit - 2}: shorten it"
                )

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=self.max_tokens,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        masked = getattr(self.text.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return {"states": self.text(tokens.input_ids.to(self.device), attention_mask=mask)[0]}

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype) * 2 - 1)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.scaling_factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        scaled = latents.to(self.vae.dtype) / self.scaling_factor
        images = self.vae.decode(scaled).sample
        images = images.float() / 2 + 0.5
        # clamping alone would make white of infinity
        return torch.where(images.isfinite(), images.clamp(0, 1), torch.nan)

    # diffusion

    def _timestep(self, t: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The trained timestep in which t lies: t uniform in [0, 1) gives each the same share."""
        n = len(self.alphas_cumprod)
        return (t * n).long().clamp(0, n - 1)

    def alpha_sigma(
        self, t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        kept = self.alphas_cumprod[self._timestep(t)]
        return kept**0.5, (1 - kept) ** 0.5

    def grid(self, sampler: Sampler) -> Float[Tensor, " n"]:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sampler.num_inference_steps)
        # schedulers of second order name a timestep twice, and some name 0, where the image is
        steps = torch.as_tensor(scheduler.timesteps).round().long().cpu().unique().flip(0)
        return torch.cat([(steps[steps > 0] + 0.5) / len(self.alphas_cumprod), torch.zeros(1)])

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        return self.network(noisy, self._timestep(t), cond["states"], return_dict=False)[0]

    @torch.inference_mode()
    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sampler.num_inference_steps, device=self.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (1, *self.latent_shape(sampler.image_size))
        latents = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        latents = latents * scheduler.init_noise_sigma
        states, guided = cond["states"], sampler.guidance_scale > 1
        if guided:
            states = torch.cat([uncond["states"].expand_as(states), states])
        extra = accepted(scheduler.step, eta=sampler.eta, generator=generators)
        for index in scheduler.timesteps:
            inputs = scheduler.scale_model_input(latents, index)
            prediction = self.network(inputs.repeat(1 + guided, 1, 1, 1), index, states).sample
            if guided:
                without, within = prediction.chunk(2)
                prediction = self.combine(within, without, sampler.guidance_scale)
            latents = scheduler.step(prediction, index, latents, **extra, return_dict=False)[0]
        return latents

    # weights

    def save_weights(self, folder: Path) -> None:
        network: Any = self.network
        if not getattr(network, "peft_config", None):
            # where the base model lies is no part of what the weights are
            network.register_to_config(_name_or_path="")
            network.save_pretrained(folder / "unet")
            return
        from diffusers import StableDiffusionPipeline
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        StableDiffusionPipeline.save_lora_weights(str(folder), unet_lora_layers=layers)

    def load_weights(self, folder: Path) -> None:
        if (folder / LORA_FILE).exists():
            self._merge_lora(folder)
        elif (folder / "unet").is_dir():
            saved = load_part(UNet2DConditionModel, folder, "unet")
            put(self.unet, saved.state_dict(), folder / "unet", REMAKE)
        else:
            raise UserError(f"{folder} holds neither unet/ nor {LORA_FILE}; repeat the align run")

    def _merge_lora(self, folder: Path) -> None:
        file = folder / LORA_FILE
        names = read_tensors(file, REMAKE).keys()
        wanted = {
            f"unet.{name}.lora.{half}.weight"
            for name, _ in self.unet.named_modules()
            if name.endswith(tuple(f".{target}" for target in self.lora_targets))
            for half in ("down", "up")
        }
        refuse_differences(file, wanted - names, names - wanted, advice=REMAKE)
        with readable(file, REMAKE):
            self.unet.load_lora_adapter(file, prefix="unet")
        self.unet.fuse_lora()
        self.unet.unload_lora()


class _ShortAttention:
    """Plain attention in half precision, fused in fp32: on a CPU, each the faster at short length.

    The fused one has a slow backward in bf16 (1.5 × a whole step); in fp32 it saves a copy.
    """

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        # images may be larger than the model's own, and plain attention holds words² numbers
        short = hidden_states.shape[1] <= SMALL_LATENTS**2
        plain = short and torch.is_autocast_enabled("cpu")
        return (self.plain if plain else self.fused)(attn, hidden_states, *args, **options)


def _is_small(unet: Any) -> bool:
    size = unet.config.sample_size
    return isinstance(size, int) and size <= SMALL_LATENTS
