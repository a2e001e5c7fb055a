"""Silhouettes of the twelve objects as polygons, and the tones that colour them."""

from dataclasses import dataclass
from functools import cache

import numpy as np

Rgb = tuple[int, int, int]
Real = float | int  # the tests check types at run time, and there an int is no float
Point = tuple[Real, Real]


@dataclass(frozen=True, slots=True)
class Part:
    """One filled polygon of an object.

    Args:
        points: [n, 2], in units where the longer side of the object is 2; y grows downwards.
        tone: name of the shade to fill it with.
        silhouette: whether the outline runs round it.
        corners: indices of the sharp corners.
    """

    points: np.ndarray
    tone: str
    silhouette: bool
    corners: tuple[int, ...]


# main, light, pale, shade, deep (details), line (outline), glass, eye
_TONES: dict[str, tuple[Rgb, ...]] = {
    "red": ((218, 38, 34), (234, 74, 60), (255, 226, 208), (172, 24, 26), (84, 8, 12)),
    "yellow": ((250, 210, 40), (255, 232, 110), (255, 248, 214), (238, 188, 26), (112, 74, 4)),
    "green": ((56, 168, 62), (104, 202, 96), (222, 246, 208), (30, 124, 46), (8, 58, 22)),
    "blue": ((40, 92, 220), (84, 138, 246), (212, 228, 255), (24, 62, 168), (8, 22, 82)),
    "purple": ((130, 52, 178), (164, 92, 212), (232, 214, 248), (94, 32, 136), (42, 8, 68)),
    "pink": ((250, 138, 188), (255, 178, 212), (255, 230, 242), (228, 98, 156), (124, 32, 76)),
    "white": ((246, 246, 248), (255, 255, 255), (214, 220, 230), (208, 212, 222), (104, 110, 126)),
    "black": ((34, 34, 39), (84, 84, 94), (112, 112, 122), (18, 18, 22), (158, 158, 168)),
}
_EXTRA: dict[str, tuple[Rgb, ...]] = {
    "black": ((232, 232, 238), (178, 192, 202), (244, 240, 214)),
    "white": ((46, 48, 60), (158, 180, 196), (40, 42, 54)),
}
_NAMES = ("main", "light", "pale", "shade", "deep", "line", "glass", "eye")


def tones(colour: str, jitter: np.ndarray) -> dict[str, Rgb]:
    """Return the shades of a colour, shifted by `jitter` [3] in 0–255 units."""
    r, g, b = (int(0.55 * v) for v in _TONES[colour][4])
    extra = _EXTRA.get(colour, ((r, g, b), (222, 234, 240), (24, 20, 26)))
    shift = [int(v) for v in jitter]

    def moved(rgb: Rgb) -> Rgb:
        r, g, b = (min(255, max(0, v + s)) for v, s in zip(rgb, shift, strict=True))
        return r, g, b

    shades = [moved(rgb) for rgb in _TONES[colour]] + list(extra)
    return dict(zip(_NAMES, shades, strict=True))


def ellipse(
    x: Real, y: Real, rx: Real, ry: Real, start: Real = 0, stop: Real = 360, n: int = 20
) -> list[Point]:
    """Points along an ellipse, angles in degrees clockwise from the right."""
    closed = abs(stop - start) >= 360
    angles = np.radians(np.linspace(start, stop, n, endpoint=not closed))
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def curve(points: list[Point], n: int = 5) -> list[Point]:
    """Points on a closed smooth (Catmull–Rom) curve through the given ones."""
    p1 = np.asarray(points)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(n) / n)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    out = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return [(float(x), float(y)) for x, y in out.reshape(-1, 2)]


def ring(x: Real, y: Real, rx: Real, ry: Real, width: Real, start: Real, stop: Real) -> list[Point]:
    """Points round a thick arc."""
    inner = ellipse(x, y, rx - width, ry - width, start, stop, 12)
    return ellipse(x, y, rx, ry, start, stop, 12) + inner[::-1]


@cache
def parts(name: str) -> tuple[Part, ...]:
    """Return the polygons of an object from back to front, centred, longer side 2."""
    raw = _OBJECTS[name]()
    every = np.concatenate([np.asarray(p) for p, _, _ in raw])
    low, high = every.min(0), every.max(0)
    middle, half = (low + high) / 2, (high - low).max() / 2
    scaled = [((np.asarray(p) - middle) / half, tone, outlined) for p, tone, outlined in raw]
    return tuple(Part(p, tone, outlined, _sharp(p)) for p, tone, outlined in scaled)


def _sharp(points: np.ndarray) -> tuple[int, ...]:
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turn = np.arctan2(after[:, 1], after[:, 0]) - np.arctan2(before[:, 1], before[:, 0])
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    return tuple(int(i) for i in np.flatnonzero(turn > 0.45))


_Raw = list[tuple[list[Point], str, bool]]


def _apple() -> _Raw:
    body = [(0, -0.55), (0.42, -0.78), (0.88, -0.5), (0.95, 0.1), (0.68, 0.72), (0.3, 0.98)]
    body += [(0, 0.88)] + [(-x, y) for x, y in reversed(body[1:])]
    stem = [(-0.09, -0.5), (0.0, -1.1), (0.17, -1.05), (0.09, -0.5)]
    leaf = curve([(0.1, -0.82), (0.36, -1.16), (0.78, -1.12), (0.5, -0.84)])
    return [
        (leaf, "shade", True),
        (curve(body), "main", True),
        (stem, "deep", True),
        (ellipse(-0.46, -0.2, 0.16, 0.26), "light", False),
    ]


def _boat() -> _Raw:
    hull = [(-1, 0.35), (1, 0.35), (0.66, 0.85), (-0.6, 0.85)]
    return [
        ([(-0.07, -1.0), (0.07, -1.0), (0.07, 0.4), (-0.07, 0.4)], "deep", True),
        ([(0.14, -0.86), (0.86, 0.2), (0.14, 0.2)], "light", True),
        ([(-0.14, -0.62), (-0.14, 0.2), (-0.74, 0.2)], "light", True),
        (hull, "main", True),
        ([(-0.86, 0.52), (0.87, 0.52), (0.77, 0.66), (-0.75, 0.66)], "pale", False),
    ]


def _car() -> _Raw:
    body = [(-1, 0.3), (-0.96, -0.04), (-0.66, -0.12), (-0.42, -0.52), (0.28, -0.52)]
    body += [(0.56, -0.12), (0.94, 0.0), (1, 0.32), (0.94, 0.4), (-0.94, 0.4)]
    raw: _Raw = [
        (body, "main", True),
        ([(-0.5, -0.1), (-0.34, -0.4), (-0.1, -0.4), (-0.1, -0.1)], "glass", False),
        ([(0.02, -0.1), (0.02, -0.4), (0.22, -0.4), (0.4, -0.1)], "glass", False),
        ([(-0.97, 0.14), (0.97, 0.14), (0.98, 0.24), (-0.98, 0.24)], "shade", False),
    ]
    for x in (-0.52, 0.54):
        raw.append((ellipse(x, 0.4, 0.25, 0.25), "wheel", True))
        raw.append((ellipse(x, 0.4, 0.1, 0.1, n=10), "hub", False))
    return raw


def _cat() -> _Raw:
    tail = ring(0.42, 0.52, 0.5, 0.5, 0.2, -80, 100)
    body = curve([(0, -0.1), (0.46, 0.3), (0.54, 0.9), (0, 1.0), (-0.54, 0.9), (-0.46, 0.3)])
    head = ellipse(0, -0.38, 0.56, 0.46)
    raw: _Raw = [(tail, "shade", True), (body, "main", True)]
    for s in (-1, 1):
        raw.append(([(s * 0.54, -1.06), (s * 0.56, -0.4), (s * 0.08, -0.74)], "main", True))
    raw.append((head, "main", True))
    for s in (-1, 1):
        raw.append(([(s * 0.47, -0.88), (s * 0.45, -0.66), (s * 0.24, -0.76)], "pale", False))
        raw.append((ellipse(s * 0.23, -0.44, 0.1, 0.13, n=10), "eye", False))
    raw.append(([(-0.09, -0.25), (0.09, -0.25), (0, -0.13)], "deep", False))
    raw.append((ellipse(0, 0.55, 0.24, 0.32, n=14), "light", False))
    return raw


def _cup() -> _Raw:
    body = [(-0.8, -0.72), (0.5, -0.72), (0.42, 0.6), (0.24, 0.8), (-0.54, 0.8), (-0.72, 0.6)]
    return [
        (ring(0.46, -0.06, 0.54, 0.46, 0.2, -100, 100), "shade", True),
        (body, "main", True),
        (ellipse(-0.15, -0.72, 0.65, 0.2), "light", True),
        (ellipse(-0.15, -0.7, 0.5, 0.12, n=16), "deep", False),
        ([(-0.62, -0.36), (-0.42, -0.34), (-0.37, 0.5), (-0.53, 0.5)], "light", False),
    ]


def _fish() -> _Raw:
    tail = [(0.36, 0.0), (0.98, -0.52), (0.86, 0.0), (0.98, 0.52)]
    body = curve([(-1, 0.05), (-0.6, -0.4), (-0.05, -0.5), (0.5, -0.14), (0.5, 0.14),
                  (-0.05, 0.5), (-0.6, 0.44)])  # fmt: skip
    return [
        (tail, "shade", True),
        ([(-0.3, -0.4), (0.0, -0.78), (0.34, -0.66), (0.26, -0.2)], "shade", True),
        (body, "main", True),
        (ring(-0.62, 0.02, 0.34, 0.42, 0.09, -60, 60), "deep", False),
        (curve([(-0.02, 0.04), (0.3, -0.06), (0.28, 0.28)]), "light", False),
        (ellipse(-0.64, -0.1, 0.13, 0.13, n=12), "pupil", False),
        (ellipse(-0.64, -0.1, 0.085, 0.085, n=10), "eye", False),
    ]


def _flower() -> _Raw:
    raw: _Raw = [
        ([(-0.07, 0.1), (0.07, 0.1), (0.07, 1.2), (-0.07, 1.2)], "shade", True),
        (curve([(0.05, 1.08), (0.3, 0.68), (0.7, 0.66), (0.5, 0.98)]), "shade", True),
        (curve([(-0.05, 1.08), (-0.3, 0.68), (-0.7, 0.66), (-0.5, 0.98)]), "shade", True),
    ]
    for angle in np.radians(np.arange(6) * 60 - 90):
        x, y = 0.5 * float(np.cos(angle)), 0.5 * float(np.sin(angle))
        raw.append((ellipse(x, y - 0.25, 0.34, 0.34, n=16), "main", True))
    raw.append((ellipse(0, -0.25, 0.3, 0.3, n=16), "deep", False))
    raw.append((ellipse(0, -0.25, 0.2, 0.2, n=12), "pale", False))
    return raw


def _house() -> _Raw:
    return [
        ([(0.36, -0.9), (0.62, -0.9), (0.62, -0.3), (0.36, -0.3)], "shade", True),
        ([(-0.78, -0.2), (0.78, -0.2), (0.78, 0.95), (-0.78, 0.95)], "light", True),
        ([(0, -1.0), (1.02, -0.06), (-1.02, -0.06)], "main", True),
        ([(-0.52, 0.3), (-0.08, 0.3), (-0.08, 0.95), (-0.52, 0.95)], "deep", False),
        ([(0.16, 0.2), (0.56, 0.2), (0.56, 0.6), (0.16, 0.6)], "glass", False),
        ([(-0.78, 0.0), (0.78, 0.0), (0.78, 0.1), (-0.78, 0.1)], "shade", False),
    ]


def _umbrella() -> _Raw:
    dome = ellipse(0, 0, 1, 0.96, 180, 360, 22)
    for x in (0.67, 0.0, -0.67):
        dome += ellipse(x, 0, 0.33, 0.16, 0, -180, 7)[1:]
    middle = ellipse(0, 0.02, 0.33, 0.9, 180, 360, 12)
    rim = ellipse(0, 0, 0.33, 0.16, 0, -180, 7)[1:-1]
    handle = ring(-0.2, 0.74, 0.27, 0.27, 0.14, 0, 180)
    return [
        ([(-0.07, -1.1), (0.07, -1.1), (0.07, 0.76), (-0.07, 0.76)], "deep", True),
        (handle, "deep", True),
        (dome, "main", True),
        (middle + rim, "light", False),
    ]


def _bird() -> _Raw:
    body = curve([(-0.42, -0.86), (-0.08, -0.66), (0.08, -0.3), (0.62, 0.02), (0.58, 0.3),
                  (0.1, 0.62), (-0.42, 0.52), (-0.66, 0.08), (-0.72, -0.56)])  # fmt: skip
    return [
        ([(0.4, 0.0), (1.06, -0.3), (1.1, 0.02), (0.5, 0.34)], "shade", True),
        ([(-0.2, 0.5), (-0.08, 0.5), (-0.08, 0.98), (-0.2, 0.98)], "deep", True),
        ([(0.12, 0.5), (0.24, 0.5), (0.24, 0.98), (0.12, 0.98)], "deep", True),
        ([(-0.62, -0.66), (-1.1, -0.44), (-0.62, -0.34)], "deep", True),
        (body, "main", True),
        (curve([(-0.3, -0.12), (0.2, -0.14), (0.72, 0.16), (0.16, 0.34), (-0.2, 0.2)]),
         "shade", True),
        (ellipse(-0.42, -0.52, 0.11, 0.11, n=10), "eye", False),
        (curve([(-0.52, 0.1), (-0.3, 0.34), (-0.1, 0.46), (-0.4, 0.4)]), "light", False),
    ]  # fmt: skip


def _mushroom() -> _Raw:
    cap = ellipse(0, 0, 1, 0.94, 180, 360, 20) + ellipse(0, 0, 1, 0.3, 0, 180, 10)[1:-1]
    stem = curve([(-0.3, 0.1), (0.3, 0.1), (0.34, 0.7), (0.42, 0.96), (0, 1.04), (-0.42, 0.96),
                  (-0.34, 0.7)])  # fmt: skip
    return [
        (stem, "light", True),
        (cap, "main", True),
        (ellipse(-0.42, -0.36, 0.2, 0.18, n=12), "pale", False),
        (ellipse(0.22, -0.58, 0.2, 0.16, n=12), "pale", False),
        (ellipse(0.6, -0.12, 0.16, 0.15, n=12), "pale", False),
        (ellipse(-0.02, -0.04, 0.15, 0.13, n=12), "pale", False),
    ]


def _star() -> _Raw:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.46)
    tips = [
        (float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)
    ]
    raw: _Raw = [(tips, "main", True)]
    for i in range(0, 10, 2):
        raw.append(([(0, 0), tips[i], tips[(i + 1) % 10]], "shade", False))
    raw.append(([(0, 0), tips[0], tips[9]], "light", False))
    raw.append(([(0, 0), tips[8], tips[7]], "light", False))
    return raw


_OBJECTS = {
    "apple": _apple, "bird": _bird, "boat": _boat, "car": _car, "cat": _cat, "cup": _cup,
    "fish": _fish, "flower": _flower, "house": _house, "mushroom": _mushroom, "star": _star,
    "umbrella": _umbrella,
}  # fmt: skip
