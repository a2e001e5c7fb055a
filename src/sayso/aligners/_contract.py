"""Aligner: an algorithm is one dataclass that says which rows come next and what their loss is.

A whole aligner, for a file of one's own:

    @dataclass(frozen=True)
    class GoodOnly(Aligner):
        needs: ClassVar = frozenset({"data"})

        def batches(self, work):
            good = work.data.own[work.data.label[: work.data.n_own] > 0.5]
            for step in work.steps:
                rng = work.generator(step)
                rows = good[stratified(torch.ones(len(good)), work.batch_size, rng)]
                yield work.denoising_batch(rows, rng)

        def loss(self, work, batch):
            error = work.error(batch)
            return error.mean(), {"error": error.mean()}
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from sayso.aligners._batch import Batch
from sayso.aligners._work import Work
from sayso.base.errors import UserError
from sayso.base.plugins import load_plugin, refuse_bad_options

NEEDS = frozenset(
    {
        "data",
        "bad",
        "pairs",
        "reward",
        "gradient",
        "rollouts",
        "reference",
        "old",
        "weights",
        "pretraining",
    }
)


class Aligner(ABC):
    """An algorithm; a dataclass whose fields are its options.

    `needs` says what it cannot do without, checked before any model loads: "data" (images rated
    good), "bad" (and some rated bad), "pairs" (preferences), "reward" (a learned or fixed reward),
    "gradient" (of the reward, to the images), "rollouts" (images drawn and rewarded between the
    updates), "reference" (the frozen start), "old" (an older self of the policy), "weights"
    (batches that depend on the policy as it is when they are made), "pretraining" (pre-training
    images).

    `defaults` are options of the loop that it is used with unless told otherwise, for those that
    are None there: learning_rate and pretraining_weight.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, float]] = {}

    @property
    def unit(self) -> int:
        """How many rows stay together wherever a batch is cut: 2 for a pair, g for a group."""
        return 1

    @property
    def draws_times(self) -> bool:
        """Whether its rows are at times that --timestep-sampling chooses (`Policy.draw_t`)."""
        return True

    def required(self) -> frozenset[str]:
        """What is needed with these options; overridden where an option lifts a need."""
        return self.needs

    def period(self, batch_size: int) -> int:  # noqa: ARG002 (for those that draw images)
        """Steps from one rollout to the next, after which a run can be resumed; 1 without rollouts.

        Args:
            batch_size: rows of an update, pre-training rows not counted.
        Raises: UserError: if the rows of a rollout do not make whole batches.
        """
        return 1

    def check_shares(self, own: int, rows: int, processes: int) -> None:  # noqa: B027 (most share any number)
        """Check that an update has rows enough, and that processes can share what is drawn.

        Args:
            own: rows of an update, pre-training rows not counted.
            rows: of an update, with them.
            processes: of the launch.
        Raises: UserError: if they cannot, with options that would do.
        """

    @abstractmethod
    def batches(self, work: Work) -> Iterator[Batch]:
        """Yield this process's share of `work.batch_size` rows for each step of `work.steps`.

        The next batch is asked for when the update on the last has been made. A resumed run begins
        with `work.start_step`: what has to be done between two updates is done before the second.
        """

    @abstractmethod
    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the rows of this (micro-)batch, and named scalars for the log.

        The names may differ from call to call; what is logged is the mean of those given.
        """


def load_aligner(name: str) -> type[Aligner]:
    """The aligner class called `name`, or of the user's own file if it ends in ".py".

    Raises: UserError: if there is none, its fields cannot be options, or it needs something
        unknown.
    """
    kind = load_plugin("aligner", name, Aligner)
    refuse_bad_options("aligner", kind)
    if odd := kind.needs - NEEDS:
        raise UserError(f"aligner {kind.__name__} needs {sorted(odd)}; known: {sorted(NEEDS)}")
    return kind
