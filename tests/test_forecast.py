"""What a training and a drawing will take, counted on the meta device."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import tiny_clip
from diffusers.models.attention_processor import AttnProcessor2_0
from models import tiny_pipeline
from rich.filesize import decimal
from studies import random_study
from synthetic import REWARD_FILE

from sayso.aligners import load_aligner
from sayso.base.cards import GIB, parse_card
from sayso.base.errors import UserError
from sayso.base.plugins import load_plugin
from sayso.base.types import Sampler, Size
from sayso.data.clip import ClipEncoder
from sayso.families import Policy
from sayso.families._loading import family
from sayso.families._precision import stored_bytes
from sayso.families._trace import _Counter, trace_step
from sayso.families.stable_diffusion import StableDiffusion
from sayso.stages import _reward_footprint
from sayso.stages._footprint import (
    RUNTIME,
    Footprint,
    Way,
    _encoders,
    drawing,
    shapes_of,
    training,
)
from sayso.stages._reward_footprint import RewardFootprint
from sayso.stages._savings import fitting
from sayso.stages.align import AlignConfig
from sayso.stages.align import plan as align_plan
from sayso.stages.generate import GenerateConfig, plan
from sayso.study.study import Study

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = Size(32, 48)
GROWTH = 1000
DRAW: dict[str, Any] = {"pretraining_draw": "reward", "pretraining_weight": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("forecast") / "model")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_trace_counts_what_a_real_step_allocates(
    folder: Path, checkpointing: bool, rank: int, autocast: torch.dtype | None
) -> None:
    """Storages that live at once, in a step that is computed and in one that is not."""

    def made(device: torch.device) -> Any:
        policy = StableDiffusion.load(folder, device, parts=("network",))
        if device == CPU:
            policy.network.set_attn_processor(AttnProcessor2_0())
        if rank:
            policy.add_lora(rank, 0)
        if checkpointing:
            policy.network.enable_gradient_checkpointing()
        policy.network.train()
        return policy

    real, shape = made(CPU), made(CPU).latent_shape(SIZE)
    noisy, states = torch.randn(2, *shape), torch.randn(2, 40, 32)
    computing = torch.autocast("cpu", autocast, enabled=autocast is not None)
    known = [*real.network.parameters(), *real.network.buffers()]
    with _Counter(known) as counter, computing:
        error = real.predict(noisy, torch.rand(2), {"states": states}).float() - noisy
        torch.autograd.backward(error.square().mean())
    traced = trace_step(
        made(META), 2, shape, {"states": (40, 32)}, autocast, cuda=False, training=True
    )
    assert traced.left == sum(4 * p.numel() for p in real.trainable().values())
    assert traced.peak == pytest.approx(counter.peak, rel=0.05)


def test_a_gpu_computes_norms_in_fp32(folder: Path) -> None:
    peaks = [
        trace_step(
            StableDiffusion.load(folder, META), 2, (4, 16, 16), {"states": (40, 32)},
            torch.bfloat16, cuda=cuda, training=True,
        ).peak
        for cuda in (False, True)
    ]  # fmt: skip
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("name", ["qwen_image", "z_image"])
def test_a_trace_of_what_looks_into_its_masks_counts_right(tmp_path: Path, name: str) -> None:
    """Networks with texts of different lengths and tables of sines of their own."""
    kind = load_plugin("family", name, Policy)
    path = kind.tiny(tmp_path / name)
    real: Any = kind.load(path, CPU)
    cond = real.encode_prompts(["a dog", "a cat"])
    shape = real.latent_shape(SIZE)
    noisy = torch.randn(2, *shape)
    sines = [v for m in real.network.modules() for v in vars(m).values() if torch.is_tensor(v)]
    with _Counter([*real.network.parameters(), *real.network.buffers(), *sines]) as counter:
        error = real.predict(noisy, torch.rand(2), cond).float() - noisy
        torch.autograd.backward(error.square().mean())
    shapes = {key: tuple(value.shape[1:]) for key, value in cond.items()}
    traced = trace_step(kind.load(path, META), 2, shape, shapes, None, cuda=False, training=True)
    assert traced.peak == pytest.approx(counter.peak, rel=0.05)
    assert traced.flops == pytest.approx(counter.flops, rel=0.01)


@pytest.mark.parametrize(
    "name", ["stable_diffusion", "sdxl", "sd3", "flux", "qwen_image", "z_image"]
)
def test_families_are_traced(tmp_path: Path, name: str) -> None:
    """Training and drawing of its tiny model: adapters, checkpointing, a base in 4 bits."""
    kind = load_plugin("family", name, Policy)
    path = kind.tiny(tmp_path / name)

    def blueprint() -> Any:
        return family(path).load(path, META)

    shapes = shapes_of(blueprint(), "a dog")
    real = kind.load(path, CPU).encode_prompts(["a dog"])
    assert shapes == {key: tuple(value.shape[1:]) for key, value in real.items()}
    config = AlignConfig(batch_size=4, micro_batch_size=2, gradient_checkpointing=True, lora_rank=2)
    way = Way(config, 2, "nf4", torch.bfloat16, cuda=True, processes=1, encoding=False)
    needs = training(blueprint, way, load_aligner("sft")(), SIZE, shapes)
    adapters = needs.parts["gradients"]
    assert needs.parts["optimiser"] == 2 * adapters == 2 * needs.average
    weights = stored_bytes(blueprint().network, "nf4")
    assert needs.parts["weights"] == weights + adapters
    drawn = drawing(
        blueprint, Sampler(2, 3.0, image_size=SIZE), 2, "fp32", None, cuda=True, passes=2
    )
    assert drawn.parts["weights"] > weights
    assert drawn.flops > 0


def test_what_training_takes_by_hand(folder: Path) -> None:
    def blueprint() -> Any:
        return StableDiffusion.load(folder, META)

    def parts(config: AlignConfig, aligner: str = "sft", **more: Any) -> dict[str, int]:
        options = {"cuda": True, "processes": 1, "encoding": False} | more
        way = Way(config, config.lora_rank, config.base_precision, None, **options)
        shapes = {"states": (40, 32)}
        return training(blueprint, way, load_aligner(aligner)(), SIZE, shapes).parts

    n = sum(p.numel() for p in blueprint().network.parameters())
    text = sum(p.numel() for p in blueprint().text.parameters())
    config = AlignConfig(batch_size=4)
    whole = parts(config, encoding=True)
    assert [whole[k] for k in ("weights", "gradients", "optimiser", "EMA")] == [
        4 * n, 4 * n, 8 * n, 4 * n
    ]  # fmt: skip
    assert whole["text encoders"] == 4 * text
    saving = dataclasses.replace(config, gradient_checkpointing=True)
    assert "EMA" not in parts(dataclasses.replace(config, ema_on_cpu=True))
    assert parts(dataclasses.replace(config, kl_weight=1.0))["reference"] == 4 * n
    online = parts(config, "grpo")
    assert online["autoencoder"] > 0
    through = [parts(c, "direct_align")["decoding with a gradient"] for c in (config, saving)]
    assert 0 < through[1] < through[0]
    assert "decoding with a gradient" not in online
    lora = dataclasses.replace(config, lora_rank=2, base_precision="bf16")
    adapters = parts(lora)["gradients"]
    assert parts(lora)["weights"] == 2 * n + adapters
    # no second copy of the base: without its adapters it is the reference
    assert "reference" not in parts(dataclasses.replace(lora, kl_weight=1.0))
    two = parts(config, processes=2)
    assert two["exchange of gradients"] == 4 * n
    sharded = parts(config, processes=2, sharded=True)
    assert sharded["optimiser"] == 4 * n
    assert "exchange of gradients" not in sharded
    small = parts(dataclasses.replace(config, micro_batch_size=1))
    assert small["activations"] < whole["activations"]


@pytest.mark.parametrize("images", [1, 3])
def test_a_gradient_through_a_rewards_clip_is_traced(tmp_path: Path, images: int) -> None:
    clip = tiny_clip(tmp_path / "clip")
    real = ClipEncoder.load(str(clip))
    with _Counter([*real.model.parameters(), *real.model.buffers()]) as counter:
        pixels = torch.rand(images, 3, 16, 16, requires_grad=True)
        torch.autograd.backward(real._embed_pixels(pixels).sum())
    traced = RewardFootprint("r", 0, clip).backward(images)
    assert traced == pytest.approx(counter.peak, rel=0.1)
    assert RewardFootprint("r", 0, clip).backward(0) == 0


def test_a_reward_is_counted_while_it_is_there(folder: Path, tmp_path: Path) -> None:
    def blueprint() -> Any:
        return StableDiffusion.load(folder, META)

    def needs(aligner: str, reward: RewardFootprint | None, draw: Any = "uniform") -> Footprint:
        config = AlignConfig(batch_size=4, pretraining_draw=draw, pretraining_weight=1.0)
        way = Way(config, 0, "fp32", None, cuda=True, processes=1, encoding=False)
        shapes = {"states": (40, 32)}
        return training(blueprint, way, load_aligner(aligner)(), SIZE, shapes, reward)

    large = RewardFootprint("runs/fit-mine", 10**9, tiny_clip(tmp_path / "clip"))
    assert needs("grpo", large).parts["reward runs/fit-mine"] == 10**9
    through = needs("direct_align", large).parts["reward runs/fit-mine"]
    # one of the decoder's portions
    assert through == 10**9 + large.backward(4)
    # of training that begins when samples are scored, and of scoring pre-training images
    offline = needs("rwr", large)
    assert "reward runs/fit-mine" not in offline.parts
    assert offline.before == 10**9 + RUNTIME["cuda"]
    encoders = [sum(p.numel() for p in part.parameters()) for part in _encoders(blueprint())]
    assert needs("sft", large, "reward").before == offline.before + 4 * sum(encoders)
    assert needs("sft", None).before < 10**9 + RUNTIME["cuda"]


def test_what_is_not_known_of_a_reward_is_said(tmp_path: Path) -> None:
    study, own = random_study(tmp_path), tmp_path / "mine.py"
    own.write_text(REWARD_FILE)

    def planned(**options: Any) -> dict[str, object]:
        config = AlignConfig(forecast_for="24GB", **options)
        return align_plan(Study.open(study.path), config)

    shown = planned(aligner="grpo", reward="clip_score")
    clip = ClipEncoder.load("tinyworld").model
    weights = sum(p.numel() for p in clip.parameters()) * 4
    assert shown["memory, reward clip_score"] == decimal(weights)
    before = planned(aligner="sft", reward="clip_score", **DRAW)
    assert before["memory, reward clip_score"] == f"{decimal(weights)}, before training"
    assert not [k for k in planned(aligner="sft") if "reward" in k]
    said = planned(aligner="grpo", reward=str(own))
    assert said[f"memory, reward {own}"] == "what it loads is not counted"
    missing = planned(aligner="grpo")
    assert "not counted: " in str(missing["memory, reward runs/fit-clip_head"])
    info = study.path / "study.json"
    info.write_text(info.read_text().replace('"clip_model": "tinyworld"', '"clip_model": "a/b"'))
    elsewhere = planned(aligner="grpo", reward="clip_score")
    said = "not counted: CLIP a/b is not on this machine"
    assert elsewhere["memory, reward clip_score"] == said


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("clip_scoer", "unknown reward 'clip_scoer': did you mean 'clip_score'"),
        ("runs/fit-clip_haed", "unknown reward 'fit-clip_haed': did you mean 'clip_head'"),
        ("clip_head", "reward 'clip_head' must be trained first"),
        ("pickscore", "reward 'pickscore' must be added to the study first"),
        ("./none.py", "none.py does not exist"),
    ],
)
def test_a_forecast_refuses_what_can_be_no_reward(tmp_path: Path, reward: str, says: str) -> None:
    study = random_study(tmp_path)
    with pytest.raises(UserError, match=says):
        align_plan(Study.open(study.path), AlignConfig(aligner="grpo", reward=reward))
    with pytest.raises(UserError, match=says):
        plan(study, GenerateConfig(per_prompt=1, best_of=4, reward=reward))


def test_a_reward_that_selects_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = random_study(tmp_path)

    def planned(device: str, **options: Any) -> dict[str, object]:
        wanted = GenerateConfig(per_prompt=1, forecast_for=device, **options)
        return plan(study, wanted)

    best = {"best_of": 4, "reward": "clip_score"}
    weights = sum(p.numel() for p in ClipEncoder.load("tinyworld").model.parameters()) * 4
    assert not [k for k in planned("h100") if "reward" in k]
    card = planned("h100", **best)["memory, reward clip_score"]
    assert card == f"{decimal(weights)}, after the images are generated"
    without, here = planned(""), planned("", **best)
    assert here["memory, reward clip_score"] == decimal(weights)
    taken = [drawn["memory, in all"].split(" of ")[0] for drawn in (without, here)]
    assert taken[0] != taken[1]
    missing = planned("h100", best_of=4, reward="runs/fit-clip_head")
    assert "not counted: " in str(missing["memory, reward runs/fit-clip_head"])
    large = RewardFootprint("clip_score", 30 * 10**9)
    monkeypatch.setattr(_reward_footprint, "reward_footprint", lambda *_: large)
    says = r"^reward clip_score needs 30\.0 GB of memory, and rtx4090 .* choose another --reward$"
    with pytest.raises(UserError, match=says):
        planned("rtx4090", **best)


def needed(config: AlignConfig) -> int:
    """Bytes by a formula in which every option has its price."""
    rows = config.micro_batch(1) * (10 if config.gradient_checkpointing else 40)
    if config.lora_rank:
        return rows + {"fp32": 1000, "bf16": 500, "int8": 300, "nf4": 150}[config.base_precision]
    moments = {"adamw": 2000, "adamw8bit": 500}[config.optimizer]
    return rows + 2000 + moments + (0 if config.ema_on_cpu else 1000)


@pytest.mark.parametrize(
    ("memory", "lora", "flags", "bytes_"),
    [
        (5700, 0, "--gradient-checkpointing", 5640),
        (5330, 0, "--gradient-checkpointing --micro-batch-size 32", 5320),
        (4500, 0, "--gradient-checkpointing --micro-batch-size 32 --ema-on-cpu", 4320),
        (2900, 0, "--gradient-checkpointing --micro-batch-size 32 --ema-on-cpu "
                  "--optimizer adamw8bit", 2820),
        (600, 0, "--lora-rank 16 --base-precision bf16 --gradient-checkpointing "
                 "--micro-batch-size 8", 580),
        (200, 16, "--base-precision nf4 --gradient-checkpointing --micro-batch-size 4", 190),
        (100, 16, None, 0),
    ],
)  # fmt: skip
def test_options_that_fit_are_named(memory: int, lora: int, flags: str | None, bytes_: int) -> None:
    saved = fitting(AlignConfig(lora_rank=lora), needed, memory, cuda=True)
    assert saved == (None if flags is None else (flags, bytes_))


def test_several_devices_share_first() -> None:
    def half(config: AlignConfig) -> int:
        return needed(config) // (2 if config.sharding == "full" else 1)

    saved = fitting(AlignConfig(), half, 4000, cuda=True, several=True)
    assert saved == ("--sharding full", 3780)


def test_devices_by_name_and_memory() -> None:
    assert parse_card("24GB").memory == 24 * 10**9
    assert parse_card("4x24GiB")[1:] == (24 * GIB, None, 4)
    assert parse_card("2xRTX4090").number == 2
    for wrong in ("", "24", "0x24GB", "gtx", "4x", "0GB"):
        with pytest.raises(UserError, match=r"is no device; give memory such as 24GB, a card"):
            parse_card(wrong)


def test_more_images_at_once_than_fit_are_refused(tmp_path: Path) -> None:
    study: Study = random_study(tmp_path)
    few = plan(study, GenerateConfig(batch_size=2, forecast_for="24GB"))
    assert str(few["memory, in all"]).endswith("of 24.0 GB (24GB)")
    says = r"drawing 12 images at once needs .*libraries 1\.0 GB.*, and 1\.3GB has .*batch-size \d$"
    with pytest.raises(UserError, match=says):
        plan(study, GenerateConfig(batch_size=64, image_size="256", forecast_for="1.3GB"))
