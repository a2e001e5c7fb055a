"""Every cache is kept by content: what was replaced under its name is computed anew."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import colour_study, tiny_clip
from PIL import Image
from studies import random_study

from sayso.base.types import Size
from sayso.data.clip import ClipEncoder, embed_samples
from sayso.data.pretraining_images import open_pretraining
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.families._loading import load_policy
from sayso.study.study import Study
from sayso.tinyworld import pretraining_images as scenes

CPU = torch.device("cpu")


def captioned_images(folder: Path, n: int = 24, text: str = "two red cats", shade: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8) + np.uint8(shade)
        Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=0)
    rows = ({"file_name": f"{i}.png", "text": text} for i in range(n))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    captioned_images(tmp_path / "natural")
    return random_study(tmp_path, str(tmp_path / "natural"))


def rows(study: Study) -> tuple[torch.Tensor, list[str]]:
    latents, captions = encoded_pretraining(study, load_policy(study, "base", CPU), 6)
    return latents[torch.arange(6)], captions


def replaced_images(study: Study) -> None:
    """Same names, sizes and dates, as rsync and cp -p leave them."""
    folder = Path(study.info.pretraining)
    before = {p: p.stat() for p in folder.glob("*.png")}
    captioned_images(folder, shade=50)
    for path, stat in before.items():
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def other_vae(study: Study) -> None:
    from safetensors.torch import load_file, save_file

    file = Path(study.info.base_model) / "vae/diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.5 for k, v in load_file(file).items()}, file)


def other_size(study: Study) -> None:
    sampler = replace(study.info.sampler, image_size=Size(16, 16))
    study.info = replace(study.info, sampler=sampler)


@pytest.mark.parametrize("change", [replaced_images, other_vae, other_size])
def test_latents_of_pretraining_images_are_made_anew(
    study: Study, change: Callable[[Study], None]
) -> None:
    first, _ = rows(study)
    assert torch.equal(rows(study)[0], first)
    change(study)
    assert not torch.equal(rows(study)[0], first)


def test_captions_of_pretraining_images_are_read_anew(study: Study) -> None:
    assert set(rows(study)[1]) == {"two red cats"}
    metadata = Path(study.info.pretraining) / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("two red cats", "one red cat!"))
    assert set(rows(study)[1]) == {"one red cat!"}


def test_latents_in_another_number_format_are_others(study: Study) -> None:
    policy = load_policy(study, "base", CPU)
    whole, _ = rows(study)
    rough, _ = encoded_pretraining(study, policy, 6, torch.autocast("cpu", torch.bfloat16))
    assert not torch.equal(whole, rough[torch.arange(6)])
    assert torch.equal(rows(study)[0], whole)


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b[:-64] + b"\xff" * 64])
def test_damaged_latents_of_pretraining_images_are_made_anew(
    study: Study, damage: Callable[[bytes], bytes]
) -> None:
    """Cut short, or no longer numbers."""
    first, _ = rows(study)
    kept = next(study.cache.glob("pretraining/*"))
    kept.write_bytes(damage(kept.read_bytes()))
    assert torch.equal(rows(study)[0], first)


def test_pretraining_images_in_another_place_are_the_same(study: Study, tmp_path: Path) -> None:
    first, _ = rows(study)
    (tmp_path / "natural").rename(tmp_path / "moved")
    study.info = replace(study.info, pretraining=str(tmp_path / "moved"))
    assert torch.equal(rows(study)[0], first)
    assert len(list(study.cache.glob("pretraining/*"))) == 1


def test_scenes_drawn_by_another_renderer_are_encoded_anew(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.info = replace(study.info, pretraining="tinyworld")
    first, _ = rows(study)
    before = open_pretraining(study).train_identity(6)
    monkeypatch.setattr(scenes, "render", lambda *_: np.zeros((32, 32, 3), np.uint8))
    assert torch.equal(rows(study)[0], first), "kept, for the renderer's source is the same"
    monkeypatch.setattr(scenes, "file_digest", lambda path: path.name)
    assert open_pretraining(study).train_identity(6) != before
    assert not torch.equal(rows(study)[0], first)


def test_the_renderer_is_known_whole() -> None:
    """Every module that drawing a scene needs is in the hash of what draws."""
    code = (
        "import sys; from sayso.tinyworld import defaults, render\n"
        "print(*(n for n in sys.modules if n.startswith('sayso.tinyworld.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {f"sayso.tinyworld.{name}" for name in scenes.RENDERER}


def test_embeddings_are_of_the_picture_that_is_there(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study, encoder = colour_study(tmp_path / "s", clip, train=1), ClipEncoder.load(str(clip))
    samples = study.samples()[:2]
    first = embed_samples(study, encoder, samples)
    one, two = (study.path / s.path for s in samples)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert torch.equal(embed_samples(study, encoder, samples), first.flip(0))


def test_one_picture_under_two_names_is_embedded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study, encoder = colour_study(tmp_path / "s", clip, train=1), ClipEncoder.load(str(clip))
    sample = study.samples()[0]
    first = embed_samples(study, encoder, [sample])
    monkeypatch.setattr(encoder, "images", lambda _: pytest.fail("embedded again"))
    chosen = replace(sample, id="other", model="base@best-1-of-2-by-x")
    assert torch.equal(embed_samples(study, encoder, [chosen]), first)


def test_embeddings_by_another_clip_in_the_same_folder_are_others(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study = colour_study(tmp_path / "s", clip, train=1)
    first = embed_samples(study, ClipEncoder.load(str(clip)), study.samples())
    tiny_clip(tmp_path / "other", seed=1)
    weights = "model.safetensors"
    (clip / weights).write_bytes((tmp_path / "other" / weights).read_bytes())
    again = embed_samples(study, ClipEncoder.load(str(clip)), study.samples())
    assert not torch.equal(again, first)
