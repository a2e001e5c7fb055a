"""Rollouts that an older self draws: whose images they are, how it follows, resuming."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import killed_at
from safetensors.torch import load_file
from torch import Tensor

from sayso.aligners import Aligner, Work
from sayso.aligners._online import denoising_rollouts
from sayso.aligners._rollouts import draw_images, group_advantages
from sayso.aligners.awm import AdvantageWeighted
from sayso.aligners.direct_align import DirectAlign
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.lair import Listwise
from sayso.aligners.nft import NegativeAware, optimality_of
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy, ToyReward, toy_work
from sayso.training.loop import train
from sayso.training.options import TrainOptions

SMALL = NegativeAware(score="rollouts", images=8, group_size=4, times_per_image=2)
"""A rollout is 16 rows: two updates of 8."""
RUNS = [
    SMALL,
    AdvantageWeighted(images=8, group_size=4, times_per_image=2, groups=True),
    DirectAlign(source="rollouts"),
    DirectAlign(source="rollouts", last_steps=2),
]


def apart(by: float = 0.05) -> ToyPolicy:
    """A policy that is no longer its older self."""
    policy = ToyPolicy()
    policy.remember("old")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(by)
    return policy


def values(policy: ToyPolicy) -> Tensor:
    return torch.cat([v.flatten() for v in policy.remembered["old"].values()])


def test_optimality_by_hand() -> None:
    found = optimality_of(torch.tensor([-5.0, -1.0, 0.0, 2.5, 5.0]), 5.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.4, 0.5, 0.75, 1.0]))


def test_the_older_self_draws_and_the_reward_is_of_its_images() -> None:
    work = toy_work(apart(), micro_batch=3)
    old, new = (draw_images(work, 0, 8, 4, older) for older in ("old", None))
    assert old.plan.seeds == new.plan.seeds
    assert not torch.allclose(old.latents, new.latents, atol=1e-3)
    start = toy_work(ToyPolicy())
    torch.testing.assert_close(old.latents, draw_images(start, 0, 8, 4).latents)
    images = work.policy.decode(old.latents).mul(255).round() / 255
    torch.testing.assert_close(old.reward, ToyReward().score(images, [""] * 8))


def test_rows_are_those_of_a_rollout_in_turns() -> None:
    work = toy_work(apart(), max_steps=4)
    first, second, third, _ = SMALL.batches(work)
    drawn = draw_images(toy_work(apart()), 0, 8, 4, "old")
    advantage = group_advantages(drawn.reward, 4, 5.0)
    place = {tuple(x.flatten().tolist()): i for i, x in enumerate(drawn.latents)}
    for batch in (first, second):
        rows = [place[tuple(x.flatten().tolist())] for x in batch["latents"]]
        assert sorted(rows) == list(range(8)), "every image before any comes again"
        torch.testing.assert_close(batch["advantage"], advantage[rows])
        torch.testing.assert_close(batch["reward"], drawn.reward[rows])
        torch.testing.assert_close(batch["optimality"], optimality_of(advantage[rows], 5.0))
    assert not torch.equal(first["t"].sort().values, second["t"].sort().values)
    assert tuple(third["latents"][0].flatten().tolist()) not in place, "the next rollout is another"


def test_every_row_has_its_own_time_and_noise_in_every_rollout() -> None:
    """And pre-training rows are the loop's to add; the last rollout ends with the run."""
    work = toy_work(apart(), max_steps=5, n_pretraining=2)
    batches = [*SMALL.batches(work)]
    assert len(batches) == 5
    assert all(batch.pretraining is None and len(batch) == 8 for batch in batches)
    for name in ("t", "noise"):
        rows = torch.cat([batch[name].reshape(8, -1) for batch in batches]).tolist()
        assert len({tuple(row) for row in rows}) == 40, name
    resumed = [*SMALL.batches(dataclasses.replace(work, start_step=4))]
    assert len(resumed) == 1


def test_no_chance_of_a_step_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the order of rows would say something of their noise."""
    drawn, generator = list[tuple[int, str]](), Work.generator

    def counted(work: Work, step: int, purpose: str = "") -> torch.Generator:
        drawn.append((step, purpose))
        return generator(work, step, purpose)

    monkeypatch.setattr(Work, "generator", counted)
    for aligner in (*RUNS, GroupPolicy(images=8, group_size=4, steps_per_image=2)):
        drawn.clear()
        assert len([*aligner.batches(toy_work(apart(), max_steps=4))]) == 4
        assert len(drawn) == len(set(drawn)) >= 4, aligner


def test_prompts_and_their_conditions_stay_together() -> None:
    work = toy_work(apart(), max_steps=1)
    batch = next(denoising_rollouts(work, SMALL, 0.5, 0.0))
    drawn = draw_images(toy_work(apart()), 0, 8, 4, "old")
    texts = {tuple(x.flatten().tolist()): drawn.plan.texts_of(slice(i, i + 1))[0]
             for i, x in enumerate(drawn.latents)}  # fmt: skip
    for latents, number in zip(batch["latents"], batch.cond["number"], strict=True):
        assert float(texts[tuple(latents.flatten().tolist())]) == number.item()
    empty = next(denoising_rollouts(work, SMALL, 0.5, 0.999)).cond["number"]
    assert empty.flatten().tolist() == [-1.0] * 8


@pytest.mark.parametrize(("decay", "kept"), [(0.5, 0.2), (0.15, 0.15), (0.0, 0.0)])
def test_the_older_self_moves_when_the_next_rollout_begins(decay: float, kept: float) -> None:
    """At step 200 it keeps a fifth of itself, if no less is allowed."""
    policy, aligner = apart(by=5.0), dataclasses.replace(SMALL, old_decay=decay)
    before, now = values(policy), torch.cat([p.flatten() for p in policy.trainable().values()])
    batches = aligner.batches(toy_work(policy, start_step=200, max_steps=204))
    next(batches)
    torch.testing.assert_close(values(policy), kept * before + (1 - kept) * now)
    held = values(policy)
    next(batches)
    assert torch.equal(values(policy), held), "not between rollouts"
    first = aligner.batches(toy_work(fresh := apart()))
    next(first)
    assert torch.equal(values(fresh), before), "nor before the first"


def run_at(path: Path, aligner: Aligner, precision: str = "no") -> Run:
    options = TrainOptions(
        max_steps=6, batch_size=8, warmup_steps=0, decay_fraction=0.0, checkpoint_every=1,
        learning_rate=1e-2, kl_weight=1e-4,
    )  # fmt: skip
    run = open_run(path, asked({}), 0)
    run.finish(
        train(
            toy_work(ToyPolicy(8, kind="velocity")),
            aligner,
            options,
            run,
            make_accelerator(precision),
        )
    )
    return run


@pytest.mark.parametrize("aligner", RUNS, ids=lambda a: type(a).__name__)
def test_resumed_between_rollouts_it_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligner: Aligner
) -> None:
    whole = run_at(tmp_path / "whole", aligner)
    for step in (3, 5):
        with killed_at(monkeypatch, step):
            run_at(tmp_path / "cut", aligner)
        kept = open_run(tmp_path / "cut", asked({}), 0).checkpoint_folders()
        # asked for at every step, but in the middle of a rollout nothing can be resumed
        assert kept
        assert all(int(folder.name) % aligner.period(8) == 0 for folder in kept)
    again = run_at(tmp_path / "cut", aligner)
    ours, theirs = (load_file(r.weights / "toy.safetensors") for r in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = whole.history()
    assert [row["loss"] for row in again.history()] == [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["kl"] == 0 < rows[-1]["kl"]
    assert all(0 < row["reward"] < 1 for row in rows)
    assert "norm" not in rows[0] or 0.1 < rows[0]["norm"] < 10


def test_the_first_update_of_a_rollout_finds_the_errors_as_they_were(tmp_path: Path) -> None:
    on_policy = dataclasses.replace(SMALL, old_decay=0.0)
    rises = [
        [row["rise_good"], row["rise_bad"]] for row in run_at(tmp_path / "r", on_policy).history()
    ]
    assert all(abs(x) < 1e-6 for pair in rises[::2] for x in pair)
    assert all(abs(x) > 1e-6 for pair in rises[1::2] for x in pair)


def test_without_rollouts_nothing_of_them_is_asked_for() -> None:
    assert (SMALL.period(8), NegativeAware().period(7)) == (2, 1)
    with pytest.raises(UserError, match=r"16 rows .* × times_per_image 2\).* batches of 4 or 8"):
        SMALL.period(5)
    assert SMALL.required() == {"reward", "rollouts", "old"}
    assert not NegativeAware().required() & {"rollouts", "old"}


@pytest.mark.parametrize(
    "options",
    [{"old_decay": 1.0}, {"times_per_image": 0}, {"advantage_clip": 0.0},
     {"group_size": 1}, {"images": 12}],
)  # fmt: skip
def test_bad_options_name_themselves(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        NegativeAware(score="rollouts", **options)


@pytest.mark.parametrize("kind", [NegativeAware, Listwise])
def test_an_unknown_score_is_refused(kind: type[NegativeAware | Listwise]) -> None:
    aligner = kind()
    # past the check of types, which is there in tests only
    object.__setattr__(aligner, "score", "stars")
    with pytest.raises(UserError, match="score 'stars'; choose label"):
        aligner.__post_init__()
