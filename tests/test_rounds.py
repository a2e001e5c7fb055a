"""Several rounds: an aligner starts from an earlier run and learns from old and new ratings."""

import dataclasses

import pytest
import torch
from studies import rated_study

from sayso.aligners import Aligner
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.kto import KahnemanTversky
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.base.errors import UserError
from sayso.base.types import Rating, digest
from sayso.families._loading import load_policy
from sayso.stages.align import AlignConfig, align, plan
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study

FIRST = AlignConfig(max_steps=2, batch_size=8, learning_rate=1e-2, pretraining_weight=0.0)
SECOND = dataclasses.replace(
    FIRST, name="second", model="runs/align-rwr", samples_of="base, align-rwr"
)
LABELS = RewardWeighted(weight="label")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A first round, and six rated images of the model that it made, all of them good."""
    study = rated_study(tmp_path_factory.mktemp("rounds"))
    align(study, FIRST, LABELS)
    generate(study, GenerateConfig(model="runs/align-rwr", per_prompt=2))
    study.feedback.add_ratings([
        Rating(digest(["new", s.id]), s.id, "simulated-1", "alignment", "good", True, 0.0, 1.0)
        for s in study.samples("runs/align-rwr")
    ])  # fmt: skip
    return study


def test_a_second_round_learns_from_old_and_new_ratings(study: Study) -> None:
    run = align(study, SECOND, LABELS)
    assert run.config["samples_of"] == "base,runs/align-rwr"
    inputs = run.inputs or {}
    drawn = {s.id: s.model for s in study.samples()}
    models = [drawn[row["id"]] for row in inputs["images"]]
    assert models == ["base"] * 12 + ["runs/align-rwr"] * 6
    assert [row["label"] for row in inputs["images"]][12:] == [1.0] * 6
    assert run.result["samples"] == run.result["rated_images"] == 18


def test_it_starts_from_the_model_that_is_named(study: Study) -> None:
    """Updates of no size leave the start's weights, whatever images are learned from."""
    still = dataclasses.replace(SECOND, name="still", learning_rate=1e-12, samples_of="base")
    run = align(study, still, LABELS)
    assert run.result["samples"] == 12
    cpu = torch.device("cpu")
    first, after, base = (
        [*load_policy(study, name, cpu, "fp32", ["network"]).network.parameters()]
        for name in ("runs/align-rwr", run.name, "base")
    )
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(first, after, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-7) for a, b in zip(base, after, strict=True))


def test_the_images_of_the_start_are_the_default(study: Study) -> None:
    only = dataclasses.replace(SECOND, name="only", samples_of="")
    assert plan(study, dataclasses.replace(only, aligner="sft"))["samples"] == 6
    with pytest.raises(UserError, match=r"bad, and of those of 'runs/align-rwr' none is"):
        align(study, only, KahnemanTversky())


def test_the_same_name_with_other_images_is_refused(study: Study) -> None:
    align(study, dataclasses.replace(SECOND, name="named", aligner="sft"), GoodImages())
    other = dataclasses.replace(SECOND, name="named", aligner="sft", samples_of="base")
    with pytest.raises(UserError, match=r"samples_of 'base,runs/align-rwr' → 'base'"):
        align(study, other, GoodImages())
    # however the same models are written
    again = dataclasses.replace(SECOND, name="named", aligner="sft",
                                samples_of="base,runs/align-rwr")  # fmt: skip
    assert align(study, again, GoodImages()).finished


@pytest.mark.parametrize(
    ("models", "aligner", "says"),
    [
        ("base,base", LABELS, "base is named twice in base,base"),
        ("align-rwr,runs/align-rwr", LABELS, "runs/align-rwr is named twice"),
        ("base@best-2-of-4-by-clip_score", LABELS, "is a selection among images of base; name"),
        ("base,runs/align-none", LABELS, "no images of 'runs/align-none' for train prompts"),
        ("../elsewhere", LABELS, "is not a run of"),
        ("base", GroupPolicy(images=8, steps_per_image=1), "generates the images that it learns"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    study: Study, models: str, aligner: Aligner, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        align(study, dataclasses.replace(SECOND, name="no", samples_of=models), aligner)
    assert not (study.path / "runs/align-no").exists()


def test_a_reward_may_learn_from_some_models_only(study: Study) -> None:
    from sayso.stages.fit import FitConfig, collect

    assert len(collect(study, FitConfig()).samples) == 18
    assert len(collect(study, FitConfig(samples_of="base")).samples) == 12
    with pytest.raises(UserError, match="there are no images of 'runs/align-none'"):
        collect(study, FitConfig(samples_of="base,runs/align-none"))
