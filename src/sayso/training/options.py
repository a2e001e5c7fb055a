"""Options of the optimisation loop, the same for every aligner. No torch: the CLI reads it."""

from dataclasses import dataclass
from typing import ClassVar

from sayso.base.errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    """How long, how fast and in what portions to train."""

    portions: ClassVar = frozenset({"micro_batch_size", "checkpoint_every"})
    may_grow: ClassVar = frozenset({"max_steps"})

    max_steps: int = 1000
    """Updates in all; the paper made 10,000."""
    batch_size: int = 64
    """Rows per update, over all processes; the paper's 512."""
    micro_batch_size: int = 0
    """Rows computed at once on one device, to save memory; 0 = a process's whole share."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW. The paper gives none; 1e-5 suits Stable Diffusion 1.5."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from 0."""
    decay_fraction: float = 0.33
    """Last part of the training, in which the learning rate falls to 0; 0 = constant."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights, which is the result; 0 = the last weights."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay. It pulls weights to 0, whatever the rewards say, so it is
    off here (1e-2 is usual): with all rewards 0 the weights do not change."""
    max_grad_norm: float = 1.0
    """Longest gradient; longer ones are scaled down to it. 0 = no limit."""
    checkpoint_every: int = 100
    """Steps between checkpoints, from which a stopped run resumes."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} {getattr(self, name)} is too small; give at least {least}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay {self.ema_decay} is not in [0, 1); try 0.99")
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"decay_fraction {self.decay_fraction} is not in [0, 1]; try 0.33")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning_rate {self.learning_rate} must be above 0; try 1e-5")
        self.micro_batch(processes=1)

    def micro_batch(self, processes: int) -> int:
        """Rows a process computes at once.

        Raises: UserError: if the batch does not divide evenly.
        """
        share, rest = divmod(self.batch_size, processes)
        micro = self.micro_batch_size or share
        if rest or share % micro:
            raise UserError(
                f"batch_size {self.batch_size} is no multiple of {processes} processes × "
                f"micro_batch_size {micro}; change one of them"
            )
        return micro


_LEAST = {
    "max_steps": 1, "batch_size": 1, "micro_batch_size": 0, "warmup_steps": 0,
    "weight_decay": 0, "max_grad_norm": 0, "checkpoint_every": 1,
}  # fmt: skip
