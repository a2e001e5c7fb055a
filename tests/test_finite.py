"""Numbers that are not finite are refused where they arise, and nothing of them is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import colour_study, tiny_clip
from models import TEXT, UNET, VAE, Tensors, edit, spoiled, tiny_pipeline
from safetensors.torch import load_file, save_file
from studies import TEXTS, as_now, random_study, rated_study

from sayso.base.errors import UserError
from sayso.base.finite import refuse_not_finite
from sayso.data.clip import ClipEncoder, embed_samples
from sayso.data.features import FeatureSpace
from sayso.families.stable_diffusion import StableDiffusion
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study

HUGE = 3e38
"""A weight that is finite, and what it makes is not."""
ALIGN = AlignConfig(
    max_steps=2, batch_size=4, pretraining_images=4, reward="clip_score", mixed_precision="no"
)


def scaled(name: str, factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name] * factor}


def kept(study: Study) -> list[str]:
    folders = ("images", "latents", "cache")
    found = [p.name for f in folders for p in (study.path / f).rglob("*") if p.is_file()]
    return found + [s.id for s in study.samples()]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (UNET, spoiled("conv_out.weight", HUGE), r"the U-Net of base \(.*model\) produced"),
        (UNET, scaled("conv_out.weight", 1e9), "storing in fp16 the latents of the U-Net of base"),
        (TEXT, spoiled("final_layer_norm.weight", HUGE), "the text encoder of base"),
        (VAE, spoiled("decoder.conv_out.weight", HUGE), "the VAE decoder of base"),
    ],
)
@pytest.mark.parametrize(("precision", "named"), [("no", "fp32"), ("bf16", "bf16")])
def test_generate_keeps_nothing(
    tmp_path: Path, file: str, change: Callable[[Tensors], Tensors], says: str,
    precision: str, named: str,
) -> None:  # fmt: skip
    study = random_study(tmp_path)
    edit(tmp_path / "model" / file, change)
    with pytest.raises(UserError, match=says) as refused:
        generate(study, GenerateConfig(per_prompt=2, batch_size=4, mixed_precision=precision))
    said = str(refused.value)
    assert f"prompt {TEXTS[0]!r}" in said
    assert f"computing in {named}; its weights are damaged" in said
    if file != TEXT:
        assert f"seed {_first_seed(study)} and 3 others" in said
    assert kept(study) == []


def test_infinity_does_not_become_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = StableDiffusion.load(tiny_pipeline(tmp_path / "p"), torch.device("cpu"))
    latents = torch.randn(2, 4, 16, 16)
    good = policy.decode(latents)
    decode = policy.vae.decode

    def infinite(latents: torch.Tensor) -> Any:
        decoded = decode(latents)
        decoded.sample[1, 0, 5, 5] = torch.inf
        return decoded

    monkeypatch.setattr(policy.vae, "decode", infinite)
    images = policy.decode(latents)
    assert images[1, 0, 5, 5].isnan()
    images[1, 0, 5, 5] = good[1, 0, 5, 5]
    assert torch.equal(images, good)


def _first_seed(study: Study) -> int:
    from sayso.stages.generate import _drawings

    return _drawings(study, GenerateConfig(), "")[0][1].seed


def test_what_was_kept_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch fails: the first is whole, and mending the model goes on from there."""
    study, decode = random_study(tmp_path), StableDiffusion.decode
    calls: list[int] = []

    def failing(policy: StableDiffusion, latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        return decode(policy, latents) * (torch.nan if len(calls) == 2 else 1)

    config = GenerateConfig(per_prompt=2, batch_size=4)
    monkeypatch.setattr(StableDiffusion, "decode", failing)
    with pytest.raises(UserError, match="the VAE decoder of base"):
        generate(study, config)
    assert len(study.samples()) == 4
    assert generate(study, config).result["n"] == len(study.samples()) == 6


def test_in_fp16_another_format_is_advised() -> None:
    with torch.autocast("cpu", torch.float16), pytest.raises(UserError) as refused:
        refuse_not_finite(torch.tensor([[1.0], [torch.inf]]), ["a", "b"], "the VAE decoder of x")
    assert str(refused.value) == (
        "b: the VAE decoder of x produced numbers that are not finite, computing in fp16; fp16 "
        "ends at 65504: try --mixed-precision bf16 or no"
    )
    refuse_not_finite(torch.ones(2, 3), ["a", "b"], "x")


def test_align_refuses_stored_latents(tmp_path: Path) -> None:
    study = rated_study(tmp_path)
    sample = study.samples()[3]
    shard = study.path / sample.latents
    save_file(load_file(shard) | {sample.id: torch.full((4, 16, 16), torch.nan).half()}, shard)
    with pytest.raises(UserError, match=f"latents of sample {sample.id} .*delete its line"):
        align(study, ALIGN)
    assert study.runs("align") == [], "refused before a run was begun"


def test_align_refuses_latents_of_pretraining_images(tmp_path: Path) -> None:
    study = rated_study(tmp_path)
    edit(tmp_path / "model" / VAE, spoiled("encoder.conv_in.weight", HUGE))
    as_now(study)
    says = r"pre-training image 1 and 3 others: the VAE encoder of base .* in fp32"
    with pytest.raises(UserError, match=says):
        align(study, ALIGN)
    assert not list(study.cache.glob("pretraining-*"))


def test_align_refuses_conditions(tmp_path: Path) -> None:
    study = rated_study(tmp_path)
    edit(tmp_path / "model" / TEXT, spoiled("final_layer_norm.weight", HUGE))
    as_now(study)
    with pytest.raises(UserError, match=r"prompt .*: the text encoder of base"):
        align(study, ALIGN)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("visual_projection.weight", "sample {first} and .* others: CLIP .* are not finite"),
        ("text_projection.weight", "prompt .*: CLIP's text encoder"),
    ],
)
def test_embeddings(tmp_path: Path, name: str, says: str) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study = colour_study(tmp_path / "study", clip, train=2)
    edit(clip / "model.safetensors", spoiled(name, HUGE))
    encoder, samples = ClipEncoder.load(str(clip)), study.samples()
    of_images = name.startswith("visual")
    with pytest.raises(UserError, match=says.format(first=samples[0].id)):
        _ = embed_samples(study, encoder, samples) if of_images else encoder.texts(["a dog"])
    assert not list(study.cache.rglob("*.safetensors"))


def test_a_cache_that_is_not_finite_is_made_again(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study, encoder = colour_study(tmp_path / "s", clip, train=2), ClipEncoder.load(str(clip))
    expected = embed_samples(study, encoder, study.samples())
    shard = next(study.cache.rglob("*.safetensors"))
    save_file({k: v * torch.nan for k, v in load_file(shard).items()}, shard)
    assert torch.equal(embed_samples(study, encoder, study.samples()), expected)


def test_features() -> None:
    from PIL import Image

    space = FeatureSpace(
        "CLIP x", lambda part: part.flatten(1) / part.amax((1, 2, 3))[:, None], "kid"
    )
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "red")]
    with pytest.raises(
        UserError, match="image 2 of 3: CLIP x produced numbers that are not finite"
    ):
        space(pictures)
