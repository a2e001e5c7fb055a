"""`python -m sayso.tinyworld.factory.pretrain`: makes the shipped pipeline and CLIP from nothing.

Up to two hours on two quiet cores. Interrupted, it continues where the work folder says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from diffusers import AutoencoderTiny

from sayso.base.progress import progress
from sayso.tinyworld import paths
from sayso.tinyworld.factory import autoencoder, clip, data, denoiser, export
from sayso.tinyworld.factory.autoencoder import AutoencoderPlan
from sayso.tinyworld.factory.clip import ClipPlan
from sayso.tinyworld.factory.denoiser import DenoiserPlan
from sayso.tinyworld.factory.tokens import build_tokenizer
from sayso.tinyworld.scenes import VOCABULARY


@dataclass(frozen=True)
class PretrainConfig:
    """Options of pre-training."""

    work: Path = Path("pretraining-work")
    """Folder for pictures, latents and checkpoints (0.5 GB); repeating the command resumes."""
    pipeline: Path = paths().pipeline
    """Where the Stable Diffusion folder goes."""
    clip: Path = paths().clip
    """Where the CLIP folder goes."""
    seed: int = 0
    """Seed of scenes, captions, weights and noise."""
    autoencoder_plan: AutoencoderPlan = field(default_factory=AutoencoderPlan)
    denoiser_plan: DenoiserPlan = field(default_factory=DenoiserPlan)
    clip_plan: ClipPlan = field(default_factory=ClipPlan)


def pretrain(config: PretrainConfig) -> None:
    """Train autoencoder, denoiser and CLIP, and write the two folders."""
    config.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(VOCABULARY)
    vae = _autoencoder(config)
    with progress("denoiser", config.denoiser_plan.steps, unit="steps") as advance:
        base = denoiser.train(
            config.work, config.seed, config.denoiser_plan, vae, tokenizer, _report(advance)
        )
    with progress("clip", config.clip_plan.steps, unit="steps") as advance:
        matcher = clip.train(
            config.work, config.seed, config.clip_plan, vae, tokenizer, _report(advance)
        )
    export.save_pipeline(config.pipeline, vae, base)
    export.save_clip(config.clip, matcher)


def _autoencoder(config: PretrainConfig) -> AutoencoderTiny:
    """Train the autoencoder once; the finished one is kept in the work folder."""
    finished = config.work / "vae"
    if not (finished / "config.json").exists():
        with progress("autoencoder", config.autoencoder_plan.steps, unit="steps") as advance:
            vae = autoencoder.train(
                config.work, config.seed, config.autoencoder_plan, _report(advance)
            )
        images, _ = data.scenes(config.work, config.seed, config.autoencoder_plan.images)
        autoencoder.balance(vae, images[:1000])
        with progress("decoder", config.autoencoder_plan.hardening_steps, unit="steps") as advance:
            autoencoder.harden(
                vae, config.work, config.seed, config.autoencoder_plan, _report(advance)
            )
        vae.save_pretrained(finished)
    return AutoencoderTiny.from_pretrained(finished).eval()


def _report(advance: Callable[..., None]) -> Callable[[int, str], None]:
    """Turn a bar's `advance` into a report of the steps done so far."""
    seen = 0

    def report(step: int, note: str) -> None:
        nonlocal seen
        advance(step - seen, note)
        seen = step

    return report


if __name__ == "__main__":
    pretrain(tyro.cli(PretrainConfig, description=__doc__))
