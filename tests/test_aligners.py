"""Aligners: weights by hand, drawing, and what they refuse."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sayso.aligners import Aligner, Batch, Work, load_aligner, stratified
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.kto import KahnemanTversky
from sayso.aligners.lair import Listwise
from sayso.aligners.nft import NegativeAware
from sayso.aligners.rwr import (
    RewardWeighted,
    even_over_prompts,
    reward_weighted_loss,
)
from sayso.aligners.sft import GoodImages
from sayso.base.errors import UserError
from sayso.base.plugins import plugin_names
from sayso.data.rows import TrainingRows, make_rows
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.testing import ToyPolicy, check_aligner, toy_rows
from sayso.training.needs import check_needs
from sayso.training.options import TrainOptions

NAN = float("nan")


def rows_with(labels: list[float], rewards: list[float], n_pretraining: int = 0) -> TrainingRows:
    own = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 2, 1, 1)
    natural = (torch.full((n_pretraining, 2, 1, 1), -1.0), ["9"] * n_pretraining)
    return make_rows(ToyPolicy(), (own, ["1"] * len(labels)), labels, rewards, natural)


def work_on(rows: TrainingRows, **changes: int) -> Work:
    return Work(ToyPolicy(), rows, **{"batch_size": 8, "max_steps": 3, "seed": 0, **changes})


def test_weighted_loss_by_hand() -> None:
    error, weight = torch.tensor([4.0, 2.0]), torch.tensor([0.5, 1.0])
    assert reward_weighted_loss(error, weight).tolist() == [2.0, 2.0]


def test_even_over_prompts_by_hand() -> None:
    weight = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.04, 0.0, 0.0, 0.0])
    prompt = torch.tensor([7, 7, 3, 3, 9, 9, 4, 4])
    even = even_over_prompts(weight, prompt) / weight.mean()
    # prompt 9 has a mean of 0.02, prompt 4 nothing: neither is lifted as if it had a good image
    torch.testing.assert_close(even, torch.tensor([2.0, 0, 1, 1, 0.4, 0, 0, 0]))


def test_pretraining_rows_are_drawn_with_the_others() -> None:
    rows = rows_with([1.0, 0.0], [0.9, 0.1], n_pretraining=5)
    batch = next(iter(RewardWeighted().batches(work_on(rows, n_pretraining=4))))
    assert batch.pretraining is not None
    assert len(batch) == 8
    assert (batch["latents"] >= 0).all()
    assert len(batch.pretraining) == 4
    assert (batch.pretraining["latents"] == -1).all()
    strata = torch.cat([batch["t"], batch.pretraining["t"]]).mul(12).long().sort().values
    assert strata.tolist() == list(range(12)), "t is spread over both"
    alone = next(iter(RewardWeighted().batches(work_on(rows))))
    assert alone.pretraining is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 0.9, 1: 0.4, 2: 0.7, 3: 0.2}),
        ({"unrated": False}, {0: 0.9, 1: 0.4, 2: 0.7}),
        ({"reward_threshold": 0.5}, {0: 0.9, 1: 0.0, 2: 0.7, 3: 0.0}),
        ({"weight": "product", "reward_threshold": 0.35}, {0: 0.9, 1: 0.0, 2: 0.35, 3: 0.0}),
        ({"weight": "label"}, {0: 1.0, 1: 0.0, 2: 0.5}),
        ({"weight": "product"}, {0: 0.9, 1: 0.0, 2: 0.35, 3: 0.2}),
    ],
)
def test_weights_of_samples(options: dict[str, object], expected: dict[int, float]) -> None:
    rows = rows_with([1.0, 0.0, 0.5, NAN], [0.9, 0.4, 0.7, 0.2])
    index, weight = RewardWeighted(**options).weighted_rows(rows)
    assert dict(zip(index.tolist(), weight.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "required"),
    [
        ({}, {"reward"}),
        ({"unrated": False}, {"data", "reward"}),
        ({"weight": "product"}, {"data", "reward"}),
        ({"weight": "label"}, {"data"}),
    ],
)
def test_what_is_needed_with_which_options(options: dict, required: set[str]) -> None:
    assert RewardWeighted(**options).required() == required


@pytest.mark.parametrize(
    ("aligner", "lacking"),
    [(GoodImages(), "good"), (RewardWeighted(weight="label"), "good"), (KahnemanTversky(), "bad"),
     (NegativeAware(), "bad"), (Listwise(), "bad")],
)  # fmt: skip
def test_only_those_that_learn_from_bad_images_need_some(
    aligner: Aligner, lacking: str, tmp_path: Path
) -> None:
    def check(*labels: float) -> None:
        study = Study(tmp_path, StudyInfo("x"))
        check_needs(study, TrainOptions(), aligner, "base", "runs/fit", labels, 0)

    check(*[1.0, NAN] if lacking == "good" else [1.0, 0.0])
    says = f"needs images rated {lacking}, and of those of 'base' none is; rate more images: sayso "
    with pytest.raises(UserError, match=says):
        check(*[0.0, NAN] if lacking == "good" else [1.0, NAN])


def test_rewards_that_are_all_0_are_drawn_alike_and_weigh_nothing() -> None:
    aligner = RewardWeighted(draw="reward")
    batch = next(iter(aligner.batches(work_on(rows_with([NAN] * 8, [0.0] * 8)))))
    assert sorted(batch["latents"][:, 0, 0, 0].tolist()) == list(range(8))
    assert (batch["weight"] == 0).all()


def test_drawing_by_reward_has_the_same_expected_loss_and_less_noise() -> None:
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(0)) ** 3
    rows = rows_with([NAN] * 40, rewards.tolist())
    error = torch.linspace(1, 2, 40)
    means, spreads = [], []
    for draw in ("uniform", "reward"):
        aligner = RewardWeighted(draw=draw)
        losses = torch.stack([
            reward_weighted_loss(error[batch["latents"][:, 0, 0, 0].long()], batch["weight"]).mean()
            for batch in aligner.batches(work_on(rows, max_steps=3000))
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
    work = work_on(rows_with([NAN] * 10, [0.5] * 10), batch_size=4000)
    batch = work.denoising_batch(
        torch.zeros(4000).long(), work.generator(0), prompt_dropout=0.25, unit=2
    )
    empty = batch.cond["number"] == -1
    assert empty.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(empty[::2], empty[1::2])
    whole = work.denoising_batch(torch.zeros(8).long(), work.generator(0))
    assert (whole.cond["number"] == 1).all()


def test_t_is_uniform_and_spread_over_the_batch() -> None:
    work = work_on(rows_with([NAN], [0.5]))
    rows = torch.zeros(10).long()
    ts = [work.denoising_batch(rows, work.generator(s))["t"] for s in range(500)]
    for t in ts:
        assert (t * 10).long().sort().values.tolist() == list(range(10))
    first = torch.stack(ts)[:, 0]
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    assert first.std() == pytest.approx(12**-0.5, abs=0.03)


def test_rows_of_a_unit_share_t_and_noise() -> None:
    work = work_on(rows_with([1.0, 0.0], [0.9, 0.1]), batch_size=12)
    batch = work.denoising_batch(torch.arange(12) % 2, work.generator(0), unit=3)
    for name in ("t", "noise"):
        units = batch[name].unflatten(0, (4, 3))
        assert (units == units[:, :1]).all()
        assert len(units[:, 0].flatten(1 if name == "noise" else 0).unique(dim=0)) == 4


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.integers(0, 20))
def test_shares_make_up_the_whole(world: int, unit: int, units: int, extra: int) -> None:
    """Own rows and pre-training rows are shared out so that every process has as many."""
    share = -(-units // world) * unit + extra
    n, natural = units * unit, share * world - units * unit
    rows = rows_with([1.0] * 3, [0.5] * 3, n_pretraining=2)
    parts = [work_on(rows, batch_size=n, n_pretraining=natural) for _ in range(world)]
    parts = [dataclasses.replace(w, rank=r, world=world) for r, w in enumerate(parts)]
    mine = [w.share(n, unit) for w in parts]
    rest = [w._pretraining_share(n, unit) for w in parts]
    assert [i for s in mine for i in range(n)[s]] == list(range(n))
    assert [i for s in rest for i in range(s.start, s.stop)] == list(range(natural))
    assert all((s.stop - s.start) % unit == 0 for s in mine)
    assert {a.stop - a.start + b.stop - b.start for a, b in zip(mine, rest, strict=True)} == {share}


def test_a_prediction_is_computed_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(rows_with([1.0, 0.0], [0.9, 0.1]))
    work.policy.keep_reference()
    batch = work.denoising_batch(torch.arange(8) % 2, work.generator(0))
    predict, asked = work.policy.predict, list[int]()
    monkeypatch.setattr(work.policy, "predict", lambda *a: asked.append(1) or predict(*a))
    for _ in range(3):
        work.error(batch)
        work.prediction(batch, "reference")
    assert len(asked) == 2
    assert work.error(batch).requires_grad
    assert not work.prediction(batch, "reference").requires_grad


def test_guided_rows_are_predicted_as_the_policy_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ToyPolicy()
    work = work_on(rows_with([1.0, 0.0], [0.9, 0.1]))
    noisy, t = torch.randn(4, 2, 1, 1), torch.rand(4)
    cond, uncond = policy.encode_prompts(["1", "2", "1", "0"]), policy.encode_prompts([""] * 4)
    batch = Batch.of(cond, uncond, noisy=noisy, t=t, guidance=torch.full((4,), 3.0))
    expected = work.policy.guided(noisy, t, cond, uncond, 3.0)
    torch.testing.assert_close(work.prediction(batch), expected)


def test_sft_trains_on_good_images_only() -> None:
    rows = rows_with([1.0, 0.0, 0.5, NAN, 0.75], [NAN] * 5)
    batch = next(iter(GoodImages().batches(work_on(rows, batch_size=50))))
    assert set(batch["latents"][:, 0, 0, 0].tolist()) == {0.0, 4.0}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [([0.5, -0.2], r"smallest reward is -0\.2"), ([NAN, 0.5], "not finite")],
)
def test_rwr_refuses_rewards(rewards: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardWeighted().weighted_rows(rows_with([1.0, 0.0], rewards))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_dropout": 1.0},
        {"reward_threshold": -0.5},
        {"reward_threshold": NAN},
        {"reward_threshold": math.inf},
    ],
)
def test_bad_options_name_themselves(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        RewardWeighted(**options)


WORDS = [
    (name, option)
    for name in plugin_names("aligner")
    for option, kind in get_type_hints(load_aligner(name)).items()
    if get_origin(kind) is Literal
]


@pytest.mark.parametrize(("name", "option"), WORDS)
def test_a_word_that_an_option_does_not_know_is_refused(name: str, option: str) -> None:
    aligner = load_aligner(name)()
    # past the check of types, which is there in tests only
    object.__setattr__(aligner, option, "white")
    with pytest.raises(UserError, match=f"^{option} 'white'; choose [a-z_]+(,| or) "):
        aligner.__post_init__()
    assert {"kto", "rwr"} <= {name for name, _ in WORDS}


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, NAN])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    for kind in (RewardWeighted, GoodImages, DirectPreference):
        assert kind(prompt_dropout=0.0).prompt_dropout == 0
        with pytest.raises(UserError, match="prompt_dropout"):
            kind(prompt_dropout=dropout)


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
    from sayso.aligners import _contract

    example = _contract.__doc__.split("one's own:\n")[1]
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
        def batches(self, work):
            for _ in work.steps:
                yield work.denoising_batch(torch.randperm(8), work.generator(0))

    with pytest.raises(AssertionError, match="same seed must repeat"):
        check_aligner(Forgetful)

    @dataclasses.dataclass(frozen=True)
    class Summing(GoodImages):
        def loss(self, work, batch):
            loss, scalars = super().loss(work, batch)
            return loss * len(batch), scalars

    with pytest.raises(AssertionError, match="cutting a batch"):
        check_aligner(Summing)


def test_rows_stand_alone_and_every_step_can_be_resumed_unless_an_aligner_says_otherwise() -> None:
    aligner = GoodImages()
    assert (aligner.unit, aligner.period(8)) == (1, 1)
    assert DirectPreference().unit == 2


def test_toy_rows_have_all_kinds() -> None:
    rows = toy_rows()
    assert rows.label[: rows.n_own].isnan().any()
    assert rows.reward[rows.pretraining].isnan().all()
