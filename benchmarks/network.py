"""Sampling and a training step of the tiny world, each against diffusers' own, in turns.

    python benchmarks/network.py [--turns 7] [--threads 2]

Both sides of a pair run alternately on the same weights, batch of 64, steps, guidance and number
format. Sampling is text to picture: `Policy.sample` and `decode` against the
StableDiffusionPipeline. Training is a whole step: rwr on kept latents and text states against the
step of diffusers' train_text_to_image.py, which encodes pictures and texts every time. Prints the
median of the ratios of processor time, with least and most.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch.nn import functional as F

from sayso.base.devices import best_precision
from sayso.families import mean_squared_error
from sayso.families.stable_diffusion import StableDiffusion
from sayso.tinyworld import paths
from sayso.tinyworld.defaults import SAMPLER

BATCH = 64
TEXTS = [f"{n} red dogs on the moon" for n in ("two", "three", "four", "five")] * (BATCH // 4)
CPU = torch.device("cpu")


def precision() -> AbstractContextManager[object]:
    """The number format that `auto` chooses here."""
    bf16 = best_precision() == "bf16"
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def our_sampling() -> Callable[[], object]:
    policy = StableDiffusion.load(paths().pipeline, CPU)

    @torch.inference_mode()
    def draw() -> object:
        with precision():
            cond, uncond = policy.encode_prompts(TEXTS), policy.encode_prompts([""])
            return policy.decode(policy.sample(cond, uncond, range(BATCH), SAMPLER))

    return draw


def their_sampling() -> Callable[[], object]:
    pipeline = StableDiffusionPipeline.from_pretrained(paths().pipeline, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> object:
        generators = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        with precision():
            return pipeline(
                TEXTS, num_inference_steps=SAMPLER.num_inference_steps, height=64, width=64,
                guidance_scale=SAMPLER.guidance_scale, generator=generators, output_type="pt",
            )  # fmt: skip

    return draw


def our_step() -> Callable[[], object]:
    policy = StableDiffusion.load(paths().pipeline, CPU)
    policy.unet.train()
    weights = list(policy.unet.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, 1e-6, fused=True)
    latents, cond = torch.randn(BATCH, 32, 8, 8), policy.encode_prompts(TEXTS)

    def step() -> object:
        t, noise = torch.rand(BATCH), torch.randn(latents.shape)
        with precision():
            prediction = policy.predict(policy.add_noise(latents, noise, t), t, cond)
        mean_squared_error(prediction, policy.target(latents, noise, t)).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.01)
        return optimizer.zero_grad()

    return step


def their_step() -> Callable[[], object]:
    """The loop's body of train_text_to_image.py: pictures and texts are encoded in every step."""
    parts = StableDiffusionPipeline.from_pretrained(paths().pipeline, torch_dtype=torch.float32)
    parts.unet.train()
    noising = DDPMScheduler.from_config(parts.scheduler.config)
    optimizer = torch.optim.AdamW(parts.unet.parameters(), 1e-6)
    pictures = torch.rand(BATCH, 3, 64, 64) * 2 - 1

    def step() -> object:
        with precision():
            with torch.no_grad():
                latents = parts.vae.encode(pictures).latents * parts.vae.config.scaling_factor
                tokens = parts.tokenizer(
                    TEXTS, padding="max_length", return_tensors="pt"
                ).input_ids  # fmt: skip
                states = parts.text_encoder(tokens)[0]
            noise, t = torch.randn(latents.shape), torch.randint(0, 1000, (BATCH,))
            noisy = noising.add_noise(latents.float(), noise, t)
            prediction = parts.unet(noisy, t, states, return_dict=False)[0]
        F.mse_loss(prediction.float(), noising.get_velocity(latents.float(), noise, t)).backward()
        torch.nn.utils.clip_grad_norm_(parts.unet.parameters(), 1.0)
        optimizer.step()
        return optimizer.zero_grad()

    return step


def seconds(work: Callable[[], object]) -> float:
    """Processor time of all threads, which other programs of a busy machine spoil less."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], n: int) -> None:
    """Run both in turns and print how many times as long theirs takes."""
    for work in (ours, theirs):
        work()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(n)]
    ratios = [b / a for a, b in pairs]
    a, b = (median(side) for side in zip(*pairs, strict=True))
    print(
        f"{name}: ours {a:.3f} s, diffusers {b:.3f} s; "
        f"ratio {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of {n}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{BATCH} pictures, {best_precision()}, {options.threads} threads")
    compare("sampling", our_sampling(), their_sampling(), options.turns)
    compare("training step", our_step(), their_step(), options.turns)


if __name__ == "__main__":
    main()
