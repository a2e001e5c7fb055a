"""Measures the judge on pictures never used in training, plain and through the autoencoder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.files import read_json
from sayso.tinyworld import paths
from sayso.tinyworld.judge import Judge, as_images
from sayso.tinyworld.reading import Reading
from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import Scene, random_scene

ATTRIBUTES = ("count", "colour", "object", "background")
_NEEDED = {"fresh": 0.99, "autoencoder": 0.97}


@dataclass(frozen=True)
class JudgeCheck:
    """Options of the measurement."""

    n: int = 2000
    """pictures"""
    seed: int = 20_260
    """fixes the pictures; training uses other seeds"""
    judge: Path | None = None
    """folder of the judge's weights; the shipped ones by default"""
    autoencoder: Path = paths().pipeline / "vae"
    """folder of the autoencoder (any of diffusers' classes)"""


def check(config: JudgeCheck) -> dict[str, dict[str, float]]:
    """Return the share of right readings, by kind of picture and attribute."""
    judge, autoencoder = Judge.load(config.judge), load_autoencoder(config.autoencoder)
    rng = np.random.default_rng(config.seed)
    scenes = [random_scene(rng) for _ in range(config.n)]
    images = as_images([render(scene, rng) for scene in scenes])
    return {
        "fresh": accuracy(judge.read(images), scenes),
        "autoencoder": accuracy(judge.read(reconstruct(images, autoencoder)), scenes),
    }


def accuracy(readings: list[Reading], scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures of which the reading is right; object and colour: of every object."""
    pairs = list(zip(readings, scenes, strict=True))
    right = {
        "count": [len(r.objects) == s.count for r, s in pairs],
        "colour": [{o.colour for o in r.objects} == {s.colour} for r, s in pairs],
        "object": [{o.object for o in r.objects} == {s.object} for r, s in pairs],
        "background": [r.background == s.background for r, s in pairs],
    }
    return {name: float(np.mean(right[name])) for name in ATTRIBUTES}


@torch.no_grad()
def reconstruct(
    images: Float[Tensor, "b 3 h w"], autoencoder: Any, batch_size: int = 100
) -> Float[Tensor, "b 3 h w"]:
    """Send pictures in [0, 1] through an autoencoder of diffusers and back."""
    out = []
    for part in images.split(batch_size):
        code = autoencoder.encode(part * 2 - 1)
        latents = code.latents if hasattr(code, "latents") else code.latent_dist.mode()
        out.append((autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(out)


def load_autoencoder(folder: Path) -> Any:
    """Load whichever autoencoder of diffusers the folder's config names, in fp32.

    Raises: UserError: if the folder holds none.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"no autoencoder in {folder}; give its folder with --autoencoder")
    name = read_json(folder / "config.json").get("_class_name", "")
    if not hasattr(diffusers, name):
        raise UserError(f"{folder} names {name!r}, which diffusers does not have")
    loaded = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32)
    return loaded.eval()


def main() -> None:
    """Print the table; the exit code is 1 if any share is below what is needed."""
    config = tyro.cli(JudgeCheck, description=__doc__)
    try:
        shares = check(config)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table = Table(title=f"The judge on {config.n} images never used in training")
    for column in ("pictures", *ATTRIBUTES, "needed"):
        table.add_column(column)
    for kind, row in shares.items():
        table.add_row(kind, *(f"{row[a]:.2%}" for a in ATTRIBUTES), f"≥ {_NEEDED[kind]:.0%}")
    Console().print(table)
    if any(share < _NEEDED[kind] for kind, row in shares.items() for share in row.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
