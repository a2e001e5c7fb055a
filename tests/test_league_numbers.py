"""The league's budget, cells and statistics, by hand."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sayso.base import extras
from sayso.base.errors import UserError
from sayso.base.plugins import plugin_names
from sayso.cli import commands as cli
from sayso.cli.league import league, rounds
from sayso.cli.league.cells import BASE, SWITCHES, TRAINED, Cell, grid, rounds_of, switched
from sayso.cli.league.config import SIZES, LeagueConfig
from sayso.cli.league.ground import Ground
from sayso.cli.league.records import Record, Records, best_cells, why_failed
from sayso.cli.league.results import results_of
from sayso.cli.league.training import Start, Trained, plan_of, steps_within
from sayso.metrics.seeds import best_of_n, mean_over_seeds, win_or_lose
from sayso.reporting import league_tables as tables
from sayso.study.info import StudyInfo
from sayso.study.study import Study

SMOKE = SIZES["smoke"]
SETTINGS = {cell.name: cell.settings(SMOKE) for cell in (BASE, *TRAINED)}

# statistics


def test_a_mean_over_seeds_weighs_seeds_and_not_prompts() -> None:
    found = mean_over_seeds([np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0])])
    assert found.value == 0.5
    # two seeds without any spread within: drawn are both, or one of them twice
    assert (found.low, found.high) == (0, 1)


def test_one_seed_draws_its_prompts() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.2, 400)
    found = mean_over_seeds([values])
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=2e-3)
    assert found.high == pytest.approx(values.mean() + half, abs=2e-3)
    assert mean_over_seeds([np.ones(5)]) == mean_over_seeds([np.ones(9)])


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    alike = [rng.normal(0.5, 0.1, 50) for _ in range(4)]
    apart = [own + shift for own, shift in zip(alike, (-0.3, -0.1, 0.1, 0.3), strict=True)]
    narrow, wide = mean_over_seeds(alike), mean_over_seeds(apart)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize("values", [[], [np.array([])], [np.ones(2), np.array([])]])
def test_a_mean_of_nothing_is_refused(values: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        mean_over_seeds(values)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_choices(n: int) -> None:
    reward, true = np.array([0.3, 0.9, 0.3, 0.1, 0.5]), np.array([1, 0, 0, 1, 1])
    by_hand = []
    for chosen in itertools.combinations(range(5), n):
        top = max(chosen, key=lambda i: (reward[i], -i))
        by_hand.append(true[top])
    assert best_of_n(reward, true, n) == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("n", [0, 6])
def test_best_of_more_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="n must be from 1 to 5"):
        best_of_n(np.ones(5), np.ones(5), n)


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [((6, 3, 0), 1), ((5, 4, 0), 0), ((0, 3, 6), -1), ((0, 9, 0), 0), ((4, 0, 5), 0)],
)
def test_six_of_nine_raters_decide(votes: tuple[int, int, int], verdict: int) -> None:
    assert win_or_lose(*votes) == verdict


# budget


@pytest.mark.parametrize(
    ("budget", "cost", "period", "steps"), [(1000, 192, 1, 5), (1000, 300, 4, 12), (300, 300, 4, 4)]
)
def test_a_budget_pays_for_whole_periods(budget: int, cost: int, period: int, steps: int) -> None:
    assert steps_within(budget, cost, period) == steps


def test_a_budget_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="299 network evaluations are left, and the first 4 steps"):
        steps_within(299, 300, 4)


# cells


def test_every_aligner_plays_with_as_many_trials_as_any_other() -> None:
    assert {cell.aligner for cell in TRAINED} >= set(plugin_names("aligner"))
    assert {len(set(cell.trials)) for cell in TRAINED} == {max(s.trials for s in SIZES.values())}
    assert len({cell.slug for cell in TRAINED}) == len(TRAINED)
    assert grid(["a", "b"], ["1", "2"]) == ("a 1", "a 2", "b 1", "b 2")


def test_a_cell_is_what_it_does_and_not_what_it_is_called() -> None:
    cell, quick = TRAINED[0], SIZES["quick"]
    same = replace(cell, name="x", about="y", trials=(*cell.trials[:2], "--beta 1"))
    assert same.identity(quick) == cell.identity(quick)
    assert same.identity(SIZES["full"]) != cell.identity(SIZES["full"])
    for change in ({"options": "--o 1"}, {"rows": 3}, {"rounds": 2}, {"trials": cell.trials[1:]}):
        assert replace(cell, **change).identity(quick) != cell.identity(quick)  # type: ignore[arg-type]


@pytest.mark.parametrize("term", SWITCHES)
def test_a_term_is_switched_to_what_it_was_not(term: str) -> None:
    flag = f"--{term.replace('_', '-')}"
    off = switched(TRAINED[0], term, 0.3, 64)
    assert off.name == f"sft, {term} off"
    assert off.options == f"{TRAINED[0].options} {flag} 0"
    on = switched(TRAINED[0], term, 0.0, 64)
    assert on.name == f"sft, {term} {SWITCHES[term]:g}"
    assert f"{flag} {SWITCHES[term]:g}" in on.options


def test_pretraining_rows_come_and_go_beside_the_others() -> None:
    on = switched(TRAINED[0], "pretraining_weight", 0.0, 64)
    share = float(on.options.split("--pretraining-fraction ")[1])
    assert on.rows - round(share * on.rows) == 64
    off = switched(TRAINED[2], "pretraining_weight", 1.0, 32)
    assert off.rows == 32
    assert off.options.split("--pretraining")[1:] == ["-weight 0"]
    assert switched(TRAINED[1], "kl_weight", 0.15, 32).rows == TRAINED[1].rows


def test_the_best_cells_need_every_seed(tmp_path: Path) -> None:
    records = Records(tmp_path, SMOKE)
    cells = [Cell(name, "sft", "") for name in ("a", "b", "c", "d")]
    rewards = {"a": (0.1, 0.2), "b": (0.5, 0.1), "c": (0.9, None), "d": (0.4, 0.4)}
    for cell in cells:
        for seed, reward in enumerate(rewards[cell.name]):
            state: Any = "failed" if reward is None else "finished"
            facts = {} if reward is None else {"reward": reward}
            made = Record(cell.name, seed, "i", state, facts=facts, settings=cell.settings(SMOKE))
            records.write(cell.slug, made)
    assert [cell.name for cell in best_cells(records, cells, range(2), 2)] == ["d", "b"]
    assert [cell.name for cell in best_cells(records, cells, range(1), 2)] == ["c", "b"]
    assert rounds_of(cells[0], 3).name == "a, 3 rounds"


def test_what_a_cell_may_fail_of() -> None:
    assert why_failed(UserError("the loss is\nnot finite")) == "the loss is not finite"
    assert "out of memory" in why_failed(MemoryError())
    try:
        _ = [][1]
    except IndexError as error:
        told = why_failed(error)
    assert told.startswith("IndexError: list index out of range (test_league_numbers.py, line ")
    with pytest.raises(OSError, match="full"):
        why_failed(OSError(28, "full"))


# tables


def record(cell: str, true: list[int], **facts: Any) -> Record:
    scores = [
        {"prompt_id": f"p{i // 2}", "seed": i, "split": "seen" if i < 4 else "unseen",
         "category": "count", "true": bool(t), "reward": 0.25 + t / 2}
        for i, t in enumerate(true)
    ]  # fmt: skip
    facts = {"per_image": 12, **facts}
    return Record(cell, 0, "i", "finished", facts=facts, scores=scores, settings=SETTINGS[cell])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base that is true 2 times of 8, a cell that is 5 times, and one that failed."""
    records = Records(tmp_path, SMOKE)
    records.write("base", record("base", [1, 0, 0, 0, 1, 0, 0, 0]))
    votes = [
        {"question": q, "prompt_id": f"p{i}", "win": win, "tie": 0, "lose": 9 - win}
        for q, wins in (("alignment", (9, 9, 9, 5)), ("fidelity", (0, 0, 0, 0)))
        for i, win in enumerate(wins)
    ]
    sft = record("sft", [1, 1, 0, 0, 1, 1, 1, 0], evaluations=30, forecast=24,
                 trial="--learning-rate 1", reward=0.5, distance=0.1, seconds=2.0)  # fmt: skip
    records.write("sft", replace(sft, votes=votes))
    failed = replace(record("dpo", []), state="failed", reason="the loss is not finite")
    records.write("dpo", failed)
    records.announce([*(c for c in TRAINED if c.name in ("sft", "dpo", "kto"))])
    return tmp_path


def test_numbers_of_a_small_league_by_hand(folder: Path) -> None:
    found = {c["name"]: c for c in results_of(folder, LeagueConfig(smoke=True))["cells"]}
    assert list(found) == ["base", "best of 1", "best of 2", "sft", "dpo"]
    # the first image of every prompt, whose seeds the trained cells of this size have
    assert found["base"]["truth"]["all"]["value"] == 0.5
    assert found["base"]["reward"]["value"] == 0.5
    assert found["best of 1"]["truth"]["all"]["value"] == 0.25
    assert found["best of 1"]["gain"]["all"]["value"] == 0
    # of two images the one with the higher reward, which here is the true one
    assert found["best of 2"]["truth"]["all"]["value"] == 0.5
    assert found["best of 2"]["gain"]["all"]["value"] == 0.25
    sft = found["sft"]
    assert sft["truth"]["all"]["value"] == 5 / 8
    assert sft["gain"]["all"]["value"] == pytest.approx(3 / 8)
    assert sft["gain"]["seen"]["value"] == pytest.approx(1 / 4)
    assert sft["gain"]["colour"] is None
    assert sft["net"]["alignment"]["value"] == 3 / 4
    assert sft["net"]["fidelity"]["value"] == -1
    assert sft["reward_gain"]["value"] == pytest.approx(3 / 16)
    assert found["dpo"]["state"] == "failed"


def test_the_tables_say_who_wins_and_what_failed(folder: Path) -> None:
    results = results_of(folder, LeagueConfig(smoke=True))
    told = tables.conclusions(results)
    assert told[0].startswith("sft is most often true to its prompts: 62 % (")
    assert "It is better than best of 2 by the same reward." in told
    assert "Raters found less natural than the base: sft." in told
    assert tables.unfinished(results) == [("dpo", "the loss is not finite")]
    assert tables.spending(results) == (
        "Every training spent at least 8.3 % of the budget, and what was forecast to within 25.0 %."
    )
    text = tables.markdown(results)
    assert "| sft | 62 % (" in text
    assert "- dpo: the loss is not finite" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("| sft")}
    assert len(tables.COLUMNS) + 1 in columns


def test_a_reward_that_rose_while_the_truth_fell_is_named(folder: Path) -> None:
    bad = record("kto", [0] * 8, evaluations=30, reward=0.4)
    scores = [row | {"reward": 0.9} for row in bad.scores]
    Records(folder, SMOKE).write("kto", replace(bad, scores=scores))
    results = results_of(folder, LeagueConfig(smoke=True))
    # the base's four prompts lose a half each in two, so the interval ends at 0
    assert not any("exploited" in line for line in tables.conclusions(results))
    kto = next(c for c in results["cells"] if c["name"] == "kto")
    kto["gain"]["all"]["high"] = -0.01
    kto["net"] = {"fidelity": None}
    assert any("exploited" in line and "kto" in line for line in tables.conclusions(results))


def test_an_empty_league_says_so(tmp_path: Path) -> None:
    results = results_of(tmp_path, LeagueConfig(smoke=True))
    assert tables.conclusions(results) == ["No trained cell has finished for every seed yet."]
    assert "No trained cell has finished for every seed yet." in tables.markdown(results)


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n")
    tables.put_between_markers(page, "| new |")
    tables.put_between_markers(page, "| newer |")
    assert page.read_text() == f"before\n{tables.START}\n\n| newer |\n{tables.END}\nafter\n"
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(UserError, match="has no lines <!-- league -->"):
        tables.put_between_markers(tmp_path / "bare.md", "x")
    with pytest.raises(UserError, match="cannot be read"):
        tables.put_between_markers(tmp_path / "none.md", "x")


@pytest.mark.parametrize(
    ("part", "told"),
    [(None, "–"), ({"value": 0.064, "low": -0.012, "high": 0.1}, "+6 (−1 to +10)"),
     ({"value": 0.0, "low": -0.001, "high": 0.004}, "0 (0 to 0)")],
)  # fmt: skip
def test_points(part: dict[str, float] | None, told: str) -> None:
    assert tables.points(part) == told


@pytest.mark.parametrize(
    ("options", "says"),
    [({"quick": True, "smoke": True}, "both --quick and --smoke"), ({"seeds": -1}, "seeds -1")],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LeagueConfig(**options).check()
    assert LeagueConfig(quick=True).n_seeds == 1
    assert LeagueConfig().n_seeds == 3
    assert not math.isnan(SIZES["full"].budget)


# options


@pytest.mark.parametrize("cell", [c for c in TRAINED if c.aligner in plugin_names("aligner")])
def test_every_trial_and_switch_is_what_align_accepts(cell: Cell, tmp_path: Path) -> None:
    """And a rollout, if there is one, makes whole batches, with pre-training rows or without."""
    ground = Ground(Study(tmp_path, StudyInfo("x")), SIZES["quick"], 0, "i", 12)
    plans = [plan_of(ground, cell, trial) for trial in cell.trials]
    assert {plan.period for plan in plans} == {plans[0].period}
    assert len({plan.line for plan in plans}) == len(cell.trials)
    for term, weight in plans[0].terms.items():
        other = switched(cell, term, weight, plans[0].own)
        changed = plan_of(ground, other, cell.trials[0])
        assert (changed.terms[term] > 0) != (weight > 0)
        assert changed.period == plans[0].period
        assert changed.own == plans[0].own, "one thing changes, and not how much is learned from"
        assert {k: v for k, v in changed.terms.items() if k != term} == {
            k: v for k, v in plans[0].terms.items() if k != term
        }


def test_a_dry_run_says_what_a_league_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["league", "/nowhere", "--quick", "--dry-run"])
    told = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    n = len(TRAINED)
    assert told["cells per seed"] == str(2 + n + 2 * 5)
    assert told["trainings with the whole budget"] == str(2 * n + 10)
    assert told["network evaluations of trainings, at most"] == str(round(32_000 * (2.25 * n + 10)))
    assert told["images, test"] == str(96 * 4 * (2 * n + 10))
    assert not Path("/nowhere").exists()


# rounds


def test_rounds_share_the_budget_and_learn_from_all_that_was_rated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground(Study(tmp_path, StudyInfo("x")), SIZES["quick"], 0, "i", 12)
    lines: list[str] = []
    parts: list[tuple[int, int, Start]] = []

    def trained(
        _ground: Ground, _cell: Cell, _trial: str, budget: int, start: Start, drawn: int
    ) -> Trained:
        parts.append((budget, drawn, start))
        run = f"runs/align-{len(parts)}"
        return Trained(run, "--o 1", 5, budget - 100, budget - 90, 2.0)

    monkeypatch.setattr(rounds, "train", trained)
    monkeypatch.setattr(rounds, "run_line", lines.append)
    cell = rounds_of(replace(TRAINED[2], trials=("--learning-rate 1e-3",)), 3)
    last, ratings = rounds.train_in_rounds(ground, cell)
    part, drawn = 32_000 // 3, 320 * 12
    assert [(budget, spent) for budget, spent, _ in parts] == [(part, 0), *[(part, drawn)] * 2]
    starts = [start for _, _, start in parts]
    assert starts[0] == Start()
    assert [start.model for start in starts[1:]] == ["runs/align-1", "runs/align-2"]
    assert starts[2].samples_of == "base,runs/align-1,runs/align-2"
    assert "--samples-of" not in starts[2].options(draws=True)
    assert f"--samples-of {starts[2].samples_of}" in starts[2].options(draws=False)
    # each part has a reward of its own, fitted to the ratings of these models and no others
    assert len({start.reward for start in starts}) == 3
    fits = [line for line in lines if line.startswith("fit ")]
    assert [line.split("--samples-of ")[1].split()[0] for line in fits] == [
        "base,runs/align-1", "base,runs/align-1,runs/align-2",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == ["generate", "rate", "fit"] * 2
    assert ratings == 320 * 6 + 2 * 320
    assert last == Trained("runs/align-3", "--o 1", 15, 3 * (part - 100), 3 * (part - 90), 6.0)


def test_a_reason_of_several_seeds_is_said_once(tmp_path: Path) -> None:
    records = Records(tmp_path, SMOKE)
    for seed, state in enumerate(("failed", "failed", "finished")):
        records.write("base", replace(record("base", [1] * 8), seed=seed))
        made = record("sft", [1] * 8, reward=0.1, trials=[{"trial": "--x 1", "failed": "no"}])
        reason = "" if state == "finished" else "no memory"
        of_seed: Any = {"seed": seed, "state": state, "reason": reason}
        records.write("sft", replace(made, **of_seed))
    records.announce([TRAINED[0]])
    found = tables.unfinished(results_of(tmp_path, LeagueConfig(smoke=True, seeds=3)))
    assert found == [("sft, seed 0, seed 1", "no memory"), ("sft, --x 1", "no")]


def test_numbers_of_fewer_seeds_than_the_league_has_say_so(tmp_path: Path) -> None:
    records = Records(tmp_path, SMOKE)
    for seed in (0, 1):
        records.write("base", replace(record("base", [1] * 8), seed=seed))
    records.write("sft", replace(record("sft", [1] * 8, reward=0.1), seed=1))
    records.announce([TRAINED[0]])
    results = results_of(tmp_path, LeagueConfig(smoke=True, seeds=2))
    assert [cell["name"] for cell in results["cells"]][-1] == "sft (seed 1)"
    assert tables.ranked(results) == []
    assert len(tables.ranked(results | {"seeds": [1]})) == 1


def test_without_matplotlib_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(UserError, match=r'league needs matplotlib; .*"sayso\[league\]"'):
        league(tmp_path / "l", LeagueConfig(smoke=True))
    assert not (tmp_path / "l").exists()
