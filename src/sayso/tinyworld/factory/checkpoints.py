"""Interrupted training continues: state goes to disk under a temporary name, then is renamed."""

import time
from pathlib import Path
from typing import Any, Protocol

import torch

from sayso.base import files


class Stateful(Protocol):
    """Anything with torch's pair of state methods."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Checkpoint:
    """The resumable state of one training: a step and named parts."""

    def __init__(self, file: Path, every_s: float = 120, **parts: Stateful) -> None:
        self.file, self.every_s, self.parts = file, every_s, parts
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Restore the parts; returns the number of finished steps, 0 if there is no state."""
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int) -> None:
        """Write the state after `step` finished steps."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with files.new_file(self.file) as temporary:
            torch.save({"step": step, **state}, temporary)
        self._saved_at = time.monotonic()

    def maybe_save(self, step: int) -> None:
        """Save if the last save is `every_s` seconds ago."""
        if time.monotonic() - self._saved_at > self.every_s:
            self.save(step)


def learning_rate_factor(step: int, steps: int, warm_up: int, decay: float) -> float:
    """Rise linearly, stay at 1, fall linearly to 0 over the last `decay` share of the steps."""
    return max(0.0, min(1.0, (step + 1) / warm_up, (steps - step) / (decay * steps)))
