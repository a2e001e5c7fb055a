"""Weights that are not exactly the model's: refused with a name, a number and the folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import tiny_clip
from models import TEXT, UNET, VAE, Tensors, edit, spoiled, tiny_pipeline
from safetensors.torch import load_file, save_file

from sayso import tinyworld
from sayso.base.errors import UserError
from sayso.base.hashes import weights_digest
from sayso.data.clip import ClipEncoder
from sayso.families._lora import LORA_FILE
from sayso.families.stable_diffusion import StableDiffusion
from sayso.rewards.clip_head import ClipHead
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.tinyworld.judge import WEIGHTS, Judge

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("sd") / "p")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def without(start: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(start)}


def halved(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][: len(tensors[name]) // 2].clone()}


def more(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(3)}


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (UNET, prefixed("module."), r"unet .*all 208 .* 'module\.', such as module\.conv"),
        (UNET, prefixed("_orig_mod."), r"unet .* begin with '_orig_mod\.'"),
        (VAE, prefixed("_orig_mod.module."), r"vae .* begin with '_orig_mod\.module\.'"),
        (TEXT, prefixed("module."), r"text_encoder .* begin with 'module\.'"),
        (UNET, without("mid_block"), r"unet lacks weights .*46, such as mid_block\."),
        (VAE, without("decoder"), r"vae lacks weights .*66, such as decoder\."),
        (VAE, without("encoder"), r"vae lacks weights .*, such as encoder\."),
        (TEXT, without("final_layer_norm"), r"text_encoder lacks weights .*2, such as final"),
        (UNET, more("ema.decay"), r"unet has weights .* not know \(1, such as ema\.decay\)"),
        (TEXT, more("head.bias"), r"text_encoder has weights .* not know \(1, such as head\.bias"),
        (UNET, halved("conv_in.weight"), r"weights of the wrong shape \(1, such as conv_in"),
        (TEXT, halved("final_layer_norm.bias"), r"wrong shape .* \[16\] .* \[32\]"),
        (UNET, spoiled("conv_out.bias", float("nan")), r"unet .*NaN .*1, such as conv_out\.bias"),
        (VAE, spoiled("decoder.conv_out.bias", float("inf")), r"vae .*1, such as decoder\.conv"),
    ],
)  # fmt: skip
def test_weights_of_a_part(
    copy: Path, file: str, change: Callable[[Tensors], Tensors], says: str
) -> None:
    edit(copy / file, change)
    with pytest.raises(UserError, match=says) as refused:
        StableDiffusion.load(copy, CPU)
    assert str(copy / file.split("/")[0]) in str(refused.value)


def test_old_names_that_the_libraries_know_are_no_fault(copy: Path, folder: Path) -> None:
    """Stable Diffusion 1's own files: older names of attention, position ids among the weights."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        if "mid_block.attentions" not in name:
            return name
        *stem, layer, kind = name.replace("to_out.0", "to_out_0").split(".")
        return ".".join([*stem, older.get(layer.replace("_out_0", "_out.0"), layer), kind])

    edit(copy / VAE, lambda tensors: {renamed(k): v for k, v in tensors.items()})
    assert any("proj_attn" in name for name in load_file(copy / VAE))
    ids = {"text_model.embeddings.position_ids": torch.arange(40)[None]}
    edit(copy / TEXT, lambda tensors: tensors | ids)
    latents = torch.randn(1, 4, 16, 16)
    images = [StableDiffusion.load(path, CPU).decode(latents) for path in (copy, folder)]
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (prefixed("module."), r"weights/unet .* begin with 'module\.'"),
        (without("conv_out"), r"weights/unet lacks weights .*2, such as conv_out\.bias"),
        (spoiled("conv_in.bias", float("nan")), r"weights/unet .*NaN .*conv_in\.bias"),
    ],
)
def test_weights_of_a_run(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], says: str
) -> None:
    policy = StableDiffusion.load(folder, CPU)
    policy.save_weights(tmp_path / "weights")
    edit(tmp_path / "weights" / UNET, change)
    with pytest.raises(UserError, match=says):
        policy.load_weights(tmp_path / "weights")


def test_weights_of_a_run_are_the_same_wherever_the_base_lies(
    folder: Path, copy: Path, tmp_path: Path
) -> None:
    for name, base in (("here", folder), ("there", copy)):
        StableDiffusion.load(base, CPU).save_weights(tmp_path / name)
    assert weights_digest(tmp_path / "here") == weights_digest(tmp_path / "there")


def test_weights_of_a_run_on_another_model(folder: Path, tmp_path: Path) -> None:
    StableDiffusion.load(folder, CPU).save_weights(tmp_path / "weights")
    other = StableDiffusion.load(tinyworld.paths().pipeline, CPU)
    with pytest.raises(UserError, match=r"weights/unet .*shape .*sayso align under another --name"):
        other.load_weights(tmp_path / "weights")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (prefixed("module."), r"begin with 'module\.'"),
        (without("unet.up_blocks"), r"lacks weights that the model needs \(32, such as unet\.up"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, r"NaN or infinite \(64, such"),
        (lambda t: {k: v[:, :1].clone() for k, v in t.items()}, "cannot be loaded"),
    ],
)
def test_low_rank_weights_of_a_run(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], says: str
) -> None:
    tuned = StableDiffusion.load(folder, CPU)
    tuned.add_lora(rank=2, seed=0)
    tuned.save_weights(tmp_path)
    edit(tmp_path / LORA_FILE, change)
    with pytest.raises(UserError, match=says) as refused:
        StableDiffusion.load(folder, CPU).load_weights(tmp_path)
    assert LORA_FILE in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (prefixed("module."), r"begin with 'module\.'"),
        (without("vision_model.encoder"), r"lacks weights .*, such as vision_model\.encoder"),
        (more("classifier.bias"), r"not know \(1, such as classifier\.bias"),
        (spoiled("logit_scale", float("nan")), r"NaN .*logit_scale"),
    ],
)
def test_weights_of_clip(tmp_path: Path, change: Callable[[Tensors], Tensors], says: str) -> None:
    folder = tiny_clip(tmp_path / "clip")
    edit(folder / "model.safetensors", change)
    with pytest.raises(UserError, match=says) as refused:
        ClipEncoder.load(str(folder))
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (prefixed("module."), r"begin with 'module\.'"),
        (without("layers.6"), r"lacks weights .*2, such as layers\.6\.bias.*fit again"),
        (halved("layers.0.bias"), r"wrong shape \(1, such as layers\.0\.bias"),
        (spoiled("layers.6.bias", float("nan")), r"NaN .*layers\.6\.bias"),
    ],
)
def test_weights_of_a_reward(
    tmp_path: Path, change: Callable[[Tensors], Tensors], says: str
) -> None:
    from sayso.base import files

    clip = str(tiny_clip(tmp_path / "clip"))
    study = Study.create(tmp_path / "study", StudyInfo("s", 0, "none", clip, ""))
    reward = ClipHead(hidden_width=8)
    reward.prepare(study, "cpu")
    reward.new_head(0)
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(change(reward.head.state_dict()), weights / "model.safetensors")
    files.write_json(weights / "config.json", {"clip_hash": reward.clip.hash})
    with pytest.raises(UserError, match=says):
        ClipHead(hidden_width=8).prepare(study, "cpu", weights)


def test_weights_of_the_judge(tmp_path: Path) -> None:
    shutil.copy(tinyworld.paths().judge / WEIGHTS, tmp_path)
    edit(tmp_path / WEIGHTS, prefixed("module."))
    with pytest.raises(UserError, match=r"judge\.safetensors .* begin with 'module\.'"):
        Judge.load(tmp_path)
