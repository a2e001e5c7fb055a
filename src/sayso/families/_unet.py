"""What the U-Net families have in common: the trained noise schedule and the folder's sampler."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from jaxtyping import Float, Int
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.files import JsonObject, read_json
from sayso.base.types import Sampler
from sayso.families._conditions import Cond
from sayso.families._diffusers import DiffusersPolicy
from sayso.families._folder import class_name, refuse_other_inputs
from sayso.families._schedulers import accepted, check_scheduler, load_scheduler

SMALL_LATENTS = 32
"""Side of latents up to which attention matrices are small enough to be written out."""


class UNetPolicy(DiffusersPolicy):
    """A U-Net on an autoencoder's latents that predicts eps or v at trained timesteps."""

    network_kind = "U-Net"
    network_call = "evaluate"
    network_part, network_class = "unet", "UNet2DConditionModel"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    added_inputs: str | None = None
    """The U-Net's `addition_embed_type` in this family."""

    def prepare(self, index: JsonObject) -> None:
        super().prepare(index)
        config = self.scheduler.config
        self.kind = "v" if config.get("prediction_type") == "v_prediction" else "eps"
        noising: Any = DDPMScheduler.from_config(config)
        if self.kind == "eps" and noising.alphas_cumprod[-1] == 0:
            raise UserError(
                f"{self.path / 'scheduler'} has rescale_betas_zero_snr with prediction_type "
                "epsilon, whose last timestep has nothing of the image left to take noise from; "
                "give v_prediction, or the schedule that the model was trained with"
            )
        self.alphas_cumprod: Tensor = noising.alphas_cumprod.to(self.device)
        side = self.configs["unet"].sample_size
        small = isinstance(side, int) and side <= SMALL_LATENTS
        if self.device.type == "cpu" and small and self.network is not None:
            unet: Any = self.network
            unet.set_attn_processor(_ShortAttention())

    @classmethod
    def read_scheduler(cls, path: Path, name: str) -> Any:
        return load_scheduler(path, name)

    @classmethod
    def evaluations(cls, path: Path, num_inference_steps: int) -> int:
        index = read_json(path / "model_index.json")
        scheduler = load_scheduler(path, class_name(index, "scheduler", path))
        # Heun's asks twice for all steps but the last, PNDM's twice for one
        scheduler.set_timesteps(num_inference_steps)
        return len(scheduler.timesteps)

    def check_network(self, config: Any, where: Path) -> None:
        refuse_other_inputs(config, where, self.added_inputs)

    def strangers(self) -> dict[str, bool]:
        unet, vae = self.configs["unet"], self.configs["vae"]
        channels = vae.get("latent_channels", unet.in_channels)
        width = sum(self.configs[part].hidden_size for part in self.encoders)
        states = unet.cross_attention_dim
        encoders = " and ".join(self.encoders)
        return {
            f"vae makes latents of {channels} channels, unet takes {unet.in_channels}": (
                channels != unet.in_channels
            ),
            f"{encoders} gives {width} numbers per token, unet takes {states}": (
                isinstance(states, int) and width != states
            ),
        } | super().strangers()

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        check_scheduler(self.scheduler, sampler)

    @property
    def channels(self) -> int:
        return self.configs["unet"].in_channels

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
        return self.evaluate(noisy, self._timestep(t), cond)

    def evaluate(self, noisy: Tensor, timestep: Tensor, cond: Cond) -> Float[Tensor, "b c h w"]:
        """The U-Net's prediction at a timestep in the scheduler's own numbers."""
        states = cond["states"].to(self.dtype)
        noisy = noisy.to(self.dtype)
        extra = self.added(noisy, cond)
        return self.network(noisy, timestep, states, **extra, return_dict=False)[0]

    def added(self, noisy: Tensor, cond: Cond) -> dict[str, Any]:  # noqa: ARG002
        """What the U-Net is told beside noisy latents, timestep and text."""
        return {}

    @torch.no_grad()
    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sampler.num_inference_steps, device=self.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = self.start_noise(generators, sampler) * scheduler.init_noise_sigma
        guided = sampler.guidance_scale > 1
        if guided:
            cond = {k: torch.cat([uncond[k].expand_as(v), v]) for k, v in cond.items()}
        extra = accepted(scheduler.step, eta=sampler.eta, generator=generators)
        for index in scheduler.timesteps:
            inputs = scheduler.scale_model_input(latents, index)
            prediction = self.evaluate(inputs.repeat(1 + guided, 1, 1, 1), index, cond)
            if guided:
                without, within = prediction.chunk(2)
                prediction = self.combine(within, without, sampler.guidance_scale)
            latents = scheduler.step(prediction, index, latents, **extra, return_dict=False)[0]
        return latents


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
