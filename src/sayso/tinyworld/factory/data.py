"""Pre-training scenes: rendered once into the work folder, captioned afresh at every step."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    CaptionNoise,
    Scene,
    noisy_caption,
    random_scene,
)

_CHUNK = 500


def to_row(scene: Scene) -> tuple[int, int, int, int]:
    """Return a scene as numbers: object, colour and background by index, count from 0."""
    return (
        OBJECTS.index(scene.object),
        COLOURS.index(scene.colour),
        scene.count - 1,
        BACKGROUNDS.index(scene.background),
    )


def to_scene(row: np.ndarray) -> Scene:
    """Return the scene that `to_row` numbered."""
    return Scene(OBJECTS[row[0]], COLOURS[row[1]], int(row[2]) + 1, BACKGROUNDS[row[3]])


def _draw_chunk(key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(key)
    scenes = [random_scene(rng) for _ in range(_CHUNK)]
    images = np.stack([render(scene, rng) for scene in scenes])
    return images, np.array([to_row(scene) for scene in scenes], np.uint8)


def chunks(seed: int, first: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and rows of chunks `first` … of the endless stream of `seed`, in order."""
    keys = [(seed, first + i) for i in range(-(-n // _CHUNK))]
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(_draw_chunk, keys)


def scenes(work: Path, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Render `n` scenes, or open them if the work folder has them already.

    Returns: images, uint8 [n, 64, 64, 3], mapped from disk, and rows, uint8 [n, 4].
    """
    images_file, rows_file = work / f"images-{seed}-{n}.npy", work / f"rows-{seed}-{n}.npy"
    if not rows_file.exists():
        parts = list(chunks(seed, 0, n))
        np.save(images_file, np.concatenate([images for images, _ in parts])[:n])
        np.save(rows_file, np.concatenate([rows for _, rows in parts])[:n])
    return np.load(images_file, mmap_mode="r"), np.load(rows_file)


def to_pixels(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Return images in [−1, 1], channels last in memory (faster convolutions on CPUs)."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def captions(
    rows: Int[np.ndarray, "b 4"], rng: np.random.Generator, noise: CaptionNoise
) -> list[str]:
    """Return one careless caption for each scene."""
    return [noisy_caption(to_scene(row), rng, noise) for row in rows]
