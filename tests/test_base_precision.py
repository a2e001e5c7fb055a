"""Images drawn with weights in fewer bits: less memory, and images of their own."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import TEXTS, random_study

from sayso.base.errors import UserError
from sayso.base.samplers import checked
from sayso.base.types import Sampler, Size, sample_id
from sayso.data.latents import load_latents
from sayso.families import _loading
from sayso.families._loading import load_policy
from sayso.stages import _drawer, _drawing_forecast
from sayso.stages._footprint import Footprint
from sayso.stages.evaluate import _refuse_samplers
from sayso.stages.generate import GenerateConfig, generate, plan
from sayso.study.info import StudyInfo
from sayso.study.study import Study

CPU = torch.device("cpu")
PLAIN = GenerateConfig(per_prompt=2, batch_size=2, mixed_precision="no")
BF16 = dataclasses.replace(PLAIN, base_precision="bf16", name="bf16")


def pictures(study: Study, precision: str) -> tuple[torch.Tensor, np.ndarray]:
    drawn = [s for s in study.samples() if s.sampler.base_precision == precision]
    drawn.sort(key=lambda s: (s.prompt_id, s.seed))
    return load_latents(study, drawn).float(), np.stack([np.asarray(study.image(s)) for s in drawn])


def test_only_another_precision_makes_another_id() -> None:
    """The number was computed before there were precisions."""
    sampler = Sampler(6, 3.0, 0.0, Size(64, 64), "sea")
    assert sample_id("p", "base", 7, sampler, "m") == "453f7a9871b8edcb"
    kinds = ("fp32", "bf16", "int8", "nf4")
    others = [dataclasses.replace(sampler, base_precision=kind) for kind in kinds]
    assert len({sample_id("p", "base", 7, other, "m") for other in others}) == 4
    object.__setattr__(sampler, "base_precision", "fp4")  # as a --config file may say
    with pytest.raises(UserError, match="base_precision fp4 is not allowed; give fp32 or bf16"):
        checked(sampler)


def test_images_of_another_precision_are_drawn_beside(tmp_path: Path) -> None:
    study = random_study(tmp_path)
    generate(study, PLAIN)
    with pytest.raises(UserError, match=r"other options .*base_precision 'fp32' → 'bf16'"):
        generate(study, dataclasses.replace(BF16, name=""))
    assert generate(study, BF16).result["drawn"] == 6
    assert generate(study, dataclasses.replace(PLAIN, name="again")).result["drawn"] == 0
    (whole, _), (half, _) = pictures(study, "fp32"), pictures(study, "bf16")
    assert whole.shape == half.shape == (6, 4, 16, 16)
    assert not torch.equal(whole, half)
    assert (half - whole).abs().mean() < 0.05 * whole.abs().mean()


def test_models_are_compared_at_one_precision(tmp_path: Path) -> None:
    study = random_study(tmp_path)
    generate(study, PLAIN)
    generate(study, BF16)
    whole, half = study.samples()[:6], study.samples()[6:]
    with pytest.raises(UserError, match=r"2 different samplers \(base_precision bf16 and fp32\);"):
        _refuse_samplers({"base": [*whole, *half]}, "test", {})
    says = r"with different samplers \(base_precision bf16 and fp32\); generate them with the same"
    with pytest.raises(UserError, match=says):
        _refuse_samplers({"base": whole, "runs/a": half}, "test", {})
    _refuse_samplers({"base": half, "runs/a": half}, "test", {})


def test_text_encoders_are_gone_when_the_network_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, held = list[Any](), list[Any]()
    real = _loading.load_policy

    def noted(*given: Any, **options: Any) -> Any:
        seen.append((given[3:], [policy.text for policy in held]))
        held.append(real(*given, **options))
        return held[-1]

    monkeypatch.setattr(_loading, "load_policy", noted)
    generate(random_study(tmp_path), BF16)
    assert seen == [(("bf16", ("text",)), []), (("bf16", ("network", "vae")), [None])]
    assert held[1].network is held[1].vae is None, "given back"


def test_many_prompts_are_drawn_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions held are limited; images are the same to the last bit."""
    found = []
    for name, most in (("one", 1 << 31), ("each", 1)):
        monkeypatch.setattr(_drawer, "MOST_HELD", most)
        study = random_study(tmp_path / name)
        turns = list[int]()
        real = _drawer.Drawer._turn

        def turn(self: Any, encoder: Any, of: Any = real, counted: Any = turns) -> Any:
            made = of(self, encoder)
            counted.append(len(made[1]))
            return made

        with monkeypatch.context() as patch:
            patch.setattr(_drawer.Drawer, "_turn", turn)
            generate(study, PLAIN)
        assert turns == ([3] if name == "one" else [1, 1, 1])
        found.append(pictures(study, "fp32"))
    assert torch.equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def finished_adapters(study: Study, name: str, model: str = "base") -> str:
    """A finished run of align with large random adapters."""
    policy: Any = load_policy(study, model, CPU)
    policy.add_lora(2, seed=len(name))
    generator = torch.Generator().manual_seed(len(name))
    for parameter in policy.trainable().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    run = study.run("align", name, {"model": model, "aligner": "rwr"})
    policy.save_weights(run.weights)
    run.finish({})
    return run.name


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Adapters, and adapters that were trained over those."""
    study = random_study(tmp_path_factory.mktemp("tuned"))
    finished_adapters(study, "second", finished_adapters(study, "one"))
    return study


def test_adapters_stay_beside_weights_in_fewer_bits(tuned: Study) -> None:
    """Added to them they would be rounded off; added to whole weights they predict the same."""
    generator = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([0.2, 0.7])
    cond = load_policy(tuned, "base", CPU).encode_prompts(TEXTS[:2])

    def predicted(policy: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy.predict(noisy, t, cond).float()

    names = ("base", "runs/align-one", "runs/align-second")
    base, one, both = (predicted(load_policy(tuned, name, CPU)) for name in names)
    policy: Any = load_policy(tuned, names[-1], CPU, "bf16", merge=False)
    weights = dict(policy.network.named_parameters())
    assert {p.dtype for n, p in weights.items() if ".lora_" in n} == {torch.float32}
    kept = load_policy(tuned, "base", CPU, "bf16").network.state_dict()
    for name, value in weights.items():
        if ".lora_" not in name:
            assert torch.equal(value, kept[name.replace(".base_layer", "")]), name
    beside = predicted(policy)
    assert (beside - both).abs().mean() < 0.1 * min(
        (beside - other).abs().mean() for other in (base, one)
    )
    # as it is without the option
    whole: Any = load_policy(tuned, names[-1], CPU, merge=False)
    assert not whole.has_adapters
    assert torch.equal(predicted(whole), both)


def test_a_whole_network_comes_before_the_adapters_on_it(tuned: Study) -> None:
    policy: Any = load_policy(tuned, "runs/align-one", CPU)
    run = tuned.run("align", "whole", {"model": "runs/align-one", "aligner": "rwr"})
    policy.save_weights(run.weights)
    run.finish({})
    name = finished_adapters(tuned, "above", run.name)
    beside: Any = load_policy(tuned, name, CPU, "bf16", merge=False)
    assert list(beside.network.peft_config) == ["lora_0"]
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    whole = policy.network.get_submodule(layer).weight.bfloat16()
    assert torch.equal(beside.network.get_submodule(layer).base_layer.weight, whole)


def test_images_of_adapters_are_drawn_with_them_beside(tuned: Study) -> None:
    config = dataclasses.replace(BF16, model="runs/align-second", name="second")
    assert generate(tuned, config).result["drawn"] == 6


def gigabytes(model: Any, sampler: Any, rows: int, precision: str, *_: Any, **__: Any) -> Footprint:
    """By a formula."""
    size = {"fp32": 40, "bf16": 20, "int8": 10, "nf4": 5}[precision]
    return Footprint({"weights": size * 10**9, "activations": rows * 10**9}, 1e12, 4 * 10**9)


@pytest.mark.parametrize(
    ("memory", "precision", "says"),
    [
        ("50GB", "fp32", r"50GB has 50\.0 GB, .*; give --batch-size 7$"),
        ("30GB", "fp32", r"give --base-precision bf16$"),
        ("24GB", "fp32", r"give --base-precision bf16 --batch-size 2$"),
        ("16GB", "fp32", r"give --base-precision int8 --batch-size 5$"),
        ("16GB", "int8", r"give --batch-size 5$"),
        ("8GB", "fp32", r"give --base-precision nf4 --batch-size 2$"),
        ("5GB", "fp32", r"use smaller images, or a larger device$"),
    ],
)
def test_the_precision_that_fits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, precision: Any, says: str
) -> None:
    monkeypatch.setattr(_drawing_forecast, "drawing", gigabytes)
    config = GenerateConfig(
        per_prompt=4, batch_size=8, forecast_for=memory, base_precision=precision
    )
    with pytest.raises(UserError, match=says):
        plan(random_study(tmp_path), config)


def test_text_encoders_that_do_not_fit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(*given: Any, **_: Any) -> Footprint:
        text = {"fp32": 30, "bf16": 15}[given[3]]
        return Footprint({"weights": 10**9}, 1e12, text * 10**9)

    monkeypatch.setattr(_drawing_forecast, "drawing", needed)
    says = r"^encoding prompts needs 30\.0 GB of memory, and 24GB .*; give --base-precision bf16$"
    with pytest.raises(UserError, match=says):
        plan(random_study(tmp_path), GenerateConfig(forecast_for="24GB"))


@pytest.mark.parametrize(
    ("name", "precision", "weights", "encoding"),
    [
        ("black-forest-labs/FLUX.1-dev", "nf4", 6.1, 10.8),
        ("Qwen/Qwen-Image", "nf4", 10.5, 17.6),
        ("Tongyi-MAI/Z-Image", "bf16", 12.3, 9.0),
    ],
)
def test_large_models_are_drawn_on_24_gb(
    tmp_path: Path, name: str, precision: Any, weights: float, encoding: float
) -> None:
    """At 512 × 512. Text encoders alone take most of it."""
    study = Study.create(
        tmp_path / "large", StudyInfo("s", 7, name, "tinyworld", "", Sampler(28, 3.5))
    )
    study.write_prompts(random_study(tmp_path).prompts("train"))
    config = GenerateConfig(batch_size=1, base_precision=precision, forecast_for="24GB")
    found = plan(study, config)
    assert str(found["memory, in all"]).endswith("of 24.0 GB (24GB)")
    assert found["memory, weights"] == f"{weights} GB"
    assert found["memory, encoding prompts"] == f"{encoding} GB, before the network is loaded"


def test_out_of_memory_names_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    study, one = random_study(tmp_path), dataclasses.replace(PLAIN, batch_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(_loading, "load_policy", full)
        says = "out of memory while base was loaded; give --base-precision nf4 and another --name"
        with pytest.raises(UserError, match=says):
            generate(study, one)
    assert not study.runs("generate"), "the model is loaded before a run is begun"
    monkeypatch.setattr("sayso.families.stable_diffusion.StableDiffusion.sample", full)
    with pytest.raises(UserError, match="at --batch-size 1; give --base-precision nf4 and"):
        generate(study, one)


def test_few_bits_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None)
    config, study = dataclasses.replace(PLAIN, base_precision="nf4"), random_study(tmp_path)
    says = r'generate --base-precision nf4 needs bitsandbytes; .* pip install "sayso\[quantised\]"'
    with pytest.raises(UserError, match=says):
        generate(study, config)
    # another machine may have it
    assert plan(study, dataclasses.replace(config, forecast_for="24GB"))
