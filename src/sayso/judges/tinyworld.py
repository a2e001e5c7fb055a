"""The tiny world's judge: reads count, colour, object and background off the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base.errors import UserError
from sayso.base.types import Prompt
from sayso.base.worlds import World, find_world
from sayso.judges import Judge, Verdict
from sayso.study.study import Study

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclass
class TinyWorld(Judge):
    """Reads images of the tiny world with a small network of its own.

    The prompt is true if there are objects, all of them are of the requested kind and colour, and
    count and background are as requested. The network shares no weights with any reward.
    """

    @property
    def title(self) -> str:
        return "read by the tiny world's judge"

    @property
    def caveat(self) -> str:
        return (
            "The judge reads images of the tiny world and gets a few in a hundred wrong; it "
            "shares no weights with the reward. Outside the tiny world, only people can take its "
            "place."
        )

    def understands(self, prompt: Prompt) -> bool:
        """Prompts of the world's own grammar, whose slots say what to look for."""
        return _world().knows(prompt)

    def folders(self, study: Study) -> list[Path]:  # noqa: ARG002 (the same for all studies)
        """The shipped weights."""
        return [_world().reader_weights]

    def prepare(
        self,
        study: Study,  # noqa: ARG002 (the same for all studies)
        device: "torch.device | str" = "cpu",
    ) -> None:
        """Load the network."""
        self._reader: Any = _world().reader(device)

    def verdicts(
        self, images: "Float[Tensor, 'b 3 h w']", prompts: Sequence[Prompt]
    ) -> list[Verdict]:
        """Read each picture; other sizes than 64×64 are resized first."""
        read = self._reader.verdicts(images, prompts)
        return [Verdict(said.true, said.certainty, said.why) for said in read]


def _world() -> World:
    """The world, through the registry: its own modules stand above the judges."""
    world = find_world("tinyworld")
    if world is None:
        raise UserError("this installation lacks the tiny world; choose another --judge")
    return world
