"""The judge's eye: a small convolutional detector on a grid of 16×16 cells."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sayso.tinyworld.scenes import BACKGROUNDS, COLOURS, OBJECTS

GRID = 16
CELL_PX = 4
_FINE, _CELL, _WIDE = 24, 48, 80  # channels at 32×32, 16×16 and 8×8


class Maps(NamedTuple):
    """Logits of the network; objectness, object and colour per cell, background per picture."""

    objectness: Float[Tensor, "b 16 16"]
    object: Float[Tensor, "b objects 16 16"]
    colour: Float[Tensor, "b colours 16 16"]
    background: Float[Tensor, "b backgrounds"]
    features: Float[Tensor, "b 128"]


class _Block(nn.Module):
    """Residual pair of 3×3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(x + self.norms[1](self.second(y)))


def _shrink(before: int, after: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class JudgeNetwork(nn.Module):
    """64×64 picture → what stands in each cell, and before which background."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_shrink(3, _FINE), _Block(_FINE))
        self.cell = nn.Sequential(_shrink(_FINE, _CELL), _Block(_CELL))
        self.wide = nn.Sequential(_shrink(_CELL, _WIDE), _Block(_WIDE), _Block(_WIDE))
        self.widen = nn.Conv2d(_WIDE, _CELL, 1)
        self.neck = _Block(_CELL)
        self.per_cell = nn.Conv2d(_CELL, 1 + len(OBJECTS) + len(COLOURS), 1)
        self.per_picture = nn.Linear(_CELL + _WIDE, len(BACKGROUNDS))

    def forward(self, images: Float[Tensor, "b 3 64 64"]) -> Maps:
        """Read pictures with values in [0, 1]."""
        cell = self.cell(self.fine(images * 2 - 1))
        wide = self.wide(cell)
        neck = self.neck(cell + F.interpolate(self.widen(wide), scale_factor=2.0))
        features = torch.cat([cell.mean((2, 3)), wide.mean((2, 3))], 1)  # neck would repeat wide
        what = self.per_cell(neck)
        objects, colours = what[:, 1:].split([len(OBJECTS), len(COLOURS)], 1)
        return Maps(what[:, 0], objects, colours, self.per_picture(features), features)
