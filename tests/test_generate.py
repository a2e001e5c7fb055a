"""Stage generate: the plan, resuming, best of n, refusals."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from studies import SAMPLER, TEXTS, random_study

from sayso.errors import UserError
from sayso.prompts import images_per_prompt
from sayso.reward import Reward
from sayso.stages import generate as stage
from sayso.stages.generate import GenerateConfig, generate, plan
from sayso.study import Study
from sayso.training_data import load_latents
from sayso.types import Prompt


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return random_study(tmp_path)


def latents_by_id(study: Study) -> dict[str, torch.Tensor]:
    shards = {sample.latents for sample in study.samples()}
    return {k: v for shard in shards for k, v in load_file(study.path / shard).items()}


def test_images_are_the_pipelines(study: Study) -> None:
    run = generate(study, GenerateConfig(per_prompt=2, batch_size=4, mixed_precision="no"))
    samples = study.samples("base")
    assert run.name == "runs/generate-base-train"
    assert run.result["n"] == len(samples) == 6
    assert [s.prompt_id for s in samples] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert len({s.seed for s in samples}) == 6
    pipeline = StableDiffusionPipeline.from_pretrained(study.info.base_model)
    pipeline.set_progress_bar_config(disable=True)
    sample = samples[2]
    made = {
        kind: pipeline(
            TEXTS[1], num_inference_steps=2, guidance_scale=3.0, height=32, width=32,
            generator=torch.Generator().manual_seed(sample.seed), output_type=kind,
        ).images[0]
        for kind in ("latent", "np")
    }  # fmt: skip
    ours = load_latents(study, [sample])[0]
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.float(), made["latent"], rtol=1e-3, atol=1e-3)
    pixels = torch.tensor(list(study.image(sample).tobytes())).reshape(32, 32, 3)
    assert (pixels - torch.tensor(made["np"]) * 255).abs().max() <= 1.0


def test_seeds_are_the_same_for_every_model(study: Study) -> None:
    first = stage._drawings(study, GenerateConfig(per_prompt=3))
    second = stage._drawings(study, GenerateConfig(per_prompt=3, model="runs/align-x"))
    assert [s.seed for _, s in first] == [s.seed for _, s in second]
    assert not {s.id for _, s in first} & {s.id for _, s in second}


def test_interrupted_run_resumes_to_the_same_files(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_study(tmp_path / "other")
    config = GenerateConfig(per_prompt=4, batch_size=5)
    generate(other, config)

    keep, kept = stage._keep, []

    def failing(*args: object) -> None:
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(keep(*args))

    monkeypatch.setattr(stage, "_keep", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(study, config)
    assert len(study.samples()) == 5
    assert plan(study, config)["still to draw"] == 7
    monkeypatch.setattr(stage, "_keep", keep)
    assert generate(study, config).finished
    assert study.samples() == other.samples()
    ours, theirs = latents_by_id(study), latents_by_id(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for sample in study.samples():
        path = sample.path
        assert (study.path / path).read_bytes() == (other.path / path).read_bytes()


def test_more_images_keep_the_first_ones(study: Study) -> None:
    generate(study, GenerateConfig(per_prompt=1))
    before = study.samples()
    run = generate(study, GenerateConfig(per_prompt=3, name="more"))
    assert run.result["drawn"] == 6
    assert study.samples()[:3] == before
    assert len({s.id for s in study.samples()}) == 9


def test_finished_run_is_not_repeated_and_another_config_is_refused(study: Study) -> None:
    generate(study, GenerateConfig(per_prompt=1))
    generate(study, GenerateConfig(per_prompt=1))
    assert len(study.samples()) == 3
    with pytest.raises(UserError, match="per_prompt 1 → 2"):
        generate(study, GenerateConfig(per_prompt=2))


class ByRedness(Reward):
    """Stands for a learned reward."""

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images[:, 0].mean((1, 2))


def test_best_of_keeps_the_top_by_reward(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sayso.reward.load_reward", lambda *_: ByRedness())
    monkeypatch.setattr("sayso.reward.reward_folders", lambda *_: [])
    config = GenerateConfig(per_prompt=2, best_of=6, reward="runs/fit-x", batch_size=7)
    assert plan(study, config)["images"] == 18
    run = generate(study, config)
    assert run.name == "runs/generate-base@best-of-6-train"
    assert run.result["n"] == 6
    base, best = study.samples("base"), study.samples("base@best-of-6")
    assert (len(base), len(best)) == (18, 6)
    for prompt in ("p0", "p1", "p2"):
        own = [s for s in base if s.prompt_id == prompt]
        scores = ByRedness().score_samples(study, own, [prompt] * 6).tolist()
        top = sorted(range(6), key=lambda i: -scores[i])[:2]
        chosen = [s for s in best if s.prompt_id == prompt]
        assert [s.path for s in chosen] == [own[i].path for i in top]
        assert [s.latents for s in chosen] == [own[i].latents for i in top]
    assert not {s.id for s in base} & {s.id for s in best}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_prompt": -1}, "per_prompt -1 is too small"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"per_prompt": 0, "best_of": 4, "reward": "x"}, "per_prompt 0 is too small"),
        ({"best_of": 2, "reward": "x"}, "best_of 2 cannot leave per_prompt 4"),
        ({"best_of": 8}, "best_of needs a reward"),
        ({"prompts": "unseen"}, "no 'unseen' prompts"),
        ({"model": "runs/align-x"}, "unknown run"),
        ({"model": "base@best-of-4"}, "is a selection"),
        ({"image_size_px": 33}, "image_size_px 33 is not possible; give a multiple of 8"),
        ({"num_inference_steps": -1}, "num_inference_steps -1 is not possible"),
        ({"guidance_scale": 0.5}, r"guidance_scale 0\.5 is not possible; give 1 \(no guidance\)"),
        ({"eta": 0.5}, r"eta 0\.5 would change nothing: the model's DPMSolverMultistepScheduler"),
    ],
)
def test_refusals_leave_no_image(study: Study, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(study, dataclasses.replace(GenerateConfig(), **changes))
    assert study.samples() == []


def test_prompt_that_would_be_cut_is_named_before_anything_is_drawn(study: Study) -> None:
    study.write_prompts([*study.prompts(), Prompt("long", "z" * 60, "count", {}, "train")])
    with pytest.raises(UserError, match=f"'{'z' * 60}' has 60 tokens"):
        generate(study, GenerateConfig())
    assert study.samples() == []


def test_sampler_options_change_the_samplers_fields_only(study: Study) -> None:
    config = GenerateConfig(num_inference_steps=3, guidance_scale=1.0, eta=0.5)
    expected = dataclasses.replace(SAMPLER, num_inference_steps=3, guidance_scale=1.0, eta=0.5)
    assert config.sampler(study) == expected
    assert GenerateConfig().sampler(study) == SAMPLER


def test_per_prompt_zero_draws_the_sets_own_numbers(study: Study) -> None:
    study.run("prompts", "", {"set": "lee2023"})
    groups = ["count", "colour", "background"]
    study.write_prompts([Prompt(group, "a dog", group, {}, "train") for group in groups])
    expected = sum(images_per_prompt("lee2023", group) for group in groups)
    assert plan(study, GenerateConfig(per_prompt=0))["images"] == expected > 3
