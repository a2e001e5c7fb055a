"""Several rounds: draw with the model so far, let the new images be rated, learn from all."""

from sayso.base.types import digest
from sayso.cli.league.cells import Cell
from sayso.cli.league.ground import Ground, run_line
from sayso.cli.league.training import Start, Trained, plan_of, train


def train_in_rounds(ground: Ground, cell: Cell) -> tuple[Trained, int]:
    """Spend the cell's budget in as many equal parts as it has rounds.

    From the second round on, a part pays for new images of the model so far, one for each train
    prompt. They are rated, a reward is fitted to all ratings so far, and training goes on from that
    model on the images of all.

    Returns: the last training, with the evaluations and seconds of all, and how many ratings were
        used.
    Raises: UserError: if a part does not pay for its images and a step.
    """
    trial, part, drawn = cell.trials[0], ground.size.budget // cell.rounds, 0
    start, models, done = Start(), ["base"], list[Trained]()
    for n in range(cell.rounds):
        if n:
            drawn = ground.size.train * ground.per_image
            start = _next_start(ground, cell, models, n)
        done.append(train(ground, cell, trial, part, start, drawn))
        models.append(done[-1].run)
    last = done[-1]
    new = (cell.rounds - 1) * ground.size.train
    return (
        Trained(
            last.run, last.options, sum(t.steps for t in done), sum(t.forecast for t in done),
            sum(t.evaluations for t in done), sum(t.seconds for t in done),
        ),
        ground.size.train * ground.size.train_images + new,
    )  # fmt: skip


def _next_start(ground: Ground, cell: Cell, models: list[str], n: int) -> Start:
    """Draw and rate images of the last model, and fit a reward to them and those before."""
    where, model = ground.where, models[-1]
    run_line(f"generate {where} --prompts train --per-prompt 1 --model {model}")
    run_line(f"rate {where} --simulated --prompts train --model {model}")
    # all ratings of the study are fitted to; other cells' new ones must not be among them
    plan = plan_of(ground, cell, cell.trials[0])
    name = f"{cell.slug}-{n}-{digest([plan.line, ground.identity, models], 8)}"
    run_line(f"fit {where} {ground.size.fit} --samples-of {','.join(models)} --name {name}")
    return Start(model, ",".join(models), f"runs/fit-{name}")
