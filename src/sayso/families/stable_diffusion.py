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
from sayso.base.types import Sampler
from sayso.base.weights import (
    load_part,
    load_tokenizer,
    put,
    read_tensors,
    readable,
    refuse_differences,
)
from sayso.families import Cond, Policy
from sayso.families._folder import (
    class_name,
    diffusers_class,
    refuse_other_inputs,
    refuse_strangers,
)
from sayso.families._schedulers import accepted, check_scheduler, load_scheduler

SMALL_LATENTS = 32
"""Side of latents up to which attention matrices are small enough to be written out."""
LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
REMAKE = "make the run anew: sayso align under another --name"


class StableDiffusion(Policy):
    """A folder that diffusers' StableDiffusionPipeline loads, used without the pipeline."""

    pipelines = ("StableDiffusionPipeline",)
    network_kind = "U-Net"

    def __init__(self, unet: Any, vae: Any, text: Any, tokenizer: Any, scheduler: Any) -> None:
        self.unet, self.vae, self.text = unet, vae, text
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.network = unet
        self.device = unet.device
        self.noising: Any = DDPMScheduler.from_config(scheduler.config)
        self.noising.alphas_cumprod = self.noising.alphas_cumprod.to(self.device)
        for frozen in (vae, text):
            frozen.requires_grad_(False).eval()
        if self.device.type == "cpu" and _is_small(unet):
            unet.set_attn_processor(_ShortAttention())

    @classmethod
    def load(
        cls, path: Path, device: torch.device, weights: Path | None = None
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
        policy = cls(unet.to(device), vae.to(device), text.to(device), tokenizer, scheduler)
        if weights is not None:
            policy.load_weights(weights)
        return policy

    @classmethod
    def evaluations(cls, path: Path, num_inference_steps: int) -> int:
        index = read_json(path / "model_index.json")
        scheduler = load_scheduler(path, class_name(index, "scheduler", path))
        # Heun's asks twice for all steps but the last, PNDM's twice for one
        scheduler.set_timesteps(num_inference_steps)
        return len(scheduler.timesteps)

    # text and images

    def latent_shape(self, image_size_px: int) -> tuple[int, int, int]:
        channels = len(self.vae.config.block_out_channels)
        factor = 2 ** (channels - 1)
        if image_size_px <= 0 or image_size_px % factor:
            raise UserError(f"image_size_px {image_size_px} is no multiple of {factor}; choose one")
        side = image_size_px // factor
        return (self.unet.config.in_channels, side, side)

    @property
    def max_tokens(self) -> int:
        """The most tokens a text may have, start and end tokens included."""
        # a tokenizer whose file says nothing of it takes any length
        return min(self.tokenizer.model_max_length, self.text.config.max_position_embeddings)

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        check_scheduler(self.scheduler, sampler)

    def check_prompts(self, texts: Sequence[str]) -> None:
        limit = self.max_tokens
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
        encoded = self.vae.encode(images.to(self.device) * 2 - 1)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        images = images.float() / 2 + 0.5
        # clamping alone would make white of infinity
        return torch.where(images.isfinite(), images.clamp(0, 1), torch.nan)

    # diffusion

    def _timestep(self, t: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The trained timestep in which t lies: t uniform in [0, 1) gives each the same share."""
        n = self.noising.config.num_train_timesteps
        return (t * n).long().clamp(0, n - 1)

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        return self.noising.add_noise(latents, noise, self._timestep(t))

    def target(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        if self.noising.config.prediction_type == "v_prediction":
            return self.noising.get_velocity(latents, noise, self._timestep(t))
        return noise

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
        shape = (1, *self.latent_shape(sampler.image_size_px))
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
                prediction = without + sampler.guidance_scale * (within - without)
            latents = scheduler.step(prediction, index, latents, **extra, return_dict=False)[0]
        return latents

    # weights

    def add_lora(self, rank: int, seed: int) -> None:
        from peft import LoraConfig

        self.unet.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(config)

    def save_weights(self, folder: Path) -> None:
        if not getattr(self.unet, "peft_config", None):
            self.unet.save_pretrained(folder / "unet")
            return
        from diffusers import StableDiffusionPipeline
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
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
            if name.endswith(tuple(f".{target}" for target in LORA_TARGETS))
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
