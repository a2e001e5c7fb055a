"""The cells of the league: which aligner, with which options, and which sets of them are tried."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Literal

from sayso.base.files import JsonObject
from sayso.base.types import digest
from sayso.cli.demo import TUNE
from sayso.cli.league.config import Size

Kind = Literal["base", "best-of-n", "offline", "online", "rounds", "switch"]
KEPT_UP = "--warmup-steps 5 --ema-decay 0.95 --prompt-dropout 0.2"
"""For trainings of some hundred steps: the average must not lag behind."""
PAPER = "--pretraining-weight 0.15 --pretraining-fraction 0.5"
"""For rwr as in the paper, whose pre-training weight is not given."""
DRAWN = "--images {images} --group-size {group} --warmup-steps 2 --ema-decay 0.9"
"""Of each rollout; the numbers are those of the league's size."""


@dataclass(frozen=True)
class Cell:
    """One entry of the league.

    Args:
        name: of the cell; in file names too.
        aligner: the plug-in.
        options: of every trial.
        trials: the option sets of which one is chosen on validation prompts.
        kind: base and best-of-n (nothing is trained), offline (learns from the base's rated
            images), online (draws images while it trains), rounds, or switch (one of the loop's own
            terms on or off).
        about: one line for the table's foot.
        per_image: rows of each image of a rollout, which make a step; 0 = the league's batch size.
        rows: rows of a step, if they are neither.
        rounds: in how many rounds the budget is spent.
        known_settings: see `settings`; empty = they follow from the above.
        follows: the settings of the cell that rounds and switches are of.
    """

    name: str
    aligner: str
    options: str
    trials: Sequence[str] = field(default=("",))
    kind: Kind = "offline"
    about: str = ""
    per_image: int = 0
    rows: int = 0
    rounds: int = 1
    known_settings: str = ""
    follows: str = ""

    def given(self, size: Size, trial: str) -> str:
        """The options of a trial in a league of that size."""
        group = min(8, size.images // 2)
        third = self.batch_size(size) // 3
        numbers = {"images": size.images, "group": group, "third": third}
        return f"{self.options} {trial}".strip().format(**numbers)

    def batch_size(self, size: Size) -> int:
        """Rows of a step in a league of that size."""
        return self.rows or self.per_image * size.images or size.batch_size

    def identity(self, size: Size) -> JsonObject:
        """All that decides what is done: another name or description is not among it."""
        known = asdict(self) | {"trials": [*self.trials[: size.trials]]}
        ignored = ("name", "about", "known_settings", "follows")
        return {key: value for key, value in known.items() if key not in ignored}

    def settings(self, size: Size) -> str:
        """A digest of all that decides what is done, the same for every seed.

        A cell that follows from one of the best has there all option sets, not the one chosen.
        """
        return self.known_settings or digest([self.identity(size), size.plain])

    @property
    def slug(self) -> str:
        """The name as folders have it."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")


def grid(*choices: Iterable[str]) -> tuple[str, ...]:
    """All combinations of one option from each list, the first list changing slowest."""
    return tuple(" ".join(chosen).strip() for chosen in product(*choices))


def _rates(*values: float) -> list[str]:
    return [f"--learning-rate {value:g}" for value in values]


def _betas(*values: float) -> list[str]:
    return [f"--beta {value:g}" for value in values]


BASE = Cell("base", "", "", kind="base", about="the model as it comes")
BEST = Cell("best set", "", "", kind="best-of-n",
            about="the base's best images by the reward: a set of all that were drawn")  # fmt: skip

TRAINED: tuple[Cell, ...] = (
    Cell(
        "sft", "sft", "--prompt-dropout 0.2", grid(_rates(5e-4, 2e-4, 1e-3, 1e-4)),
        about="the images rated good, all alike",
    ),
    Cell(
        "rwr, as in the paper", "rwr", PAPER,
        grid(_rates(5e-4, 2e-4, 1e-3, 1e-4)),
        about="Lee et al. 2023: every image weighted by the reward, half of a batch pre-training",
    ),
    Cell(
        "rwr, as in the demo", "rwr", TUNE, grid(_rates(5e-4, 2e-4, 1e-3, 1e-4)),
        about="images drawn by reward times label, every prompt alike; half of a batch are "
        "pre-training images, drawn by reward",
    ),
    Cell(
        "rwr, few captions", "rwr",
        "--draw reward --weight product --even --pretraining-weight 0.05 --prompt-dropout 0.2",
        grid(_rates(5e-4, 2e-4, 1e-3, 1e-4)),
        about="the same with an eighth of a batch pre-training images, drawn uniformly",
    ),
    Cell("nft, offline", "nft", KEPT_UP, grid(_rates(5e-4, 1e-3), _betas(1.0, 0.3)),
         about="towards good images and away from bad ones"),
    Cell("dpo", "dpo", KEPT_UP, grid(_rates(2e-4, 5e-4), _betas(50.0, 200.0)),
         about="pairs of a good and a bad image, guarded"),
    Cell("dpo, no guard", "dpo", f"--guard 0 {KEPT_UP}",
         grid(_rates(2e-4, 5e-4), _betas(50.0, 200.0)),
         about="the same without the guard of the better image"),
    Cell("kto", "kto", KEPT_UP, grid(_rates(2e-4, 5e-4), _betas(50.0, 200.0)),
         about="single images, good or bad, felt as gain or loss"),
    Cell("lair", "lair", KEPT_UP, grid(_rates(2e-4, 5e-4), _betas(25.0, 100.0)),
         about="all images of a prompt at once"),
    Cell(
        "nft, online", "nft", f"--score rollouts --times-per-image 2 {DRAWN}",
        grid(_rates(1e-4, 2e-4), _betas(1.0, 0.3)), "online",
        "the same on images drawn and rewarded while training", per_image=2,
    ),
    Cell("awm", "awm", f"--times-per-image 2 {DRAWN}",
         grid(_rates(1e-4, 2e-4, 5e-5, 5e-4)), "online",
         "denoising error times advantage, on images drawn while training", per_image=2),
    Cell("grpo", "grpo", f"--steps-per-image 3 --micro-batch-size {{third}} {DRAWN}",
         grid(_rates(1e-4, 2e-4, 5e-5, 5e-4)), "online",
         "policy gradient on the steps of drawing", per_image=3),
    Cell("direct_align", "direct_align", "--reward-limit 0.9 --warmup-steps 2 --ema-decay 0.95",
         grid(_rates(2e-5, 5e-5, 1e-5, 1e-4)), "online",
         "the gradient of the reward itself, through images recovered in one step"),
)  # fmt: skip

FOLLOWED = 2
"""So many of the best cells are run in rounds, and with the loop's own terms switched."""
ROUNDS = (2, 3)

SWITCHES = {"pretraining_weight": 0.05, "kl_weight": 1.0, "norm_guard": 1.0}
"""The loop's own terms, and the weight each is given where it was off: for kl_weight and norm_guard
that at which an error of the same size counts as much as a denoising error."""


def rounds_of(cell: Cell, n: int) -> Cell:
    """The same budget in n rounds, each drawing and rating new images before it trains."""
    return replace(
        cell, name=f"{cell.name}, {n} rounds", kind="rounds", rounds=n,
        about=f"{cell.name} in {n} rounds, each with new rated images",
    )  # fmt: skip


def switched(cell: Cell, term: str, weight: float, own: int) -> Cell:
    """The cell with one of the loop's own terms off if it was on, and on if it was off.

    The aligner's own rows of a step stay as many: pre-training rows come or go beside them.

    Args:
        weight: what the cell has, with defaults.
        own: rows of a step that are no pre-training rows.
    """
    now = 0.0 if weight else SWITCHES[term]
    options, rows, fraction = cell.options, cell.rows, ""
    if term == "pretraining_weight":
        # beside the rows of before, an eighth more
        more = own // 8 if now else 0
        rows = own + more
        fraction = f" --pretraining-fraction {more / rows:.6f}" if more else ""
        # those of before would be idle, or given twice
        options = re.sub(r"--pretraining-\S+ \S+ ?", "", options).strip()
    options += f" --{term.replace('_', '-')} {now:g}{fraction}"
    word = "off" if weight else f"{now:g}"
    return replace(
        cell, name=f"{cell.name}, {term} {word}", kind="switch", options=options, rows=rows,
        about=f"{cell.name} with {term} {now:g} in place of {weight:g}",
    )  # fmt: skip
