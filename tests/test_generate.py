"""Stage generate: the plan, resuming, best of n, refusals."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.filesize import decimal
from safetensors.torch import load_file, save
from studies import SAMPLER, TEXTS, UNET, finished_align, finished_fit, random_study

from sayso.base.errors import UserError
from sayso.base.types import Prompt
from sayso.data.latents import load_latents
from sayso.prompts.grammar import images_per_prompt
from sayso.rewards import Reward
from sayso.stages import _drawing
from sayso.stages import generate as stage
from sayso.stages._best_of import best_of
from sayso.stages.generate import GenerateConfig, generate, plan
from sayso.study.identity import canonical_model
from sayso.study.study import Study


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
    first = stage._drawings(study, GenerateConfig(per_prompt=3), "a")
    second = stage._drawings(study, GenerateConfig(per_prompt=3, model="runs/align-x"), "b")
    assert [s.seed for _, s in first] == [s.seed for _, s in second]
    assert not {s.id for _, s in first} & {s.id for _, s in second}


def test_interrupted_run_resumes_to_the_same_files(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_study(tmp_path / "other")
    config = GenerateConfig(per_prompt=4, batch_size=5)
    generate(other, config)

    keep, kept = _drawing._keep, []

    def failing(*args: object) -> None:
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(keep(*args))

    monkeypatch.setattr(_drawing, "_keep", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(study, config)
    assert len(study.samples()) == 5
    assert plan(study, config)["images left to generate"] == 7
    monkeypatch.setattr(_drawing, "_keep", keep)
    assert generate(study, config).finished
    assert study.samples() == other.samples()
    ours, theirs = latents_by_id(study), latents_by_id(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for sample in study.samples():
        path = sample.path
        assert (study.path / path).read_bytes() == (other.path / path).read_bytes()


def test_a_batch_whose_records_are_lost_in_part_becomes_the_same_bits(study: Study) -> None:
    config = GenerateConfig(per_prompt=4, batch_size=6, mixed_precision="no")
    generate(study, config)
    lines = (study.path / "samples.jsonl").read_text().splitlines()
    whole, before = bits(study), {s.id: s for s in study.samples()}
    for left in (lines[:7], lines[1:], lines[:2] + lines[9:]):
        shutil.rmtree(study.path / "runs")
        (study.path / "samples.jsonl").write_text("\n".join([*left, ""]))
        generate(study, config)
        assert (study.path / "samples.jsonl").read_text().splitlines()[: len(left)] == left
        assert {s.id: s for s in study.samples()} == before
        assert bits(study) == whole


def test_latents_that_are_there_are_not_drawn_over(study: Study) -> None:
    """They may be of another machine, and then differ in the last bits."""
    config = GenerateConfig(per_prompt=2, batch_size=6, mixed_precision="no")
    generate(study, config)
    first, *others = study.samples()
    theirs = latents_by_id(study)
    theirs[first.id] = theirs[first.id] + 1e-2
    (study.path / first.latents).write_bytes(save(theirs))
    shutil.rmtree(study.path / "runs")
    lines = (study.path / "samples.jsonl").read_text().splitlines()
    (study.path / "samples.jsonl").write_text("\n".join([*lines[:3], ""]))
    generate(study, config)
    now = latents_by_id(study)
    assert now.keys() == theirs.keys()
    assert all(torch.equal(now[s.id], theirs[s.id]) for s in (first, *others))


def bits(study: Study) -> dict[str, bytes]:
    """Every picture and shard."""
    files = [p for kind in ("images", "latents") for p in (study.path / kind).rglob("*.*")]
    return {str(p.relative_to(study.path)): p.read_bytes() for p in files}


def test_more_images_keep_the_first_ones(study: Study) -> None:
    generate(study, GenerateConfig(per_prompt=1))
    before = study.samples()
    run = generate(study, GenerateConfig(per_prompt=3, name="more"))
    assert run.result["drawn"] == 6
    assert study.samples()[:3] == before
    assert len({s.id for s in study.samples()}) == 9


def test_the_plan_says_how_many_and_what_they_take(study: Study) -> None:
    config = GenerateConfig(per_prompt=3, batch_size=4)
    asked = plan(study, config)
    assert (asked["images"], asked["images left to generate"]) == (9, 9)
    assert asked["batches, shared among processes"] == 3
    generate(study, config)
    stored = sum(latents.nbytes for latents in latents_by_id(study).values())
    assert asked["disk, latents"] == decimal(stored)
    assert asked["disk, images at most"] == decimal(9 * 32 * 32 * 3)
    assert plan(study, config)["disk, latents"] == "0 bytes"


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
    monkeypatch.setattr("sayso.rewards.load_reward", lambda *_: ByRedness())
    monkeypatch.setattr("sayso.rewards.reward_folders", lambda *_: [])
    finished_fit(study, "x", save({"weight": torch.zeros(1)}))
    config = GenerateConfig(per_prompt=2, best_of=6, reward="fit-x", batch_size=7)
    assert plan(study, config)["images"] == 18
    run = generate(study, config)
    assert run.name == "runs/generate-base@best-2-of-6-by-fit-x-train"
    assert run.result["n"] == 6
    base, best = study.samples("base"), study.samples("base@best-2-of-6-by-fit-x")
    assert (len(base), len(best)) == (18, 6)
    for prompt in ("p0", "p1", "p2"):
        own = [s for s in base if s.prompt_id == prompt]
        scores = ByRedness().score_samples(study, own, [prompt] * 6).tolist()
        top = sorted(range(6), key=lambda i: -scores[i])[:2]
        chosen = [s for s in best if s.prompt_id == prompt]
        assert [s.path for s in chosen] == [own[i].path for i in top]
        assert [s.latents for s in chosen] == [own[i].latents for i in top]
    assert not {s.id for s in base} & {s.id for s in best}


def test_the_best_of_every_n_scores() -> None:
    """The highest first; of equal ones the earlier."""
    scores = [0.1, 0.9, 0.9, 0.2, 0.5, 0.5, 0.5, 0.7]
    assert best_of(scores, keep=1, n=4) == [1, 7]
    assert best_of(scores, keep=2, n=4) == [1, 2, 7, 4]
    assert best_of(scores, keep=2, n=2) == [1, 0, 2, 3, 4, 5, 7, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_prompt": -1}, "per_prompt -1 is too small"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"per_prompt": 0, "best_of": 4, "reward": "x"}, "per_prompt 0 is too small"),
        ({"best_of": 2, "reward": "x"}, "best_of 2 is less than per_prompt 4"),
        ({"best_of": 8}, "best_of needs a reward"),
        ({"prompts": "unseen"}, "no 'unseen' prompts"),
        ({"model": "runs/align-x"}, "unknown run"),
        ({"model": "base@best-of-4"}, "is a selection"),
        ({"image_size": "33"}, "image_size 33x33 is not allowed; give width and height"),
        ({"num_inference_steps": -1}, "num_inference_steps -1 is not allowed"),
        ({"guidance_scale": 0.5}, r"guidance_scale 0\.5 is not allowed; give 1 \(no guidance\)"),
        ({"eta": 0.5}, r"eta 0\.5 would have no effect: the model's DPMSolverMultistepScheduler"),
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


# names that stand for something else by now


def test_a_run_made_anew_is_drawn_anew(study: Study) -> None:
    finished_align(study, "x", unet_of(study, 1.0))
    config = GenerateConfig(model="align-x", per_prompt=1)
    assert generate(study, config).name == "runs/generate-align-x-train"
    before = study.samples("runs/align-x")
    shutil.rmtree(study.path / "runs" / "align-x")
    finished_align(study, "x", unet_of(study, 2.0))
    assert study.samples("runs/align-x") == []
    assert plan(study, config)["images left to generate"] == 3
    run = generate(study, config)
    after = study.samples("runs/align-x")
    assert run.name.startswith("runs/generate-align-x-train-")
    assert run.result["drawn"] == len(after) == 3
    assert not {s.id for s in before} & {s.id for s in after}
    assert study.image(before[0]).tobytes() != study.image(after[0]).tobytes()
    assert study.samples() == [*before, *after]
    (study.path / "runs" / "align-x" / "result.json").unlink()
    with pytest.raises(UserError, match="not a finished run of align"):
        study.samples("runs/align-x")


def test_the_same_weights_made_anew_draw_nothing(study: Study) -> None:
    finished_align(study, "x", unet_of(study, 1.0))
    generate(study, GenerateConfig(model="runs/align-x", per_prompt=1))
    shutil.rmtree(study.path / "runs" / "align-x")
    finished_align(study, "x", unet_of(study, 1.0))
    assert (
        plan(study, GenerateConfig(model="runs/align-x", per_prompt=1))["images left to generate"]
        == 0
    )


def test_other_weights_of_the_base_in_place_draw_anew(study: Study) -> None:
    generate(study, GenerateConfig(per_prompt=1))
    before = study.samples("base")
    base = Path(study.info.base_model)
    (base / UNET).write_bytes(unet_of(study, 2.0))
    generate(study, GenerateConfig(per_prompt=1))
    after = study.samples("base")
    assert len(before) == len(after) == 3
    assert not {s.id for s in before} & {s.id for s in after}


def test_a_named_run_of_an_earlier_model_is_not_gone_on_with(study: Study) -> None:
    generate(study, GenerateConfig(per_prompt=1, name="mine"))
    (Path(study.info.base_model) / UNET).write_bytes(unet_of(study, 2.0))
    with pytest.raises(UserError, match="generate-mine belongs to an earlier model"):
        generate(study, GenerateConfig(per_prompt=1, name="mine"))


def test_selections_by_two_rewards_or_of_two_sizes_are_two_models(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.rewards.load_reward", lambda *_: ByRedness())
    monkeypatch.setattr("sayso.rewards.reward_folders", lambda *_: [])
    finished_fit(study, "x", b"one")
    finished_fit(study, "y", b"two")
    config = GenerateConfig(per_prompt=1, best_of=3, reward="runs/fit-x")
    generate(study, config)
    assert canonical_model(study, "base@best-of-3") == "base@best-1-of-3-by-fit-x"
    generate(study, dataclasses.replace(config, reward="runs/fit-y"))
    generate(study, dataclasses.replace(config, per_prompt=2))
    names = {s.model for s in study.samples()} - {"base"}
    assert names == {
        "base@best-1-of-3-by-fit-x", "base@best-1-of-3-by-fit-y", "base@best-2-of-3-by-fit-x"
    }  # fmt: skip
    assert [len(study.samples(name)) for name in sorted(names)] == [3, 3, 6]
    with pytest.raises(UserError, match="may mean base@best-1-of-3-by-fit-x or base@best-1"):
        canonical_model(study, "base@best-of-3")
    shutil.rmtree(study.path / "runs" / "fit-x")
    finished_fit(study, "x", b"three")
    assert study.samples("base@best-1-of-3-by-fit-x") == []
    generate(study, config)
    assert len(study.samples("base@best-1-of-3-by-fit-x")) == 3


def unet_of(study: Study, scale: float) -> bytes:
    """The weights of the base's network, its last bias moved by `scale`."""
    weights = load_file(Path(study.info.base_model) / UNET)
    weights["conv_out.bias"] = weights["conv_out.bias"] + scale
    return save(weights)


def test_a_run_begun_with_another_form_of_a_name_is_the_same_run(study: Study) -> None:
    finished_align(study, "x", unet_of(study, 1.0))
    run = generate(study, GenerateConfig(model="./runs/align-x", per_prompt=1))
    assert run.config["model"] == "runs/align-x"
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"runs/align-x"', '"align-x"'))
    assert generate(study, GenerateConfig(model="align-x", per_prompt=1)).name == run.name


def test_a_selection_of_before_its_name_said_how_is_not_made_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.rewards.load_reward", lambda *_: ByRedness())
    folders = "sayso.rewards.reward_folders"
    monkeypatch.setattr(folders, lambda study, name: [study.find_run(name).weights])
    finished_fit(study, "x", b"one")
    config = GenerateConfig(per_prompt=1, best_of=3, reward="runs/fit-x")
    run = generate(study, config)
    old = run.path.with_name("generate-base@best-of-3-train")
    run.path.rename(old)
    env = {k: v for k, v in json.loads((old / "env.json").read_text()).items() if k != "identity"}
    (old / "env.json").write_text(json.dumps(env))
    path = study.path / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    earlier = {"model": "base@best-of-3", "model_identity": ""}
    rows = [row | earlier if "@" in row["model"] else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate(study, config).path == old
    assert {s.model for s in study.samples()} == {"base", "base@best-of-3"}
    assert canonical_model(study, "base@best-of-3") == "base@best-of-3"
    other = generate(study, dataclasses.replace(config, per_prompt=2))
    assert other.name == "runs/generate-base@best-2-of-3-by-fit-x-train"
