"""How large a league is. No torch: the command line reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sayso.base.errors import UserError
from sayso.base.files import JsonObject


@dataclass(frozen=True)
class LeagueConfig:
    """Compare all aligners on the tiny world: the same ratings, the same budget of network
    evaluations, options chosen on validation prompts, judged once on test prompts."""

    quick: bool = False
    """One seed and a small budget: about an hour on 2 cores."""
    smoke: bool = False
    """Test the whole path at a size too small to show anything."""
    seeds: int = 0
    """How many seeds, from 0 on; each has prompts, images, ratings and rewards of its own. Default:
    3, or 1 with --quick or --smoke. More can be added later."""
    only_seed: int | None = None
    """Run the cells of this seed alone, while other processes, each with a device of its own, run
    others. Rounds and switches wait until all seeds have their other cells; then run it again."""
    only: str = ""
    """Cells to run now, named as their folders and with commas between, such as
    sft,dpo--no-guard; rounds and switches name whole groups. Default: all."""
    retry_failed: bool = False
    """Also run cells again that failed with the same options before."""
    write: str = ""
    """Markdown file to put the tables into, between the lines <!-- league --> and
    <!-- /league -->."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        if self.quick and self.smoke:
            raise UserError("both --quick and --smoke given; give one")
        if self.seeds < 0:
            raise UserError(f"seeds {self.seeds} is not allowed; give 1 or more")
        if self.only_seed is not None and self.only_seed not in range(self.n_seeds):
            raise UserError(
                f"only_seed {self.only_seed} is none of the league's; give 0 to "
                f"{self.n_seeds - 1}, or more --seeds"
            )

    @property
    def size(self) -> "Size":
        return SIZES["smoke" if self.smoke else "quick" if self.quick else "full"]

    @property
    def n_seeds(self) -> int:
        return self.seeds or self.size.seeds

    @property
    def run_now(self) -> Sequence[int]:
        """The seeds whose cells this process runs."""
        return range(self.n_seeds) if self.only_seed is None else [self.only_seed]

    @property
    def wanted(self) -> set[str]:
        """The cells that are asked for by name; empty = all."""
        return {name.strip() for name in self.only.split(",") if name.strip()}


@dataclass(frozen=True)
class Size:
    """How much of everything a league does.

    Args:
        budget: network evaluations of one training, rollouts and new images of rounds included.
        trials: option sets that are tried for each aligner.
        train, validation, test, fidelity: prompts.
        train_images, validation_images, set_size: images per prompt of each; `set_size` test images
            of each model make a set of the blind comparison.
        pool: test images of the base per prompt, from which the best are selected.
        earlier: shares of the budget at which the chosen options are trained too, for the curve.
        seeds: how many, unless told otherwise.
        batch_size: rows of a step.
        images: of a rollout; few, so that there are many rollouts.
        fit: options of the reward.
    """

    name: str
    budget: int
    trials: int
    train: int
    train_images: int
    validation: int
    validation_images: int
    test: int
    set_size: int
    pool: int
    fidelity: int
    seeds: int
    earlier: tuple[float, ...] = (0.25,)
    batch_size: int = 64
    images: int = 64
    fit: str = "--joining interaction --dropout 0.7 --weight-decay 0.3"

    @property
    def plain(self) -> JsonObject:
        return asdict(self) | {"earlier": list(self.earlier)}


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        Size(
            "full", budget=160_000, trials=4, train=320, train_images=6, validation=96,
            validation_images=2, test=192, set_size=4, pool=64, fidelity=512, seeds=3,
            earlier=(0.25, 0.5),
        ),
        Size(
            "quick", budget=32_000, trials=2, train=320, train_images=6, validation=48,
            validation_images=2, test=96, set_size=4, pool=16, fidelity=256, seeds=1,
        ),
        Size(
            "smoke", budget=360, trials=2, train=8, train_images=4, validation=4,
            validation_images=1, test=4, set_size=1, pool=2, fidelity=0, seeds=1, batch_size=8,
            fit="--max-epochs 2", earlier=(0.5,), images=8,
        ),
    )
}  # fmt: skip
