"""Aligners: weights by hand, drawing, and what they refuse."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sayso.aligners import Context, load_aligner, stratified
from sayso.aligners.rwr import (
    RewardWeighted,
    even_over_prompts,
    reward_weighted_loss,
    row_weights,
)
from sayso.aligners.sft import GoodImages
from sayso.base.errors import UserError
from sayso.data.rows import TrainingRows, make_rows
from sayso.testing import ToyPolicy, check_aligner, toy_rows

NAN = float("nan")


def rows_with(marks: list[float], rewards: list[float], n_pretraining: int = 0) -> TrainingRows:
    own = torch.arange(len(marks)).float()[:, None, None, None].expand(-1, 2, 1, 1)
    natural = (torch.full((n_pretraining, 2, 1, 1), -1.0), ["9"] * n_pretraining)
    return make_rows(ToyPolicy(), (own, ["1"] * len(marks)), marks, rewards, natural)


def context(rows: TrainingRows, **changes: int) -> Context:
    return Context(rows, **{"batch_size": 8, "max_steps": 3, "seed": 0, **changes})


def test_row_weights_by_hand() -> None:
    # own mean: (0.5·4 + 1.0·2)/2 = 3 and natural mean: 0.3·4/2 = 0.6, over 4 rows
    weight = row_weights(torch.tensor([0.5, 1.0]), 2, 0.3)
    torch.testing.assert_close(weight, torch.tensor([1.0, 2.0, 0.6, 0.6]))
    error = torch.tensor([4.0, 2.0, 1.0, 3.0])
    loss = reward_weighted_loss(error, weight).mean()
    torch.testing.assert_close(loss, torch.tensor((0.5 * 4 + 1 * 2) / 2 + 0.3 * (1 + 3) / 2))
    assert row_weights(torch.tensor([0.5, 1.0]), 0, 0.3).tolist() == [0.5, 1.0]
    # one of each kind: 0.5 · 2 and 0.3 · 2
    torch.testing.assert_close(row_weights(torch.tensor([0.5]), 1, 0.3), torch.tensor([1.0, 0.6]))


def test_even_over_prompts_by_hand() -> None:
    weight = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.04, 0.0, 0.0, 0.0])
    prompt = torch.tensor([7, 7, 3, 3, 9, 9, 4, 4])
    even = even_over_prompts(weight, prompt) / weight.mean()
    # prompt 9 has a mean of 0.02, prompt 4 nothing: neither is lifted as if it had a good image
    torch.testing.assert_close(even, torch.tensor([2.0, 0, 1, 1, 0.4, 0, 0, 0]))


def test_batch_has_the_asked_share_of_pretraining_rows() -> None:
    rows = rows_with([1.0, 0.0], [0.9, 0.1], n_pretraining=5)
    for fraction, expected in [(0.5, 4), (0.125, 1), (0.01, 1)]:
        batch = next(iter(RewardWeighted(pretraining_fraction=fraction).batches(context(rows))))
        assert int((batch.latents[:, 0, 0, 0] == -1).sum()) == expected
    for off in (RewardWeighted(pretraining_weight=0.0), RewardWeighted(pretraining_fraction=0.0)):
        batch = next(iter(off.batches(context(rows))))
        assert (batch.latents >= 0).all()
        assert "pretraining" not in off.required()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 0.9, 1: 0.4, 2: 0.7, 3: 0.2}),
        ({"unrated": False}, {0: 0.9, 1: 0.4, 2: 0.7}),
        ({"reward_threshold": 0.5}, {0: 0.9, 1: 0.0, 2: 0.7, 3: 0.0}),
        ({"weight": "product", "reward_threshold": 0.35}, {0: 0.9, 1: 0.0, 2: 0.35, 3: 0.0}),
        ({"weight": "mark"}, {0: 1.0, 1: 0.0, 2: 0.5}),
        ({"weight": "product"}, {0: 0.9, 1: 0.0, 2: 0.35, 3: 0.2}),
    ],
)
def test_weights_of_own_images(options: dict[str, object], expected: dict[int, float]) -> None:
    rows = rows_with([1.0, 0.0, 0.5, NAN], [0.9, 0.4, 0.7, 0.2])
    index, weight = RewardWeighted(**options).weighted_rows(rows)
    assert dict(zip(index.tolist(), weight.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "required"),
    [
        ({}, {"reward", "pretraining"}),
        ({"unrated": False}, {"data", "reward", "pretraining"}),
        ({"weight": "product"}, {"data", "reward", "pretraining"}),
        ({"weight": "mark"}, {"data", "pretraining"}),
        ({"weight": "mark", "unrated": False}, {"data", "pretraining"}),
        ({"weight": "mark", "pretraining_weight": 0.0}, {"data"}),
        ({"pretraining_fraction": 0.0}, {"reward"}),
    ],
)
def test_what_is_needed_with_which_options(options: dict, required: set[str]) -> None:
    assert RewardWeighted(**options).required() == required


def test_rewards_that_are_all_0_are_drawn_alike_and_weigh_nothing() -> None:
    aligner = RewardWeighted(draw="reward", pretraining_weight=0.0)
    batch = next(iter(aligner.batches(context(rows_with([NAN] * 8, [0.0] * 8)))))
    assert sorted(batch.latents[:, 0, 0, 0].tolist()) == list(range(8))
    assert (batch.weight == 0).all()


def test_drawing_by_reward_has_the_same_expected_loss_and_less_noise() -> None:
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(0)) ** 3
    rows = rows_with([NAN] * 40, rewards.tolist())
    error = torch.linspace(1, 2, 40)
    means, spreads = [], []
    for draw in ("uniform", "reward"):
        aligner = RewardWeighted(draw=draw, pretraining_weight=0.0)
        losses = torch.stack([
            reward_weighted_loss(error[batch.latents[:, 0, 0, 0].long()], batch.weight).mean()
            for batch in aligner.batches(context(rows, max_steps=3000))
        ])  # fmt: skip
        means.append(losses.mean())
        spreads.append(losses.std())
    exact = (rewards * error).mean()
    torch.testing.assert_close(torch.stack(means), exact.expand(2), rtol=0.02, atol=0)
    assert spreads[1] < 0.3 * spreads[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.0]), min_size=1, max_size=30).filter(any),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
def test_stratified_keeps_to_the_weights(weights: list[float], count: int, seed: int) -> None:
    w = torch.tensor(weights)
    drawn = stratified(w, count, torch.Generator().manual_seed(seed))
    times = drawn.bincount(minlength=len(w))
    assert times.sum() == count
    assert (w[drawn] > 0).all()
    # a stretch of the cumulated weights touches two strata in part, the others wholly or not
    assert ((times - count * w / w.sum()).abs() < 2).all()


def test_stratified_is_unbiased() -> None:
    w = torch.tensor([0.1, 0.0, 0.5, 0.15, 0.25])
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([stratified(w, 3, generator).bincount(minlength=5) for _ in range(4000)])
    torch.testing.assert_close(times.float().mean(0), 3 * w, rtol=0, atol=0.03)


@pytest.mark.parametrize("bad", [[-0.1, 1.0], [NAN, 1.0], [0.0, 0.0]])
def test_stratified_refuses(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        stratified(torch.tensor(bad), 2, torch.Generator())


def test_dropout_puts_the_empty_prompt() -> None:
    rows = rows_with([NAN] * 10, [0.5] * 10)
    ctx = context(rows, batch_size=4000)
    batch = ctx.denoising_batch(torch.zeros(4000).long(), torch.ones(4000), ctx.generator(0), 0.25)
    empty = (batch.cond["number"] == -1).float().mean()
    assert empty == pytest.approx(0.25, abs=0.03)
    whole = ctx.denoising_batch(torch.zeros(8).long(), torch.ones(8), ctx.generator(0))
    assert (whole.cond["number"] == 1).all()


def test_t_is_uniform_and_spread_over_the_batch() -> None:
    ctx = context(rows_with([NAN], [0.5]))
    rows = torch.zeros(10).long()
    ts = [ctx.denoising_batch(rows, torch.ones(10), ctx.generator(s)).t for s in range(500)]
    for t in ts:
        assert (t * 10).long().sort().values.tolist() == list(range(10))
    first = torch.stack(ts)[:, 0]
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    assert first.std() == pytest.approx(12**-0.5, abs=0.03)


def test_sft_trains_on_good_images_only() -> None:
    rows = rows_with([1.0, 0.0, 0.5, NAN, 0.75], [NAN] * 5)
    batch = next(iter(GoodImages().batches(context(rows, batch_size=50))))
    assert set(batch.latents[:, 0, 0, 0].tolist()) == {0.0, 4.0}
    assert (batch.weight == 1).all()


@pytest.mark.parametrize(
    ("rewards", "message"),
    [([0.5, -0.2], r"smallest reward is -0\.2"), ([NAN, 0.5], "not finite")],
)
def test_rwr_refuses_rewards(rewards: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardWeighted().weighted_rows(rows_with([1.0, 0.0], rewards))


@pytest.mark.parametrize(
    "options",
    [{"prompt_dropout": 1.0}, {"pretraining_fraction": -0.1}, {"pretraining_weight": -1.0},
     {"pretraining_weight": NAN}, {"reward_threshold": -0.5}, {"reward_threshold": math.inf}],
)  # fmt: skip
def test_bad_options_name_themselves(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        RewardWeighted(**options)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, NAN])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    for kind in (RewardWeighted, GoodImages):
        assert kind(prompt_dropout=0.0).prompt_dropout == 0
        with pytest.raises(UserError, match="prompt_dropout"):
            kind(prompt_dropout=dropout)


def test_fraction_that_leaves_no_own_image_is_refused() -> None:
    rows = rows_with([1.0, 0.0], [0.9, 0.1], n_pretraining=5)
    with pytest.raises(UserError, match="leaves no own image"):
        next(iter(RewardWeighted(pretraining_fraction=0.97).batches(context(rows))))


@pytest.mark.parametrize(
    "options",
    [
        {"draw": "reward"},
        {"weight": "product", "reward_threshold": 0.3},
        {"unrated": False},
        {"even": True},
    ],
)
def test_rwr_options_keep_the_contract(options: dict[str, object]) -> None:
    check_aligner(RewardWeighted, **options)


def test_the_example_in_the_docstring_is_an_aligner(tmp_path: Path) -> None:
    import sayso.aligners._contract

    example = sayso.aligners._contract.__doc__.split("one's own:\n")[1]
    head = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport torch\n"
        "from sayso.aligners import Aligner, stratified\n"
    )
    import textwrap

    (tmp_path / "mine.py").write_text(head + textwrap.dedent(example))
    kind = load_aligner(str(tmp_path / "mine.py"))
    assert kind.__name__ == "GoodOnly"
    check_aligner(kind)


def test_contract_check_catches_a_broken_aligner() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgetful(GoodImages):
        def batches(self, ctx):
            for _ in ctx.steps:
                yield ctx.denoising_batch(torch.arange(8), torch.rand(8), torch.Generator())

    with pytest.raises(AssertionError, match="same seed must repeat"):
        check_aligner(Forgetful)

    @dataclasses.dataclass(frozen=True)
    class Summing(GoodImages):
        def loss(self, policy, batch):
            loss, scalars = super().loss(policy, batch)
            return loss * len(batch), scalars

    with pytest.raises(AssertionError, match="cutting a batch"):
        check_aligner(Summing)


def test_toy_rows_have_all_kinds() -> None:
    rows = toy_rows()
    assert rows.label[: rows.n_own].isnan().any()
    assert rows.reward[rows.pretraining].isnan().all()
