"""Every accepted scheduler draws what diffusers' pipeline draws, and ignores no field."""

import dataclasses
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from models import tiny_pipeline
from studies import random_study

from sayso import tinyworld
from sayso.base.errors import UserError
from sayso.base.samplers import checked
from sayso.base.types import Sampler, Size
from sayso.families._schedulers import ACCEPTED
from sayso.families.stable_diffusion import StableDiffusion
from sayso.stages.generate import GenerateConfig, plan

# the pipeline says that the files are old; that is what is tested
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a red dog", "two cats"], [3, 14]
SAMPLER = Sampler(6, 3.0, 0.0, Size(32, 32), "blue")
OTHERS = {
    "num_inference_steps": 7,
    "guidance_scale": 2.0,
    "eta": 0.5,
    "image_size": Size(48, 32),
    "negative_prompt": "sea",
    "true_cfg_scale": 2.0,
}
OLD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""A scheduler file from before steps_offset and clip_sample were written into it."""


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd") / "p"
    return tiny_pipeline(folder, prediction_type=request.param)


def with_scheduler(model: Path, path: Path, name: str, **config: object) -> Path:
    copy = Path(shutil.copytree(model, path))
    index = json.loads((copy / "model_index.json").read_text())
    predicted = json.loads((copy / "scheduler/scheduler_config.json").read_text())
    index["scheduler"] = ["diffusers", name]
    row = {"_class_name": name, "prediction_type": predicted["prediction_type"], **OLD, **config}
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "scheduler/scheduler_config.json").write_text(json.dumps(row))
    return copy


def drawn(policy: StableDiffusion, sampler: Sampler) -> torch.Tensor:
    negative = policy.encode_prompts([sampler.negative_prompt])
    return policy.sample(policy.encode_prompts(TEXTS), negative, SEEDS, sampler)


def of_the_pipeline(folder: Path, sampler: Sampler) -> torch.Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        TEXTS, num_inference_steps=sampler.num_inference_steps, eta=sampler.eta,
        guidance_scale=sampler.guidance_scale, height=sampler.image_size.height,
        width=sampler.image_size.width, negative_prompt=[sampler.negative_prompt] * 2,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type="latent",
    ).images  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_draws_what_the_pipeline_draws(model: Path, tmp_path: Path, name: str) -> None:
    folder = with_scheduler(model, tmp_path / "copy", name)
    policy = StableDiffusion.load(folder, CPU)
    for eta in (0.0, 0.7) if name == "DDIMScheduler" else (0.0,):
        sampler = dataclasses.replace(SAMPLER, eta=eta)
        policy.check_sampler(sampler)
        theirs = of_the_pipeline(folder, sampler)
        assert theirs.std() > 0.1
        assert (drawn(policy, sampler) - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("config", [{"clip_sample": True, "steps_offset": 0}, {"steps_offset": 0}])
def test_old_files_are_corrected_as_the_pipeline_does(
    model: Path, tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    folder = with_scheduler(model, tmp_path / "copy", name, **config)
    kind = getattr(diffusers, name)
    as_written = kind.from_pretrained(folder, subfolder="scheduler")
    policy = StableDiffusion.load(folder, CPU)
    ours = drawn(policy, SAMPLER)
    assert (ours - of_the_pipeline(folder, SAMPLER)).abs().max() <= 1e-4
    policy.scheduler = as_written
    assert (drawn(policy, SAMPLER) - ours).abs().max() > 1e-2


@pytest.mark.parametrize("name", ACCEPTED)
def test_no_field_is_ignored(model: Path, tmp_path: Path, name: str) -> None:
    """Else one picture has two ids."""
    policy = StableDiffusion.load(with_scheduler(model, tmp_path / "copy", name), CPU)
    before = drawn(policy, SAMPLER)
    # how the weights are kept is decided when they are loaded
    assert {*OTHERS, "base_precision"} == {field.name for field in dataclasses.fields(Sampler)}
    for field, value in OTHERS.items():
        changed = dataclasses.replace(SAMPLER, **{field: value})
        if field == "eta" and name != "DDIMScheduler":
            says = f"eta 0.5 would have no effect: the model's {name} has no eta"
            with pytest.raises(UserError, match=says):
                policy.check_sampler(changed)
            continue
        if field == "true_cfg_scale":
            with pytest.raises(UserError, match="true_cfg_scale 2 is for models with an embedded"):
                policy.check_sampler(changed)
            continue
        policy.check_sampler(changed)
        after = drawn(policy, changed)
        assert after.shape != before.shape or (after - before).abs().max() > 1e-3, field


def test_the_tiny_worlds_scheduler_has_no_eta() -> None:
    policy = StableDiffusion.load(tinyworld.paths().pipeline, CPU)
    policy.check_sampler(Sampler(4, 3.0, 0.0, Size(64, 64)))
    with pytest.raises(
        UserError, match=r"eta 0\.3 would .* DPMSolverMultistepScheduler has no eta"
    ):
        policy.check_sampler(Sampler(4, 3.0, 0.3, Size(64, 64)))


@pytest.mark.parametrize(("name", "steps"), [("PNDMScheduler", 2), ("DDIMScheduler", 1001)])
def test_steps_that_a_scheduler_cannot_do(
    model: Path, tmp_path: Path, name: str, steps: int
) -> None:
    policy = StableDiffusion.load(with_scheduler(model, tmp_path / "copy", name), CPU)
    with pytest.raises(UserError, match=f"model's {name} cannot sample in {steps} steps"):
        policy.check_sampler(dataclasses.replace(SAMPLER, num_inference_steps=steps))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guidance_scale": 0.5}, r"guidance_scale 0\.5 is not allowed; give 1 \(no guidance\)"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale inf"),
        ({"eta": -0.1}, r"eta -0\.1 is not allowed; give from 0 to 1"),
        ({"eta": float("nan")}, "eta nan"),
        ({"num_inference_steps": 0}, "num_inference_steps 0"),
        ({"image_size": Size(64, 33)}, "image_size 64x33 is not allowed; give width and height"),
        (
            {"guidance_scale": 1.0},
            "negative_prompt 'blue' would have no effect, because guidance_scale 1",
        ),
    ],
)
def test_fields_out_of_range_or_without_effect(changes: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        checked(dataclasses.replace(SAMPLER, **changes))


def test_one_picture_is_written_one_way() -> None:
    odd = checked(Sampler(6, 3.0, -0.0, Size(32, 32), "  a   blue\tsea "))
    assert json.dumps(dataclasses.asdict(odd)) == json.dumps(
        dataclasses.asdict(Sampler(6, 3.0, 0.0, Size(32, 32), "a blue sea"))
    )


@pytest.mark.parametrize(
    ("name", "steps"), [("HeunDiscreteScheduler", 11), ("PNDMScheduler", 7), ("DDIMScheduler", 6)]
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_plan_counts_network_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, steps: int, guidance: float
) -> None:
    study = random_study(tmp_path)
    # Stable Diffusion's own PNDM leaves out the Runge-Kutta steps
    skip = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    folder = with_scheduler(tmp_path / "model", tmp_path / "other", name, **skip)
    study = study.with_models(base_model=str(folder))
    policy, asked = StableDiffusion.load(folder, CPU), []
    forward = policy.network.forward

    def counted(noisy: torch.Tensor, *args: object, **options: object) -> object:
        asked.append(len(noisy))
        return forward(noisy, *args, **options)

    monkeypatch.setattr(policy.network, "forward", counted)
    sampler = dataclasses.replace(SAMPLER, guidance_scale=guidance, negative_prompt="")
    drawn(policy, sampler)
    config = GenerateConfig(num_inference_steps=6, guidance_scale=guidance, prompts="seen")
    planned = plan(study, config)["network evaluations per image"]
    assert planned == sum(asked) / len(SEEDS) == steps * (2 if guidance > 1 else 1)
