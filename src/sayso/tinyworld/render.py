"""Draws scenes: crisp objects of one colour before soft scenery, a few milliseconds each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sayso.tinyworld.drawing import Part, Rgb, parts, tones
from sayso.tinyworld.scenery import scenery
from sayso.tinyworld.scenes import Scene

_CANVAS = 256  # everything is drawn at four times 64 pixels and averaged down
_SCALE = 4
_GAP_PX = 2.5
_LINE_PX = 0.85
# longer side of an object in pixels of a 64-pixel picture, by number of objects
_SIZES_PX = {1: (26, 36), 2: (22, 27), 3: (18, 22), 4: (16.5, 20), 5: (15.5, 18)}
_WHEELS: tuple[Rgb, Rgb] = ((36, 34, 40), (186, 188, 196))
_HUE_JITTER = 7.0


class Centre(NamedTuple):
    """Where an object stands: the middle of its box, in pixels, and what it is."""

    x: float
    y: float
    object: str
    colour: str


class _Placed(NamedTuple):
    points: list[np.ndarray]
    box: tuple[float, float, float, float]


def render(scene: Scene, rng: np.random.Generator, image_size_px: int = 64) -> np.ndarray:
    """Return a picture of the scene, uint8 [image_size_px, image_size_px, 3].

    Seeded by `rng` only. Objects neither touch each other nor the border.
    """
    return render_with_centres(scene, rng, image_size_px)[0]


def render_with_centres(
    scene: Scene, rng: np.random.Generator, image_size_px: int = 64
) -> tuple[np.ndarray, list[Centre]]:
    """Return the picture of `render` and where its objects stand."""
    items = [(scene.object, scene.colour)] * scene.count
    return compose(items, scene.background, rng, image_size_px)


def compose(
    items: Sequence[tuple[str, str]],
    background: str,
    rng: np.random.Generator,
    image_size_px: int = 64,
) -> tuple[np.ndarray, list[Centre]]:
    """Draw any zero to five (object, colour) pairs, alike or mixed, before a background.

    Returns: uint8 [image_size_px, image_size_px, 3], and the centres of the objects.
    """
    image = scenery(background, rng).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    placed = _place([name for name, _ in items], rng)
    shared = rng.normal(0, _HUE_JITTER, 3).clip(-12, 12)
    for (name, colour), where in zip(items, placed, strict=True):
        jitter = (shared + rng.normal(0, 3, 3)) * (0.35 if colour in ("white", "black") else 1)
        _draw_object(draw, parts(name), where.points, tones(colour, jitter))
    if image_size_px == _CANVAS // _SCALE:
        small = image.reduce(_SCALE)
    else:
        small = image.resize((image_size_px, image_size_px), Image.Resampling.BOX)
    ratio = image_size_px / _CANVAS
    centres = [
        Centre((w.box[0] + w.box[2]) / 2 * ratio, (w.box[1] + w.box[3]) / 2 * ratio, name, colour)
        for (name, colour), w in zip(items, placed, strict=True)
    ]
    return np.array(small), centres


def _place(names: list[str], rng: np.random.Generator) -> list[_Placed]:
    """Find a free place for each object; after many misses all are redrawn a little smaller."""
    shrink = 1.0
    while True:
        found = _try_place(names, rng, shrink)
        if found is not None:
            return found
        shrink *= 0.985


def _try_place(names: list[str], rng: np.random.Generator, shrink: float) -> list[_Placed] | None:
    low, high = _SIZES_PX[max(1, len(names))]
    margin = 1.5 * _SCALE
    placed: list[_Placed] = []
    for name in names:
        half = rng.uniform(low, high) * shrink * _SCALE / 2
        points, w, h = _posed(name, half, rng)
        for u, v in rng.random((24, 2)).tolist():
            x = margin + w + u * (_CANVAS - 2 * (margin + w))
            y = margin + h + v * (_CANVAS - 2 * (margin + h))
            box = (x - w, y - h, x + w, y + h)
            if not any(_touch(box, other.box) for other in placed):
                placed.append(_Placed([p + np.array([x, y]) for p in points], box))
                break
        else:
            return None
    return placed


def _posed(
    name: str, half: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], float, float]:
    """Tilt, mirror and size an object; returns its polygons round 0 and half width and height."""
    angle = float(np.clip(rng.normal(0, 0.1), -0.22, 0.22))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = half * np.cos(angle), half * np.sin(angle)
    matrix = np.array([[c * flip, s * flip], [-s, c]])
    points = [part.points @ matrix for part in parts(name)]
    every = np.concatenate(points)
    low, high = every.min(0), every.max(0)
    w, h = (high - low) / 2 + _LINE_PX * _SCALE
    return [p - (low + high) / 2 for p in points], float(w), float(h)


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    gap = _GAP_PX * _SCALE
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _draw_object(
    draw: ImageDraw.ImageDraw,
    shape: tuple[Part, ...],
    points: list[np.ndarray],
    shade: dict[str, Rgb],
) -> None:
    """Outline first, under everything, so that parts of one object melt into each other."""
    fill = {"wheel": _WHEELS[0], "hub": _WHEELS[1], "pupil": (252, 252, 252), **shade}
    flat = [p.ravel().tolist() for p in points]
    for part, xy in zip(shape, flat, strict=True):
        if part.silhouette:
            _outline(draw, part.corners, xy, shade["line"])
    for part, xy in zip(shape, flat, strict=True):
        draw.polygon(xy, fill=fill[part.tone])


def _outline(
    draw: ImageDraw.ImageDraw, corners: tuple[int, ...], xy: list[float], fill: Rgb
) -> None:
    r = _LINE_PX * _SCALE
    draw.line([*xy, xy[0], xy[1]], fill=fill, width=round(2 * r))
    for i in corners:
        x, y = xy[2 * i], xy[2 * i + 1]
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
