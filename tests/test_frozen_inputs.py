"""A run learns from what was there when it was begun, whatever happens between kill and repeat."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from early import early_study
from safetensors.torch import load_file, save

from sayso.aligners import Batch, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.base.errors import UserError
from sayso.base.types import Rating
from sayso.rewards.clip_head import ClipHead
from sayso.stages.align import AlignConfig, align
from sayso.stages.fit import FitConfig, fit
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.training import loop as train

CONFIG = AlignConfig(
    name="mine", max_steps=6, batch_size=4, pretraining_images=8, checkpoint_every=2, lora_rank=1,
    mixed_precision="no",
)  # fmt: skip
PRODUCT = RewardWeighted(weight="product")
HEAD = ClipHead(hidden_width=8, max_epochs=3)


class Killed(BaseException):
    """Stands for a kill."""


@dataclasses.dataclass(frozen=True)
class Interrupted(RewardWeighted):
    def batches(self, work: Work) -> Iterator[Batch]:
        for step, batch in zip(work.steps, super().batches(work), strict=True):
            if step == 3:
                raise Killed
            yield batch


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a study whose align run was killed, and what its weights should become."""
    folder = tmp_path_factory.mktemp("killed")
    study = Study.open(early_study(folder))
    whole = weights(align(study, dataclasses.replace(CONFIG, name="uninterrupted"), PRODUCT))
    with pytest.raises(Killed):
        align(study, CONFIG, Interrupted(weight="product"))
    return folder, whole


@pytest.fixture
def study(killed: tuple[Path, str], tmp_path: Path) -> Study:
    shutil.copytree(killed[0], tmp_path, dirs_exist_ok=True)
    info = tmp_path / "study/study.json"
    info.write_text(info.read_text().replace(str(killed[0]), str(tmp_path)))
    return Study.open(tmp_path / "study")


def weights(run: Run) -> str:
    (file,) = run.weights.rglob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def vote(study: Study) -> None:
    """A second person rates every image, good and bad in other turns than the first."""
    study.feedback.add_ratings([
        Rating(
            f"later-{s.id}", s.id, "berta", "alignment", ("bad", "good")[i // 2 % 2], False, 1.8e9,
            1.8e9,
        )
        for i, s in enumerate(study.samples("base"))
    ])  # fmt: skip


def test_inputs_are_written_down(study: Study) -> None:
    inputs = study.find_run("align-mine").inputs
    assert inputs is not None
    assert (inputs["labels"], inputs["raters"]) == ("share", "people")
    train_ids = {p.id for p in study.prompts("train")}
    assert len(inputs["images"]) == sum(s.prompt_id in train_ids for s in study.samples("base"))
    assert {row["label"] for row in inputs["images"]} == {0.0, 1.0}
    sources = set(inputs["sources"])
    assert {"seed", "model base", "reward runs/fit-clip_head", "pre-training images"} == sources


def test_votes_and_caches_between_kill_and_repeat_change_no_bit(
    study: Study, killed: tuple[Path, str]
) -> None:
    vote(study)
    shutil.rmtree(study.cache)
    run = align(study, CONFIG, PRODUCT)
    assert weights(run) == killed[1]
    # and the votes do count for a run that is begun after them
    later = align(study, dataclasses.replace(CONFIG, name="later"), PRODUCT)
    assert weights(later) != killed[1]


def test_images_drawn_between_kill_and_repeat_change_no_bit(
    study: Study, killed: tuple[Path, str]
) -> None:
    path = study.path / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    more = [row | {"id": "0" + row["id"][1:]} for row in rows[:4]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*more, *rows]))
    assert weights(align(study, CONFIG, PRODUCT)) == killed[1]


def change_reward(folder: Path) -> None:
    shutil.rmtree(folder / "study/runs/fit-clip_head")
    fit(Study.open(folder / "study"), FitConfig(), dataclasses.replace(HEAD, max_epochs=2))


def change_natural(folder: Path) -> None:
    metadata = folder / "natural/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("red cats", "blue boats"))


def change_model(folder: Path) -> None:
    config = folder / "model/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))


CHANGES = {
    "reward runs/fit-clip_head": change_reward,
    "pre-training images": change_natural,
    "model base": change_model,
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_since_is_named(study: Study, what: str) -> None:
    CHANGES[what](study.path.parent)
    with pytest.raises(UserError, match=f"have changed since .*: {what}; restore"):
        align(study, CONFIG, PRODUCT)


def test_a_sample_that_is_gone_is_named(study: Study) -> None:
    first = study.samples("base")[0].id
    path = study.path / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=f"sample {first}, which runs/align-mine learns from"):
        align(study, CONFIG, PRODUCT)


def test_latents_that_were_altered_are_named(study: Study) -> None:
    sample = study.samples("base")[1]
    shard = load_file(study.path / sample.latents)
    shard[sample.id] = shard[sample.id].roll(1)
    (study.path / sample.latents).write_bytes(save(shard))
    with pytest.raises(UserError, match=f"latents of sample {sample.id} in .* are not those that"):
        align(study, CONFIG, PRODUCT)
    align(study, dataclasses.replace(CONFIG, name="other", max_steps=1), PRODUCT)


def test_a_run_begun_without_a_record_of_latents_goes_on(study: Study) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sayso.training.loop.train", killed_before_a_step)
        with pytest.raises(Killed):
            align(study, dataclasses.replace(CONFIG, name="old"), PRODUCT)
    run = study.find_run("align-old")
    inputs = run.inputs or {}
    for row in inputs["images"]:
        del row["latents"]
    run.freeze(inputs)
    assert align(study, dataclasses.replace(CONFIG, name="old"), PRODUCT).finished


def killed_before_a_step(*_: object) -> None:
    raise Killed


def test_inputs_that_are_gone_are_made_again_only_if_they_are_the_same(
    study: Study, killed: tuple[Path, str]
) -> None:
    (study.path / "runs/align-mine/inputs.json").unlink()
    vote(study)
    with pytest.raises(UserError, match=r"inputs.json of runs/align-mine is not what"):
        align(study, CONFIG, PRODUCT)


def test_own_plugin_that_was_edited_is_named(study: Study, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    source = Path(train.__file__).parents[1] / "aligners/sft.py"
    mine.write_text(source.read_text())
    config = dataclasses.replace(CONFIG, name="own", aligner=str(mine))

    def kill(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sayso.training.loop.train", kill)
        with pytest.raises(Killed):
            align(study, config)
    mine.write_text(source.read_text() + "\n# edited\n")
    with pytest.raises(UserError, match=r"changed since it began: aligner .*mine.py"):
        align(study, config)


def test_a_killed_fit_learns_from_the_votes_it_began_with(study: Study) -> None:
    whole = weights(fit(study, FitConfig(name="whole"), dataclasses.replace(HEAD)))

    def kill(*_: object) -> None:
        raise Killed

    config = FitConfig(name="cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipHead, "fit", kill)
        with pytest.raises(Killed):
            fit(study, config, dataclasses.replace(HEAD))
    vote(study)
    run = fit(study, config, dataclasses.replace(HEAD))
    assert weights(run) == whole
    assert run.result["n"]["good"] == 6
    assert weights(fit(study, FitConfig(name="later"), dataclasses.replace(HEAD))) != whole


def test_a_picture_replaced_between_kill_and_repeat_of_fit_is_named(study: Study) -> None:
    config = FitConfig(name="cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipHead, "fit", killed_before_a_step)
        with pytest.raises(Killed):
            fit(study, config, dataclasses.replace(HEAD))
    run, train = study.find_run("fit-cut"), {p.id for p in study.prompts("train")}
    one, two = [s for s in study.samples("base") if s.prompt_id in train][:2]
    first, second = (study.path / s.path for s in (one, two))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=rf"image {first} is not the one that runs/fit-cut learns"):
        fit(study, config, dataclasses.replace(HEAD))
    # a run of a version before wrote down no digests
    inputs = run.inputs or {}
    without = [{k: v for k, v in row.items() if k != "picture"} for row in inputs["images"]]
    run.freeze({**inputs, "images": without})
    assert fit(study, config, dataclasses.replace(HEAD)).finished
    first.write_bytes(whole)


def test_a_fit_begun_in_earlier_words_goes_on(study: Study) -> None:
    vote(study)
    config = FitConfig(name="earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipHead, "fit", killed_before_a_step)
        with pytest.raises(Killed):
            fit(study, config, dataclasses.replace(HEAD))
    run = study.find_run("fit-earlier")
    inputs, old = run.inputs or {}, {"counts": "marks", "label": "target"}
    images = [{old.get(k, k): v for k, v in row.items()} for row in inputs["images"]]
    assert {"marks", "target"} < images[0].keys()
    run.freeze({**inputs, "images": images})
    resumed = fit(study, config, dataclasses.replace(HEAD))
    fresh = fit(study, FitConfig(name="fresh"), dataclasses.replace(HEAD))
    assert resumed.result["heldout"] == fresh.result["heldout"]


def test_align_takes_labels_and_raters_from_the_reward(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(study)
    fit(study, FitConfig(name="simulated", raters="simulated", labels="majority"), HEAD)
    capsys.readouterr()
    config = dataclasses.replace(CONFIG, name="a", reward="runs/fit-simulated", max_steps=1)
    run = align(study, config)
    said = " ".join(capsys.readouterr().err.split())
    assert "uses what runs/fit-simulated was fitted to: labels majority, raters simul" in said
    assert (run.config["labels"], run.config["raters"]) == ("majority", "simulated")
    assert (run.inputs or {})["raters"] == "simulated"
    told = dataclasses.replace(config, name="b", raters="people", labels="share")
    other = align(study, told)
    assert "does not use what runs/fit-simulated" in " ".join(capsys.readouterr().err.split())
    assert (other.config["labels"], other.config["raters"]) == ("share", "people")
    assert (other.inputs or {})["images"] != (run.inputs or {})["images"]


def test_fit_writes_what_it_was_fitted_to(study: Study) -> None:
    vote(study)
    result = fit(study, FitConfig(name="d", labels="dawid-skene"), HEAD).result
    assert (result["labels"], result["raters"]) == ("dawid-skene", "people")
