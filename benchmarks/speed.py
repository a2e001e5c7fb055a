"""Speed on the tiny world, each against the everyday way to do it, in turns; parity first.

    python benchmarks/speed.py [--turns 7] [--threads 2] [--compile]

Training: a step of the loop against the step of diffusers' train_text_to_image.py, and what each
difference between the two is worth. Sampling: text to image against StableDiffusionPipeline, then
`sayso generate`, which writes files, against the pipeline and PNGs. Reward: fitting on 27,528
ratings with kept embeddings against encoding the images again in every pass. Times are processor
time; ratios are the median of the turns, with least and most.
"""

import argparse
import itertools
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from alternating import Times, flops, in_turns, machine, matrix_rate, ratio, seconds
from diffusers import StableDiffusionPipeline
from made_up import make_study
from sides import (
    Setting,
    image_difference,
    loss_difference,
    our_sampling,
    our_step,
    their_sampling,
    their_step,
)

from sayso.base.devices import best_precision
from sayso.base.types import Rating
from sayso.data.clip import ClipEncoder
from sayso.families._loading import family
from sayso.rewards.clip_head import ClipHead
from sayso.stages.fit import FitConfig, fit
from sayso.stages.generate import GenerateConfig, generate
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.study import Study
from sayso.tinyworld import paths
from sayso.tinyworld.defaults import SAMPLER

CPU = torch.device("cpu")
RATINGS = 27_528
"""Of the paper."""
TEXTS = tuple(f"{n} red dogs on the moon" for n in ("two", "three", "four", "five"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the rung of torch.compile too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            paths().pipeline, CPU, best_precision() == "bf16", 64, SAMPLER, TEXTS, Path(folder)
        )
        print(f"{machine(CPU)}; batch of {setting.batch}, {best_precision()}")
        training(setting, options.turns, with_compile=options.compile)
        sampling(setting, options.turns)
        files(setting, max(2, options.turns // 2))
        reward(setting)


def training(setting: Setting, turns: int, *, with_compile: bool) -> None:
    difference = loss_difference(replace(setting, bf16=False))
    print(f"\ntraining step; losses differ by {difference:.1e} of the loss")
    sides: dict[str, Callable[[], object]] = {
        "diffusers' script": their_step(setting),
        "+ kept latents and conditions": their_step(setting, kept=True),
        "+ attention, fused AdamW": their_step(setting, kept=True, fast=True),
        "sayso, without EMA": our_step(setting),
        "sayso, with EMA": our_step(setting, ema_decay=0.99),
    }
    if with_compile:
        sides["sayso, compiled"] = our_step(setting, compile=True)
    table(in_turns(sides, CPU, turns), setting.batch)
    policy = family(setting.folder).load(setting.folder, CPU)
    latents = policy.encode_images(setting.images())
    cond, t = policy.encode_prompts(setting.prompts), torch.full((setting.batch,), 0.5)
    forward = flops(lambda: policy.predict(latents, t, cond))
    rate = matrix_rate(CPU, torch.bfloat16 if setting.bf16 else torch.float32)
    took = median(in_turns({"": sides["sayso, without EMA"]}, CPU, turns)[""])
    print(
        f"  roofline: 3 × {forward / 1e9:.0f} GFLOP a step = {3 * forward / took / 1e9:.0f} "
        f"GFLOP/s, {3 * forward / took / rate:.0%} of a matrix product's {rate / 1e9:.0f}"
    )


def sampling(setting: Setting, turns: int) -> None:
    print(f"\nsampling, text to image; pixels differ by {image_difference(setting):.1e} in fp32")
    sides = {"diffusers' pipeline": their_sampling(setting), "sayso": our_sampling(setting)}
    table(in_turns(sides, CPU, turns), setting.batch)


def files(setting: Setting, turns: int) -> None:
    """From a folder of weights to PNG files: loading, drawing, decoding, writing."""
    numbers, n = itertools.count(), 4 * setting.batch

    def ours() -> None:
        path = setting.scratch / f"drawn-{next(numbers)}"
        study = new(path, NewConfig())
        write_prompts(study, PromptsConfig(train=n // 4, test=4, fidelity=0))
        generate(study, GenerateConfig(per_prompt=4))

    def theirs() -> None:
        folder = setting.scratch / f"drawn-{next(numbers)}"
        folder.mkdir()
        pipeline = StableDiffusionPipeline.from_pretrained(
            setting.folder, torch_dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, n, setting.batch):
            seeds = range(start, start + setting.batch)
            with setting.autocast():
                images = pipeline(
                    setting.prompts, num_inference_steps=SAMPLER.num_inference_steps,
                    width=SAMPLER.image_size.width, height=SAMPLER.image_size.height,
                    guidance_scale=SAMPLER.guidance_scale,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                ).images  # fmt: skip
            for seed, image in zip(seeds, images, strict=True):
                image.save(folder / f"{seed}.png")

    print(f"\nfrom weights to {n} files")
    table(in_turns({"pipeline and PNGs": theirs, "sayso generate": ours}, CPU, turns, 1), n)


def reward(setting: Setting, n: int = RATINGS) -> None:
    """Passes over kept embeddings against passes that encode every image again."""
    study = rated_study(setting.scratch / "rated", n)
    images = [study.image(sample) for sample in study.samples()[:512]]
    encoder = ClipEncoder.load(study.info.clip_model)
    encoding = median(in_turns({"": lambda: encoder.images(iter(images))}, CPU, 3)[""]) / 512
    config = FitConfig(name="first")
    fit(study, config, ClipHead(max_epochs=1))
    epochs = 10
    kept = seconds(
        lambda: fit(study, replace(config, name="second"), ClipHead(max_epochs=epochs)), CPU
    )
    again = kept + epochs * n * encoding
    print(f"\nreward on {n:,} ratings, {epochs} passes, {1 / encoding:.0f} images/s encoded")
    print(f"  kept embeddings {kept:.1f} s, encoding in every pass {again:.0f} s (computed: the "
          f"passes over kept ones and {epochs} × {n:,} images): {again / kept:.0f} ×")  # fmt: skip


def rated_study(path: Path, n: int) -> Study:
    """Records of n images, four a prompt, each with a rating."""
    study = make_study(path, n)
    now = time.time()
    study.feedback.add_ratings([
        Rating(str(uuid.uuid4()), sample.id, "anna", "alignment", ("good", "bad")[i % 2],
               simulated=False, shown_at=now - 1, answered_at=now)
        for i, sample in enumerate(study.samples())
    ])  # fmt: skip
    return study


def table(times: Times, images: int) -> None:
    """A line for each side: median seconds, images a second, how many times the first's speed."""
    first = next(iter(times.values()))
    for name, own in times.items():
        middle = median(own)
        print(f"  {name:32}{middle:8.3f} s{images / middle:9.1f} images/s  {ratio(first, own)}")


if __name__ == "__main__":
    main()
