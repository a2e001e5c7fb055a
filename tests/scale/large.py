"""A study with very many samples, made without drawing: rows, votes and random latents."""

import json
from dataclasses import asdict
from itertools import repeat
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sayso.base.types import Prompt, Rating, Sample, digest, sample_id
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.families._loading import load_policy
from sayso.stages.new import NewConfig, new
from sayso.study.identity import base_identity
from sayso.study.study import Study
from sayso.tinyworld.pretraining_images import Scenes

SHARD = 100
LATENTS = (32, 8, 8)
"""Of the tiny world's pictures of 64 pixels."""
OBJECTS = ("cat", "dog", "tree", "house", "boat", "cloud", "fish", "car", "bird", "flower")


def large_study(folder: Path, n: int) -> Study:
    """`n` train prompts, each another text, with a sample each; every second is rated good."""
    study = new(folder, NewConfig(name="large"))
    prompts = [
        Prompt(f"p{i:06}", f"{OBJECTS[i % 10]} {i:06}", "count", {}, "train") for i in range(n)
    ]
    study.write_prompts(prompts)
    samples = _samples(study, prompts)
    (study.path / "samples.jsonl").write_text(
        "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
    )
    study.feedback.add_ratings([
        Rating(
            digest(["rating", s.id]), s.id, "simulated-1", "alignment", ("good", "bad")[i % 2],
            True, 0.0, 1.0,
        )
        for i, s in enumerate(samples)
    ])  # fmt: skip
    return study


def encode_nothing(study: Study, n: int) -> None:
    """Fill the cache of `n` pre-training images with random latents, drawing none of them."""
    policy = load_policy(study, "base", torch.device("cpu"))
    blank, generator = Image.new("RGB", (64, 64)), torch.Generator().manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scenes, "train_pictures", lambda *_: repeat(blank, n))
        patch.setattr(
            policy, "encode_images", lambda b: torch.randn(len(b), *LATENTS, generator=generator)
        )
        encoded_pretraining(study, policy, n)


def _samples(study: Study, prompts: list[Prompt]) -> list[Sample]:
    sampler, identity = study.info.sampler, base_identity(study)
    (study.path / "latents").mkdir()
    generator, found = torch.Generator().manual_seed(0), list[Sample]()
    for start in range(0, len(prompts), SHARD):
        shard = study.latents_path(f"{start:06}")
        part = [
            Sample(i, p.id, "base", 0, sampler, study.image_path(i), shard, identity)
            for p in prompts[start : start + SHARD]
            if (i := sample_id(p.id, "base", 0, sampler, identity))
        ]
        latents = torch.randn(len(part), *LATENTS, generator=generator).half()
        save_file({s.id: row.clone() for s, row in zip(part, latents, strict=True)},
                  study.path / shard)  # fmt: skip
        found += part
    return found
