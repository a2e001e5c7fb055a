"""One training of a cell: as many steps as its budget of network evaluations allows."""

import shlex
from dataclasses import dataclass
from typing import Any

from sayso.base.errors import UserError
from sayso.base.types import digest
from sayso.cli.league.cells import Cell
from sayso.cli.league.ground import REWARD, Ground, run_line


@dataclass(frozen=True)
class Start:
    """What a training starts from: a model, the models whose images it learns from, a reward."""

    model: str = "base"
    samples_of: str = ""
    reward: str = REWARD

    def options(self, *, draws: bool) -> str:
        """As flags; an aligner that draws its images itself is given none."""
        found = f"--model {self.model} --reward {self.reward}"
        return found if draws or not self.samples_of else f"{found} --samples-of {self.samples_of}"


@dataclass(frozen=True)
class Trained:
    """A finished training: its run, what it was given and what it took.

    `forecast` is what the steps were expected to cost, `evaluations` what they did cost, with new
    images that were drawn for it.
    """

    run: str
    options: str
    steps: int
    forecast: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A cell's options taken apart, before anything is trained.

    `own` are the rows of a step that are no pre-training rows.
    """

    line: str
    period: int
    draws: bool
    own: int
    terms: dict[str, float]


def steps_within(budget: int, cost: int, period: int) -> int:
    """How many steps a budget allows, in whole periods, one at least.

    Args:
        budget: network evaluations.
        cost: of one period.
        period: steps from one rollout to the next.
    Raises: UserError: if the budget is used up before.
    """
    if budget < cost:
        raise UserError(
            f"{budget} network evaluations are left, and the first {period} steps need {cost}"
        )
    return budget // cost * period


def plan_of(ground: Ground, cell: Cell, trial: str, start: Start | None = None) -> Plan:
    """What `sayso align` makes of a cell's options.

    Raises: UserError: if this version has no such aligner or option, or refuses its value.
    """
    from sayso.cli.options import parse
    from sayso.stages.align import AlignConfig
    from sayso.training.needs import check_options

    options, rows = cell.given(ground.size, trial), cell.batch_size(ground.size)
    line = f"--aligner {cell.aligner} --batch-size {rows} {options}"
    parsed = parse("align", AlignConfig, "aligner", [ground.where, *shlex.split(line)])
    config = parsed.config.for_aligner(parsed.options.defaults)
    config.check()
    check_options(config, parsed.options, processes=1)
    own = config.batch_size - config.n_pretraining(parsed.options.unit)
    needs = parsed.options.required()
    draws = "rollouts" in needs and not needs & {"data", "pairs"}
    terms = {n: getattr(config, n) for n in ("pretraining_weight", "kl_weight", "norm_guard")}
    given = (start or Start()).options(draws=draws)
    return Plan(f"{line} {given}", parsed.options.period(own), draws, own, terms)


def cost_of_a_period(ground: Ground, cell: Cell) -> int:
    """What one period asks of the network: measured, in a run as short as that.

    The option sets of a cell differ in nothing that changes it, nor does the start.
    """
    plan = plan_of(ground, cell, cell.trials[0])
    name = f"probe-{digest([plan.line, ground.identity], 8)}"
    run = _align(ground, plan.line, name, plan.period)
    return int(run.result["evaluations"])


def train(
    ground: Ground, cell: Cell, trial: str, budget: int, start: Start | None = None,
    drawn: int = 0,
) -> Trained:  # fmt: skip
    """Train a cell with one of its option sets.

    Args:
        budget: network evaluations, `drawn` included.
        drawn: those spent on new images before.
    Raises: UserError: as `align`, or if the budget does not suffice for a step.
    """
    plan = plan_of(ground, cell, trial, start)
    cost = cost_of_a_period(ground, cell)
    steps = steps_within(budget - drawn, cost, plan.period)
    name = f"{cell.slug}-{digest([plan.line, steps, ground.identity], 8)}"
    run = _align(ground, plan.line, name, steps)
    return Trained(
        run.name, cell.given(ground.size, trial), steps,
        drawn + steps // plan.period * cost, drawn + int(run.result["evaluations"]),
        float(run.result["seconds"]),
    )  # fmt: skip


def _align(ground: Ground, line: str, name: str, steps: int) -> Any:
    return run_line(
        f"align {ground.where} {line} --max-steps {steps} --checkpoint-every 50 --name {name}"
    )
