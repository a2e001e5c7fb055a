"""Model folders as they lie about: each loads, or ends in one line and leaves no run behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import torch
from clips import tiny_clip
from diffusers import AutoencoderKL, UNet2DConditionModel
from models import TEXT, UNET, VAE, tiny_pipeline, tiny_unet
from studies import random_study, rated_study
from transformers import CLIPTextModel

from sayso.base.errors import UserError
from sayso.data.clip import ClipEncoder
from sayso.families._loading import resolve
from sayso.families.stable_diffusion import StableDiffusion
from sayso.stages.align import AlignConfig, align
from sayso.stages.evaluate import EvaluateConfig, evaluate
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.provenance import licence
from sayso.study.study import Study

CPU = torch.device("cpu")
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("sd") / "p")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def renamed(file: str, name: str) -> Change:
    return lambda folder: (folder / file).rename((folder / file).parent / name)


def written(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def removed(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def json_with(file: str, **fields: object) -> Change:
    def change(folder: Path) -> None:
        row = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({k: v for k, v in row.items() if v != "absent"}))

    return change


def truncated(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:5000])


def saved_in(part: str, kind: type, **options: object) -> Change:
    """The part saved anew by the library, in another way, in place of the plain file."""

    def change(folder: Path) -> None:
        model = kind.from_pretrained(folder / part)
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder / part, **options)

    return change


def unet_with(**config: object) -> Change:
    return lambda folder: tiny_unet(**config).save_pretrained(folder / "unet")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 34\n"
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
FP16, NON_EMA = (f"diffusion_pytorch_model.{v}.safetensors" for v in ("fp16", "non_ema"))


def scheduler_class(name: str) -> Change:
    return json_with(INDEX, scheduler=["diffusers", name])


LOADS: dict[str, tuple[Change, str]] = {
    "fp16 variant": (renamed(UNET, FP16), "unet: using the fp16 variant"),
    "non_ema variant": (renamed(UNET, NON_EMA), "unet: using the non_ema variant"),
    "fp16 of the text encoder": (renamed(TEXT, "model.fp16.safetensors"), "the fp16 variant"),
    "in pieces": (saved_in("unet", UNet2DConditionModel, max_shard_size="300KB"), ""),
    "text encoder in pieces": (saved_in("text_encoder", CLIPTextModel, max_shard_size="20KB"), ""),
    "fp16 in pieces": (
        saved_in("unet", UNet2DConditionModel, max_shard_size="300KB", variant="fp16"),
        "unet: using the fp16 variant",
    ),
    "fp16 text encoder in pieces": (
        saved_in("text_encoder", CLIPTextModel, max_shard_size="20KB", variant="fp16"),
        "text_encoder: using the fp16 variant",
    ),
    "variant beside the plain weights": (
        lambda folder: shutil.copy(folder / TEXT, folder / "text_encoder/model.fp16.safetensors"),
        "",
    ),
    "tokenizer without model_max_length": (
        json_with("tokenizer/tokenizer_config.json", model_max_length="absent"), "",
    ),
    "trailing with zero SNR": (
        lambda folder: (
            scheduler_class("EulerDiscreteScheduler")(folder),
            json_with(
                SCHEDULER, timestep_spacing="trailing", rescale_betas_zero_snr=True,
                prediction_type="v_prediction",
            )(folder),
        ),
        "",
    ),
    "broken model card": (written("README.md", "---\nlicense: mit\nmodel-index: foo\n---\n"), ""),
    "card that is no YAML": (written("README.md", "---\n: [\n---\n"), ""),
}  # fmt: skip

REFUSED: dict[str, tuple[Change, str]] = {
    "truncated U-Net": (truncated(UNET), r"unet cannot be loaded \(.+\); restore it"),
    "truncated text encoder": (truncated(TEXT), r"text_encoder cannot be loaded \(.+\)"),
    "empty VAE": (written(VAE, ""), r"vae cannot be loaded \(.+\)"),
    "LFS pointer": (written(UNET, POINTER), r"unet/diff.* is a Git LFS pointer.*git lfs pull"),
    "pickle": (renamed(UNET, "diffusion_pytorch_model.bin"), r"unet has no \.safetensors"),
    "no U-Net": (removed("unet"), r"unet has no config\.json; restore the folder"),
    "no VAE folder": (removed("vae"), r"vae has no config\.json; restore the folder"),
    "null VAE": (json_with(INDEX, vae=[None, None]), r"model_index\.json names no vae"),
    "VAE not named": (json_with(INDEX, vae="absent"), r"model_index\.json names no vae"),
    "VAE as a word": (json_with(INDEX, vae="AutoencoderKL"), r"model_index\.json names no vae"),
    "unknown VAE": (json_with(INDEX, vae=["diffusers", "FancyVAE"]), "FancyVAE, which the"),
    "no tokenizer": (removed("tokenizer"), "tokenizer has no tokenizer"),
    "no words": (removed("tokenizer/tokenizer.json"), "tokenizer has no tokenizer"),
    "damaged words": (written("tokenizer/tokenizer.json", "{"), "tokenizer in .* cannot be"),
    "empty words": (
        lambda folder: (
            removed("tokenizer/tokenizer.json")(folder),
            written("tokenizer/vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 1}')(folder),
            written("tokenizer/merges.txt", "#version: 0.2\n")(folder),
        ),
        r"tokenizer knows \d words, text_encoder 74",
    ),
    "no scheduler": (removed("scheduler"), r"scheduler cannot be loaded \(.+\)"),
    "scheduler not named": (json_with(INDEX, scheduler="absent"), "names no scheduler"),
    "unknown scheduler": (scheduler_class("FancyScheduler"), "is a FancyScheduler, which sayso"),
    "SDE without torchsde": (scheduler_class("DPMSolverSDEScheduler"), "is a DPMSolverSDE"),
    "scheduler of another kind": (
        scheduler_class("FlowMatchEulerDiscreteScheduler"), "such as DPMSolverMultistepScheduler",
    ),
    "scheduler that is no JSON": (written(SCHEDULER, "{"), r"scheduler cannot be loaded \(.+\)"),
    "odd betas": (json_with(SCHEDULER, beta_schedule="fancy"), r"scheduler cannot .*fancy"),
    "odd prediction": (json_with(SCHEDULER, prediction_type="sample"), "prediction_type 'sample'"),
    "no config": (removed("unet/config.json"), r"unet has no config\.json; restore the folder"),
    "config that is no JSON": (written("unet/config.json", "{"), r"unet cannot be loaded \(.+\)"),
    "inpainting": (unet_with(in_channels=9), "takes 9 channels and gives 4: it is for inpainting"),
    "distilled": (unet_with(time_cond_proj_dim=8), r"more than a text \(time_cond_proj_dim\)"),
    "turbo by name": (
        json_with("unet/config.json", _name_or_path="stabilityai/sdxl-turbo"),
        "is called stabilityai/sdxl-turbo, with turbo in it: it was distilled",
    ),
    "turbo by its scheduler": (
        lambda folder: (
            scheduler_class("EulerAncestralDiscreteScheduler")(folder),
            json_with(SCHEDULER, timestep_spacing="trailing")(folder),
        ),
        "scheduler is a EulerAncestral.* draw in few steps.*; give the model that it was distilled",
    ),
    "LCM": (scheduler_class("LCMScheduler"), "is a LCMScheduler: it was distilled"),
    "noise prediction without signal": (
        lambda folder: (
            scheduler_class("DDIMScheduler")(folder),
            json_with(SCHEDULER, rescale_betas_zero_snr=True)(folder),
        ),
        "rescale_betas_zero_snr with prediction_type epsilon",
    ),
    "class labels": (
        unet_with(class_embed_type="timestep"), r"more than a text \(class_embed_type\)",
    ),
    "U-Net of another width": (
        unet_with(cross_attention_dim=16), "text_encoder gives 32 numbers per token, unet takes 16",
    ),
    "VAE of another model": (
        lambda folder: AutoencoderKL(
            block_out_channels=(8, 8), latent_channels=8, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).save_pretrained(folder / "vae"),
        "vae makes latents of 8 channels, unet takes 4",
    ),
    "no class": (json_with(INDEX, _class_name="absent"), r"model_index\.json names no pipeline"),
    "class list": (json_with(INDEX, _class_name=["x", "y"]), "names no pipeline"),
    "another pipeline": (
        json_with(INDEX, _class_name="StableDiffusionInpaintPipeline"),
        "is a StableDiffusionInpaintPipeline, which does not draw from a text alone; give",
    ),
    "index that is no JSON": (written(INDEX, "{"), r"model_index\.json is not valid JSON"),
    "no index": (removed(INDEX), "no model at"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOADS)
def test_loads(folder: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = LOADS[case]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change(copy)
    policy = StableDiffusion.load(copy, CPU)
    said = " ".join(capsys.readouterr().err.split())
    assert says in said
    assert bool(says) == ("variant" in said)
    expected = StableDiffusion.load(folder, CPU)
    assert torch.equal(
        policy.encode_prompts(["a dog"])["states"], expected.encode_prompts(["a dog"])["states"]
    )
    for name, value in expected.network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], value)
    assert licence(copy) is None


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_no_run_left(tmp_path: Path, case: str) -> None:
    change, says = REFUSED[case]
    study = random_study(tmp_path)
    change(tmp_path / "model")
    with pytest.raises(UserError, match=says) as refused:
        generate(study, GenerateConfig(per_prompt=1))
    assert str(tmp_path / "model") in str(refused.value)
    assert len(str(refused.value)) < 700
    assert not study.runs()
    assert not study.samples()


def with_clip(study: Study, folder: Path, change: Change) -> Study:
    """The study with a tiny CLIP that was changed so."""
    change(tiny_clip(folder / "clip"))
    return Study(study.path, replace(study.info, clip_model=str(folder / "clip")))


CLIP_TRUNCATED = truncated("model.safetensors")


ALIGN = AlignConfig(max_steps=1, batch_size=4, reward="clip_score", pretraining_images=4)


def test_align_refused_and_no_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = rated_study(tmp_path)
    with pytest.raises(UserError, match=r"clip.* cannot be loaded"):
        align(with_clip(study, tmp_path, CLIP_TRUNCATED), ALIGN)
    assert not (study.path / "runs/align-rwr").exists()

    # a changed folder is no longer what drew the images; what refuses this one is the library
    def refused(*_arguments: object, **_options: object) -> None:
        raise UserError("its scheduler is unknown")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "load", refused)
        with pytest.raises(UserError, match="its scheduler is unknown"):
            align(study, ALIGN)
    assert not (study.path / "runs/align-rwr").exists()

    def infinite(*_arguments: object) -> torch.Tensor:
        return torch.full((4, 4, 16, 16), torch.inf)

    monkeypatch.setattr(StableDiffusion, "encode_images", infinite)
    with pytest.raises(UserError, match="VAE encoder"):
        align(study, ALIGN)
    assert not (study.path / "runs/align-rwr").exists()


def test_evaluate_refused_and_no_run_left(tmp_path: Path) -> None:
    made, _ = synthetic.make_study(tmp_path / "study", test=4, per_prompt=1)
    synthetic.add_runs(made)
    before = {run.name for run in made.runs()}
    study = with_clip(made, tmp_path, CLIP_TRUNCATED)
    config = EvaluateConfig(model=synthetic.ALIGNED, judge="none", reward="")
    with pytest.raises(UserError, match=r"clip.* cannot be loaded"):
        evaluate(study, config)
    assert {run.name for run in study.runs()} == before


def test_the_choice_of_the_best_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    study = with_clip(random_study(tmp_path), tmp_path, CLIP_TRUNCATED)
    with pytest.raises(UserError, match=r"clip.* cannot be loaded"):
        generate(study, GenerateConfig(per_prompt=1, best_of=2, reward="clip_score"))
    assert not study.runs()
    assert not study.samples()


PREPROCESSOR = "preprocessor_config.json"
CLIP_LOADS: dict[str, Change] = {
    "fp16 variant": renamed("model.safetensors", "model.fp16.safetensors"),
    "tokenizer without model_max_length": json_with(
        "tokenizer_config.json", model_max_length="absent"
    ),
    "no mean, no deviation": json_with(PREPROCESSOR, image_mean="absent", image_std="absent"),
    "old numbers": json_with(PREPROCESSOR, size=16, crop_size=16),
    "unknown fields": json_with(
        PREPROCESSOR, feature_extractor_type="CLIPFeatureExtractor", x=None
    ),
}
CLIP_REFUSED: dict[str, tuple[Change, str]] = {
    "truncated": (truncated("model.safetensors"), r"cannot be loaded \(.+\)"),
    "LFS pointer": (written("model.safetensors", POINTER), "is a Git LFS pointer"),
    "pickle": (renamed("model.safetensors", "pytorch_model.bin"), "only safetensors"),
    "no config": (removed("config.json"), r"has no config\.json"),
    "no tokenizer": (
        lambda folder: [removed(name)(folder) for name in ("tokenizer.json", "merges.txt")],
        "has no tokenizer",
    ),
    "damaged words": (written("tokenizer.json", "{"), "the tokenizer in .* cannot be loaded"),
    "no preprocessor": (removed(PREPROCESSOR), r"has no preprocessor_config\.json"),
    "preprocessor is a list": (written(PREPROCESSOR, "[]"), "must hold a JSON object"),
    "longest edge": (json_with(PREPROCESSOR, size={"longest_edge": 16}), "size {'longest_"),
    "no size": (json_with(PREPROCESSOR, size={}), "size {} in its preprocessor file"),
    "null crop": (json_with(PREPROCESSOR, crop_size=None), "crop_size None"),
    "crop in words": (json_with(PREPROCESSOR, crop_size="16"), "crop_size '16'"),
    "two channels": (json_with(PREPROCESSOR, image_mean=[0.5, 0.5]), r"image_mean \[0\.5, 0\.5\]"),
    "null mean": (json_with(PREPROCESSOR, image_mean=None), "image_mean None"),
    "no deviation": (json_with(PREPROCESSOR, image_std=[0, 0, 0]), r"image_std \[0, 0, 0\]"),
    "odd filter": (json_with(PREPROCESSOR, resample=1), "resizes with filter 1"),
    "another size": (json_with(PREPROCESSOR, crop_size=24), "24×24 pixels .* reads 16×16"),
    "another model": (json_with("config.json", model_type="siglip"), "holds a 'siglip' model"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLIP_LOADS)
def test_clip_loads(clip: Path, tmp_path: Path, case: str) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    CLIP_LOADS[case](copy)
    images = torch.rand(2, 3, 20, 20)
    ours, expected = (ClipEncoder.load(str(path)) for path in (copy, clip))
    assert torch.equal(ours.images(images), expected.images(images))
    assert torch.equal(ours.texts(["a dog"]), expected.texts(["a dog"]))


@pytest.mark.parametrize("case", CLIP_REFUSED)
def test_clip_refused(clip: Path, tmp_path: Path, case: str) -> None:
    change, says = CLIP_REFUSED[case]
    copy = Path(shutil.copytree(clip, tmp_path / "copy"))
    change(copy)
    with pytest.raises(UserError, match=says) as refused:
        ClipEncoder.load(str(copy)).texts(["a dog"])
    assert str(copy) in str(refused.value)


def test_a_hub_model_with_a_variant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, use_safetensors: bool, variant: str | None) -> str:
        asked.append(variant)
        if variant != "fp16":
            raise OSError("Could not find the necessary `safetensors` weights")
        return "/fetched"

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    assert resolve("owner/name") == Path("/fetched")
    assert asked == [None, "fp16"]


def test_a_hub_model_without_network_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **_options: object) -> str:
        asked.append(name)
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    with pytest.raises(UserError, match=r"'owner/name' .*could not be fetched.*no connection"):
        resolve("owner/name")
    assert asked == ["owner/name"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache, empty, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str, folder: Path) -> Path:
    """The model of that name in the cache."""
    model = hub / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(folder, model / "snapshots" / "abc"))


def test_offline_the_cache_is_used(hub: Path, folder: Path) -> None:
    snapshot = cached(hub, "owner/name", folder)
    assert resolve("owner/name") == snapshot
    for file in snapshot.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert resolve("owner/name") == snapshot
    with pytest.raises(UserError, match=r"not in the cache .*hub, and HF_HUB_OFFLINE is set") as no:
        resolve("owner/other")
    assert len(str(no.value)) < 400


def test_a_few_step_model_of_the_hub_is_known_by_its_name(hub: Path, folder: Path) -> None:
    snapshot = cached(hub, "owner/sd-lcm-dreams", folder)
    with pytest.raises(UserError, match="is called models--owner--sd-lcm-dreams, with lcm"):
        StableDiffusion.load(snapshot, CPU)
    assert StableDiffusion.load(cached(hub, "owner/turbocharged", folder), CPU)
