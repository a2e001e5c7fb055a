"""Base models in one file, and with a LoRA on top: made a folder, and told apart by content."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from clips import tiny_clip
from models import edit, spoiled
from safetensors.torch import load_file, save_file
from single_files import write_single_file

from sayso.base.errors import UserError
from sayso.base.hashes import file_digest
from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Sampler, Size
from sayso.families import Policy, take
from sayso.families._conversion import as_folder
from sayso.families._loading import family
from sayso.families._lora import LORA_FILE
from sayso.stages.moved import MovedConfig, moved
from sayso.stages.new import NewConfig, new
from sayso.study.identity import base_identity
from sayso.study.provenance import licence, loaded

CPU = torch.device("cpu")
FAMILIES = ("stable_diffusion", "sdxl")
"""Those that were published in one file under names of their own."""
ALL = tuple(plugin_names("family"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: load_plugin("family", name, Policy).tiny(tmp_path_factory.mktemp(name) / "base")
        for name in ALL
    }


def configs_of(base: Path, folder: Path) -> Path:
    """The folder without weights, as `--base-config` may be."""
    return Path(shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors")))


def pipeline_of(base: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(base)


def drawn(folder: Path, network: Any = None) -> torch.Tensor:
    """Latents that the model draws, with another network if one is given."""
    policy = family(folder).load(folder, CPU)
    policy.network = network or policy.network
    cond = policy.encode_prompts(["a dog", ""])
    sampler = Sampler(2, 3.0, 0.0, Size(32, 32))
    return policy.sample(take(cond, slice(1)), take(cond, slice(1, 2)), [3], sampler)


@cache
def drawn_by_base(folder: Path) -> torch.Tensor:
    return drawn(folder)


def lora_of(base: Path, folder: Path) -> Path:
    """Adapters of a run of align, of weights that matter, in diffusers' layout."""
    policy = family(base).load(base, CPU)
    policy.add_lora(rank=2, seed=0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    policy.save_weights(folder)
    return folder / LORA_FILE


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_is_the_model_that_it_was_made_of(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    file = write_single_file(pipeline_of(bases[name]), tmp_path / "model.safetensors")
    folder = as_folder(str(file), str(configs_of(bases[name], tmp_path / "configs")))
    assert folder.name.startswith("model-")
    for part in ("unet", "vae", "text_encoder"):
        (ours,) = (folder / part).glob("*.safetensors")
        (theirs,) = (bases[name] / part).glob("*.safetensors")
        expected, found = load_file(theirs), load_file(ours)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert torch.equal(drawn(folder), drawn_by_base(bases[name]))
    # asked for again it is not written again
    before = folder.stat().st_mtime_ns
    assert as_folder(str(file), str(tmp_path / "configs")) == folder
    assert folder.stat().st_mtime_ns == before
    (row,) = loaded([folder])
    assert row["made_of"]["base"] == str(file)
    assert row["made_of"]["base_sha256"] == file_digest(file)


def test_half_precision_stays_half(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["stable_diffusion"]
    file = write_single_file(pipeline_of(base), tmp_path / "m.safetensors", half=True)
    folder = as_folder(str(file), str(base))
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    torch.testing.assert_close(drawn(folder), drawn_by_base(base), rtol=0.02, atol=0.02)


def test_other_content_is_another_folder(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["stable_diffusion"]
    configs = configs_of(base, tmp_path / "configs")
    file = write_single_file(pipeline_of(base), tmp_path / "m.safetensors")
    first = as_folder(str(file), str(configs))
    edit(file, spoiled("model.diffusion_model.out.2.bias", 0.5))
    second = as_folder(str(file), str(configs))
    scheduler = configs / "scheduler/scheduler_config.json"
    row = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(row | {"prediction_type": "v_prediction"}))
    third = as_folder(str(file), str(configs))
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("name", ALL)
def test_a_file_with_the_network_alone_takes_the_rest_of_the_folder(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    kind: Any = load_plugin("family", name, Policy)
    base, file = bases[name], tmp_path / "network.safetensors"
    network = load_file(base / kind.network_part / "diffusion_pytorch_model.safetensors")
    save_file({key: value * 1.1 for key, value in network.items()}, file)
    folder = as_folder(str(file), str(base))
    found = load_file(folder / kind.network_part / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[key], value * 1.1) for key, value in network.items())
    assert (drawn(folder) - drawn_by_base(base)).abs().max() > 1e-3
    with pytest.raises(UserError, match=r"vae has no \.safetensors weights"):
        as_folder(str(file), str(configs_of(base, tmp_path / "configs")))


def kohya(names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapters under kohya's names, with alpha half of the rank."""
    found = {}
    for name, value in names.items():
        stem, half = name.removeprefix("unet.").split(".lora.")
        flat = f"lora_unet_{stem.replace('.', '_')}"
        found[f"{flat}.lora_{half}"] = value
        found[f"{flat}.alpha"] = torch.tensor(1.0)
    return found


LAYOUTS = [(name, "diffusers") for name in ALL] + [
    (name, layout) for name in FAMILIES for layout in ("peft", "kohya")
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_a_lora_is_added_as_diffusers_adds_it(
    bases: dict[str, Path], tmp_path: Path, name: str, layout: str
) -> None:
    file = lora_of(bases[name], tmp_path / "lora")
    if layout == "peft":
        edit(file, lambda t: {
            k.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): v for k, v in t.items()
        })  # fmt: skip
    if layout == "kohya":
        edit(file, kohya)
    base = Path(shutil.copytree(bases[name], tmp_path / "model-1.5"))
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    folder = as_folder(str(base), lora=str(file.parent))
    assert folder.name.startswith("model-1.5-")
    assert licence(folder) == "mit"
    pipeline = pipeline_of(bases[name])
    pipeline.load_lora_weights(file.parent)
    kind: Any = family(bases[name])
    theirs = drawn(bases[name], getattr(pipeline, kind.network_part))
    assert (theirs - drawn_by_base(bases[name])).abs().max() > 0.01
    torch.testing.assert_close(drawn(folder), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "prefix", "part", "width"),
    [("stable_diffusion", "lora_te", "text_encoder", 32),
     ("sdxl", "lora_te1", "text_encoder", 32), ("sdxl", "lora_te2", "text_encoder_2", 48)],
)  # fmt: skip
def test_a_lora_of_kohya_is_added_to_text_encoders_too(
    bases: dict[str, Path], tmp_path: Path, name: str, prefix: str, part: str, width: int
) -> None:
    """W + alpha / rank · up · down, by hand."""
    rng, rank, alpha, file = torch.Generator().manual_seed(0), 2, 1.0, tmp_path / "l.safetensors"
    attention = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
    shapes = attention | {"mlp.fc1": (width, 64), "mlp.fc2": (64, width)}
    weights, added = {}, {}
    for layer, (wide, out) in shapes.items():
        down, up = torch.randn(rank, wide, generator=rng), torch.randn(out, rank, generator=rng)
        flat = f"{prefix}_text_model_encoder_layers_0_{layer.replace('.', '_')}"
        weights |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up,
                    f"{flat}.alpha": torch.tensor(alpha)}  # fmt: skip
        added[f"layers.0.{layer}.weight"] = alpha / rank * up @ down
    save_file(weights, file)
    folder = as_folder(str(bases[name]), lora=str(file))
    before, now = (load_file(f / part / "model.safetensors") for f in (bases[name], folder))
    assert len(added) == 6
    for end, change in added.items():
        (key,) = (key for key in before if key.endswith(end))
        torch.testing.assert_close(now[key] - before[key], change, rtol=1e-4, atol=1e-5)


def test_a_study_on_a_file_with_a_lora(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["stable_diffusion"]
    file = write_single_file(pipeline_of(base), tmp_path / "m.safetensors")
    options = {"base_model": str(file), "base_config": str(base)}
    clip = str(tiny_clip(tmp_path / "clip"))
    lora = str(lora_of(base, tmp_path / "lora"))
    plain = new(tmp_path / "plain", NewConfig(**options, clip_model=clip))
    tuned = new(tmp_path / "tuned", NewConfig(**options, base_lora=lora, clip_model=clip))
    assert plain.info.sampler.image_size == (32, 32)
    assert base_identity(plain) != base_identity(tuned)
    # the folder may be made again, wherever the files are now
    before = base_identity(tuned)
    shutil.rmtree(tmp_path / "cache")
    again = file.rename(tmp_path / "renamed.safetensors")
    found = moved(tuned, MovedConfig(str(again), base_config=str(base), base_lora=lora))
    assert found.info.base_model != tuned.info.base_model
    assert base_identity(found) == before


def refused(base: str, config: str = "", lora: str = "") -> str:
    with pytest.raises(UserError) as said:
        as_folder(base, config, lora)
    return str(said.value)


def test_files_that_are_no_model_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["stable_diffusion"]
    assert "no model at" in refused(str(tmp_path / "none.safetensors"))
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    assert "text.safetensors cannot be loaded" in refused(str(text))
    lora = lora_of(base, tmp_path / "lora")
    assert "is a LoRA; give it as --base-lora" in refused(str(lora))
    other = tmp_path / "other.safetensors"
    save_file({"head.weight": torch.zeros(2)}, other)
    assert "no model of an architecture that diffusers knows" in refused(str(other))
    assert "--base-config is for a single file" in refused(str(base), str(base))
    assert "no LoRA at" in refused(str(base), lora=str(tmp_path))
    for name, says in {
        "m.ckpt": "pickled", "m.gguf": "quantised", "m.pt": "pickled",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=says):
            new(tmp_path / "study", NewConfig(base_model=str(tmp_path / name)))


def test_files_that_lack_weights_or_fit_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["stable_diffusion"]
    file = write_single_file(pipeline_of(base), tmp_path / "m.safetensors")
    assert "architecture" in refused(str(file), str(bases["sdxl"]))
    edit(file, lambda t: {k: v for k, v in t.items() if "middle_block" not in k})
    assert "lacks weights that the model needs" in refused(str(file), str(base))
    write_single_file(pipeline_of(base), file)
    edit(file, spoiled("model.diffusion_model.out.2.bias", float("nan")))
    assert "NaN" in refused(str(file), str(base))
    write_single_file(pipeline_of(base), file)
    edit(file, lambda t: t | {"v_pred": torch.zeros(0)})
    assert "says that it predicts v" in refused(str(file), str(base))
    edit(file, lambda t: t | {"x.scale_weight": torch.zeros(1)})
    assert "quantised" in refused(str(file), str(base))
    assert not list((tmp_path / "cache/sayso/models").glob("*"))


def test_configs_that_are_not_here_are_asked_for(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_single_file(pipeline_of(bases["stable_diffusion"]), tmp_path / "m.safetensors")
    asked = []

    def offline(name: str, **_options: object) -> str:
        asked.append(name)
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    said = refused(str(file))
    assert asked == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert f"needs the configs and tokenizers of {asked[0]}" in said
    assert "give --base-config" in said


def test_the_lora_of_another_model_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    one, other = (bases[name] for name in FAMILIES)
    lora = lora_of(other, tmp_path / "lora")
    assert "is no LoRA of" in refused(str(one), lora=str(lora))
    back = lora_of(one, tmp_path / "back")
    assert "is no LoRA of" in refused(str(other), lora=str(back))
    edit(back, lambda t: {k.replace("mid_block", "no_block"): v for k, v in t.items()})
    assert "is no LoRA of" in refused(str(one), lora=str(back))
    edit(back, lambda t: {k: v * float("nan") for k, v in t.items()})
    assert "NaN" in refused(str(one), lora=str(back))
    save_file({"head.weight": torch.zeros(2)}, back)
    assert "is no LoRA of" in refused(str(one), lora=str(back))
    dora = lora_of(one, tmp_path / "dora")
    edit(dora, kohya)
    edit(dora, lambda t: t | {
        k.replace("alpha", "dora_scale"): torch.ones(1) for k in t if k.endswith("alpha")
    })  # fmt: skip
    assert "is a DoRA" in refused(str(one), lora=str(dora))
