"""Stage align: needs are checked first, the user's own aligner, LoRA, rounds, caches."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.filesize import decimal
from safetensors.torch import load_file
from studies import random_study, rated_study

from sayso.aligners import Aligner, load_aligner
from sayso.aligners.kto import KahnemanTversky
from sayso.aligners.rwr import RewardWeighted
from sayso.base.errors import UserError
from sayso.cli import commands as cli
from sayso.data.conditions import EncodedConditions, open_conditions
from sayso.data.pretraining_images import Damaged, Ranges
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.data.rows import in_memory
from sayso.data.shards import Shards
from sayso.families._loading import load_policy
from sayso.families.stable_diffusion import StableDiffusion
from sayso.rewards import Reward
from sayso.stages.align import AlignConfig, align, plan
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study
from sayso.testing import check_aligner
from sayso.tinyworld.pretraining_images import Scenes

QUICK = AlignConfig(max_steps=3, batch_size=8, pretraining_images=6, checkpoint_every=2)
LABELS = RewardWeighted(weight="label")

MINE = '''
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from sayso.aligners import Aligner, Batch, Work


@dataclass(frozen=True)
class Mine(Aligner):
    """Good images at weight 1, bad ones at a small weight, noise of the first half only."""

    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    bad_weight: float = 0.1
    """Weight of images that people called bad."""

    def batches(self, work: Work) -> Iterator[Batch]:
        label = work.data.label[: work.data.n_own]
        rated = work.data.own[label.isfinite()]
        for step in work.steps:
            generator = work.generator(step)
            rows = rated[torch.randint(len(rated), (work.batch_size,), generator=generator)]
            weight = torch.where(label[rows] > 0.5, 1.0, self.bad_weight)
            batch = work.denoising_batch(rows, generator, weight=weight)
            yield batch.plus(t=batch["t"] / 2)

    def loss(self, work: Work, batch: Batch):
        error = work.error(batch)
        return (batch["weight"] * error).mean(), {"error": error.mean()}
'''

PAIRS = '''
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional as F

from sayso.aligners import Aligner, Batch, Work, stratified


@dataclass(frozen=True)
class Hinge(Aligner):
    """The chosen image of a pair should be predicted better than the other, by a margin."""

    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})

    margin: float = 0.1
    """How much better, as a mean squared error."""

    @property
    def unit(self) -> int:
        return 2

    def batches(self, work: Work) -> Iterator[Batch]:
        for step in work.steps:
            generator = work.generator(step)
            pairs = stratified(work.pairs.even, work.batch_size // 2, generator)
            yield work.denoising_batch(work.pairs.rows[pairs].flatten(), generator, unit=2)

    def loss(self, work: Work, batch: Batch):
        chosen, rejected = work.error(batch).reshape(-1, 2).unbind(1)
        loss = F.relu(self.margin + chosen - rejected).mean()
        return loss, {"agrees": (chosen < rejected).float().mean()}
'''


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return rated_study(tmp_path_factory.mktemp("align"))


@pytest.fixture
def study(shared: Study, tmp_path: Path) -> Study:
    return Study.open(Path(shutil.copytree(shared.path, tmp_path / "study")))


def unet(study: Study, model: str) -> dict[str, torch.Tensor]:
    return load_policy(study, model, torch.device("cpu")).network.state_dict()


def moved(study: Study, model: str, start: str = "base") -> float:
    old, new = unet(study, start), unet(study, model)
    return max(float((old[name] - new[name]).abs().max()) for name in old)


def test_align_trains_the_unet_and_generate_uses_it(study: Study) -> None:
    run = align(study, QUICK, LABELS)
    assert run.name == "runs/align-rwr"
    assert run.result["steps"] == 3
    assert run.result["samples"] == 12
    assert run.result["good_images"] == 6
    assert run.result["pretraining_images"] == 6
    assert run.config["options"]["weight"] == "label"
    assert 0 < moved(study, run.name) < 0.01
    generate(study, GenerateConfig(model=run.name, per_prompt=1, prompts="seen"))
    assert study.samples(run.name)[0].seed == _seed_of_base(study)


def _seed_of_base(study: Study) -> int:
    generate(study, GenerateConfig(per_prompt=1, prompts="seen"))
    return next(s.seed for s in study.samples("base") if s.prompt_id == "q")


def test_finished_run_is_left_alone_and_another_config_is_refused(study: Study) -> None:
    run = align(study, QUICK, LABELS)
    before = (run.weights / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    align(study, QUICK, LABELS)
    # a run of a version whose word for a label was another
    config = json.loads((run.path / "config.json").read_text())
    config["options"]["weight"] = "mark"
    (run.path / "config.json").write_text(json.dumps(config))
    align(study, QUICK, LABELS)
    assert (run.weights / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="finished with --max-steps 3"):
        align(study, dataclasses.replace(QUICK, max_steps=4), LABELS)
    with pytest.raises(UserError, match="options"):
        align(study, QUICK, RewardWeighted(weight="label", prompt_dropout=0.2))


def test_lora_round_upon_full_round(study: Study) -> None:
    first = align(study, QUICK, LABELS)
    generate(study, GenerateConfig(model=first.name))
    pairs = zip(study.feedback.ratings(), study.samples(first.name), strict=True)
    labels = [dataclasses.replace(r, id=r.id + "2", sample_id=s.id) for r, s in pairs]
    study.feedback.add_ratings(labels)
    config = dataclasses.replace(QUICK, model=first.name, lora_rank=2, name="two")
    second = align(study, config, LABELS)
    assert second.result["trainable_weights"] < first.result["trainable_weights"] / 10
    assert [p.name for p in second.weights.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert moved(study, second.name, first.name) > 0


def test_own_aligner_in_a_file_trains_through_the_command_line(
    study: Study, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    assert len(MINE.strip().splitlines()) <= 40
    cli.run([
        "align", str(study.path), "--aligner", str(mine), "--bad-weight", "0.2",
        "--max-steps", "2", "--batch-size", "4",
    ])  # fmt: skip
    run = study.find_run("runs/align-mine")
    assert run.finished
    assert run.config["options"] == {"bad_weight": 0.2}
    assert moved(study, run.name) > 0


def test_own_aligner_of_pairs(study: Study, tmp_path: Path) -> None:
    mine = tmp_path / "hinge.py"
    mine.write_text(PAIRS)
    assert len(PAIRS.strip().splitlines()) <= 40
    command = ["align", str(study.path), "--aligner", str(mine), "--max-steps", "2"]
    cli.run([*command, "--batch-size", "4"])
    run = study.find_run("runs/align-hinge")
    assert run.inputs is not None
    assert len(run.inputs["pairs"]) == run.result["pairs"] > 0
    assert moved(study, run.name) > 0
    check_aligner(load_aligner(str(mine)))
    with pytest.raises(UserError, match=r"keeps 2 rows together, and batch_size 5 .* 4 or 6"):
        cli.run([*command, "--batch-size", "5", "--name", "odd"])


def test_dpo_trains_through_the_command_line(study: Study) -> None:
    cli.run([
        "align", str(study.path), "--aligner", "dpo", "--max-steps", "3", "--batch-size", "4",
        "--beta", "50", "--kl-weight", "0.1", "--norm-guard", "0.1", "--checkpoint-every", "2",
    ])  # fmt: skip
    run = study.find_run("runs/align-dpo")
    assert run.config["learning_rate"] == 2e-5
    assert run.config["pretraining_weight"] == 0
    first = run.history()[0]
    assert first["margin"] == 0
    assert first["kl"] == 0
    assert moved(study, run.name) > 0
    good = {s.id for i, s in enumerate(study.samples()) if i % 2 == 0}
    pairs = (run.inputs or {})["pairs"]
    assert all(chosen in good and rejected not in good for chosen, rejected, _ in pairs)


def test_preferences_are_needed_for_dpo(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DirectPreference needs preferences"):
        align(rated_study(tmp_path, good_every=1), dataclasses.replace(QUICK, aligner="dpo"))


def test_grpo_draws_and_trains_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bright(Reward):
        stops_at = 3

        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            assert set(prompts) <= {"a dog", "two cats", "red sea"}
            Bright.stops_at -= 1
            if Bright.stops_at == 0:
                raise KeyboardInterrupt
            return images.mean(dim=(1, 2, 3))

    monkeypatch.setattr("sayso.stages._training_data.load_reward", lambda *_: Bright())
    study = random_study(tmp_path)
    command = [
        "align", str(study.path), "--aligner", "grpo", "--reward", "clip_score", "--max-steps",
        "5", "--images", "8", "--group-size", "4", "--batch-size", "4", "--checkpoint-every", "1",
        "--steps-per-image", "1",
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        cli.run(command)
    assert study.find_run("runs/align-grpo").has_checkpoints
    cli.run(command)
    run = study.find_run("runs/align-grpo")
    assert [row["step"] for row in run.history()] == [1, 2, 3, 4, 5]
    assert not study.samples()
    assert (run.inputs or {})["images"] == []
    assert len((run.inputs or {})["prompts"]) == 3
    ratios = [row["ratio"] for row in run.history()]
    # each rollout is two updates: in the first the policy is still the one that drew
    assert ratios[::2] == pytest.approx([1, 1, 1], abs=1e-6)
    assert all(0 < row["reward"] < 1 for row in run.history())
    assert moved(study, run.name) > 0
    with pytest.raises(UserError, match=r"8 rows .* do not make whole batches of 5; use .* 4 or 8"):
        cli.run([*command, "--batch-size", "5", "--name", "odd"])
    with pytest.raises(UserError, match="of the 2 sampling steps, 1 have noise"):
        cli.run([*command, "--steps-per-image", "2", "--name", "many"])


def test_rewards_weigh_when_the_aligner_wants_them(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    class Fixed(Reward):
        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return torch.zeros(len(images))

    noted = "sayso.stages._scoring.load_reward"
    monkeypatch.setattr(noted, lambda *a: seen.append(a[1]) or Fixed())
    config = dataclasses.replace(QUICK, reward="clip_score", pretraining_weight=0.0)
    run = align(study, config, RewardWeighted())
    assert seen == ["clip_score"]
    assert moved(study, run.name) == 0


def test_nan_reward_stops_before_training(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Reward):
        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return torch.full((len(images),), float("nan"))

    monkeypatch.setattr("sayso.stages._scoring.load_reward", lambda *_: Broken())
    with pytest.raises(UserError, match="NaN or infinite"):
        align(study, dataclasses.replace(QUICK, reward="clip_score"))
    assert not (study.path / "runs/align-rwr/log.jsonl").exists()


@pytest.mark.parametrize(
    ("good_every", "aligner", "word"), [(0, LABELS, "good"), (1, KahnemanTversky(), "bad")]
)
def test_one_kind_of_rating_is_refused(
    tmp_path: Path, good_every: int, aligner: Aligner, word: str
) -> None:
    study = rated_study(tmp_path, good_every)
    with pytest.raises(UserError, match=f"needs images rated {word}, and of those of 'base' none"):
        align(study, QUICK, aligner)
    assert not (study.path / "runs/align-rwr").exists()


def test_good_images_suffice_to_train_on_these(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, aligner="sft", max_steps=1)
    assert align(rated_study(tmp_path, good_every=1), config).finished


def test_missing_things_are_named_before_a_model_loads(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"no reward runs/fit-clip_head; train it with: sayso fit"):
        align(study, QUICK)
    with pytest.raises(UserError, match="unknown aligner 'rwx': did you mean 'rwr'"):
        align(study, dataclasses.replace(QUICK, aligner="rwx"))
    with pytest.raises(UserError, match="no images of 'runs/align-x' for train prompts"):
        align(study, dataclasses.replace(QUICK, model="runs/align-x"))
    with pytest.raises(UserError, match="batch_size 8 is not a multiple"):
        align(study, dataclasses.replace(QUICK, micro_batch_size=3), LABELS)
    empty = random_study(tmp_path / "empty", pretraining="")
    with pytest.raises(UserError, match="no images of 'base'"):
        align(empty, QUICK, LABELS)
    bare = Study(study.path, dataclasses.replace(study.info, pretraining=""))
    with pytest.raises(UserError, match="needs pre-training images"):
        align(bare, QUICK, LABELS)
    assert not (study.path / "runs/align-rwr").exists()


def test_missing_latents_are_named(study: Study) -> None:
    shard = study.samples()[0].latents
    (study.path / shard).unlink()
    with pytest.raises(UserError, match=f"{shard} are missing or damaged"):
        align(study, QUICK, LABELS)


def test_pretraining_images_are_encoded_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(study, "base", torch.device("cpu"))
    latents, captions = encoded_pretraining(study, policy, 5)
    first = latents[torch.arange(5)]
    assert first.shape == (5, 4, 16, 16)
    assert len(captions) == 5
    monkeypatch.setattr(StableDiffusion, "encode_images", lambda *_: pytest.fail("encoded again"))
    again, same = encoded_pretraining(study, policy, 5)
    assert torch.equal(first, again[torch.arange(5)])
    assert captions == same


def test_plan_counts(study: Study) -> None:
    sizes = plan(study, QUICK)
    assert sizes["images in all"] == 24
    assert sizes["passes over the samples (approx.)"] == 2.0


def test_saved_average_is_what_load_policy_gives(study: Study) -> None:
    run = align(study, QUICK, LABELS)
    saved = load_file(run.weights / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[n], v) for n, v in unet(study, run.name).items())


def test_scored_images_alone_are_enough_where_only_the_reward_weighs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Reward):
        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return torch.full((len(images),), 0.5)

    monkeypatch.setattr("sayso.stages._scoring.load_reward", lambda *_: Half())
    study = random_study(tmp_path)
    generate(study, GenerateConfig(per_prompt=4))
    config = dataclasses.replace(QUICK, reward="clip_score")
    assert align(study, config).result["rated_images"] == 0
    with pytest.raises(UserError, match="needs images rated good, and of those of 'base' none is"):
        align(study, dataclasses.replace(config, name="marks"), RewardWeighted(weight="product"))


def test_pretraining_images_have_the_size_of_the_samples(tmp_path: Path) -> None:
    """Images may be drawn at another size than the study's."""
    study = random_study(tmp_path)
    generate(study, GenerateConfig(per_prompt=2, image_size="16"))
    config = dataclasses.replace(QUICK, reward="clip_score", max_steps=1, batch_size=2)
    # the rows are made, or torch could not join them; an untrained CLIP's scores are negative
    with pytest.raises(UserError, match="smallest reward"):
        align(study, config)


def test_dry_run_forecasts_disk_and_memory(study: Study) -> None:
    """The paper's number of images, on a model whose sizes are counted by hand."""
    config = dataclasses.replace(QUICK, pretraining_images=625_000, max_steps=10_000)
    sizes = plan(study, config)
    weights = sum(p.numel() for p in unet(study, "base").values()) * 4
    mebibytes = {
        "disk, latents of pre-training images": 625_000 * 4 * 16 * 16 * 2,
        "memory, optimiser": 2 * weights,
        "memory, EMA": weights,
        "disk, checkpoints at most": 3 * 4 * weights,
    }
    for name, size in mebibytes.items():
        assert str(sizes[name]).startswith(decimal(size)), name
    # 3 texts of the samples, the empty one, and the captions: more than there are rows
    table = (625_000 + 4) * 40 * 32 * 4
    assert f"625004 texts would take {decimal(table)}" in str(sizes["disk, conditions"])
    kept = plan(study, dataclasses.replace(config, conditions="table"))["disk, conditions"]
    assert kept == f"{decimal(table)} at most, a table of 625004 texts"
    lora = plan(study, dataclasses.replace(config, lora_rank=1, ema_decay=0.0))
    assert "memory, EMA" not in lora
    assert lora["memory, optimiser"] != sizes["memory, optimiser"]


def test_conditions_from_a_table_and_encoded_are_the_same(study: Study) -> None:
    policy = load_policy(study, "base", torch.device("cpu"))
    texts = ["", *(f"{n} cats" for n in range(150))]
    rows = torch.tensor([3, 150, 0, 64, 3, 63])
    folder = study.cache / "conditions"
    table = open_conditions(policy, texts, folder, "m", "table")
    assert isinstance(table, Shards)
    encoded = open_conditions(policy, texts, folder, "m", "encode")
    assert isinstance(encoded, EncodedConditions)
    held = in_memory(policy, texts)
    assert torch.equal(table[rows]["states"], held[rows]["states"])
    torch.testing.assert_close(encoded[rows], held[rows], rtol=1e-4, atol=1e-5)
    assert table[rows]["states"].dtype == torch.float32


def test_a_table_is_of_its_texts_and_its_model(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(study, "base", torch.device("cpu"))
    texts, folder, rows = ["", "a dog"], study.cache / "conditions", torch.tensor([0, 1])
    first = open_conditions(policy, texts, folder, "m")[rows]["states"]
    made: list[str] = []
    real = policy.encode_prompts
    monkeypatch.setattr(policy, "encode_prompts", lambda t: made.extend(t) or real(t))
    assert torch.equal(open_conditions(policy, texts, folder, "m")[rows]["states"], first)
    assert made == ["a dog"], "only to know the size, of the longest"
    open_conditions(policy, ["", "a cat"], folder, "m")
    open_conditions(policy, texts, folder, "another model")
    assert made[1:] == ["a cat", "", "a cat", "a dog", "", "a dog"]


def test_encoding_goes_on_where_it_was_stopped(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(study, "base", torch.device("cpu"))
    monkeypatch.setattr("sayso.data.pretraining_latents.IMAGES_A_SHARD", 2)
    whole = encoded_pretraining(study, policy, 7)[0][torch.arange(7)]
    shutil.rmtree(study.cache)
    real, drawn = Scenes.train_pictures, list[int]()

    def until(scenes: Scenes, ranges: Ranges, workers: int) -> Iterator[Image.Image | Damaged]:
        numbers = (i for start, stop in ranges for i in range(start, stop))
        for number, image in zip(numbers, real(scenes, ranges, workers), strict=True):
            if number == 5 and 5 not in drawn:
                drawn.append(5)
                raise KeyboardInterrupt
            drawn.append(number)
            yield image

    monkeypatch.setattr(Scenes, "train_pictures", until)
    with pytest.raises(KeyboardInterrupt):
        encoded_pretraining(study, policy, 7)
    assert torch.equal(encoded_pretraining(study, policy, 7)[0][torch.arange(7)], whole)
    assert drawn == [0, 1, 2, 3, 4, 5, 4, 5, 6]
