"""The six backgrounds: soft, muted scenery before which every object stands out."""

import numpy as np
from PIL import Image, ImageDraw

from sayso.tinyworld.drawing import Real, Rgb

Tone = Rgb | np.ndarray
_SIZE = 128  # drawn at twice the final size; softer and four times cheaper than the objects


def scenery(background: str, rng: np.random.Generator) -> Image.Image:
    """Return a picture [128, 128] of the background; seeded by `rng` only."""
    return _SCENERY[background](rng)


def _gradient(top: Tone, bottom: Tone) -> Image.Image:
    ramp = np.linspace(0, 1, _SIZE)[:, None]
    column = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    full = np.broadcast_to(column[:, None].clip(0, 255).astype(np.uint8), (_SIZE, _SIZE, 3))
    return Image.fromarray(np.ascontiguousarray(full))


def _near(rgb: Tone, rng: np.random.Generator, spread: Real = 8) -> Rgb:
    """A colour a little lighter or darker than the given one, and a little off its hue."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-3, 3, 3)
    r, g, b = (int(min(255, max(0, v + s))) for v, s in zip(rgb, shift, strict=True))
    return r, g, b


def _hills(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, fill: Rgb, y: Real, height: Real,
    waves: Real = 1.5,
) -> None:  # fmt: skip
    """Fill everything below a rolling line around `y`."""
    x = np.linspace(0, _SIZE, 25)
    f, p, q = rng.uniform(0.7, 1.3) * waves, *rng.uniform(0, 2 * np.pi, 2)
    line = np.sin(x / _SIZE * 2 * np.pi * f + p) + 0.4 * np.sin(x / _SIZE * 5.2 * np.pi * f + q)
    points = list(zip(x.tolist(), (y + height * line).tolist(), strict=True))
    draw.polygon([*points, (_SIZE, _SIZE), (0, _SIZE)], fill=fill)


def _disc(draw: ImageDraw.ImageDraw, x: Real, y: Real, rx: Real, ry: Real, fill: Rgb) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _forest(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_near((150, 172, 132), rng, 12), _near((112, 138, 98), rng))
    draw = ImageDraw.Draw(image)
    for tone, width, n in (((126, 146, 112), 5, 5), ((104, 112, 88), 8, 3), ((92, 88, 72), 12, 2)):
        for x in rng.uniform(0, _SIZE, n):
            w, lean = width * rng.uniform(0.7, 1.2) / 2, rng.uniform(-5, 5)
            trunk = [(x - w + lean, 0), (x + w + lean, 0), (x + w * 1.3, 118), (x - w * 1.3, 118)]
            draw.polygon(trunk, fill=_near(tone, rng, 5))
    for x in np.arange(-4, 140, 17):
        y, r = rng.uniform(-4, 8), rng.uniform(11, 17)
        _disc(draw, x + rng.uniform(-5, 5), y, r * 1.2, r, _near((96, 124, 84), rng, 9))
    _hills(draw, rng, _near((94, 120, 80), rng), rng.uniform(94, 104), 3)
    for x in np.arange(-4, 140, 16):
        y, r = rng.uniform(118, 128), rng.uniform(9, 15)
        _disc(draw, x + rng.uniform(-5, 5), y, r * 1.3, r, _near((82, 108, 70), rng, 8))
    return image


_SKIES = (  # top and bottom of the sky, near and far buildings, windows
    ((150, 182, 212), (206, 218, 226), (136, 142, 156), (166, 174, 188), (186, 198, 210)),
    ((138, 126, 166), (232, 188, 168), (104, 98, 122), (142, 128, 152), (226, 196, 140)),
    ((58, 66, 104), (112, 112, 148), (64, 66, 92), (84, 88, 118), (206, 182, 122)),
)


def _city(rng: np.random.Generator) -> Image.Image:
    top, bottom, near, far, window = _SKIES[rng.integers(len(_SKIES))]
    image = _gradient(_near(top, rng), _near(bottom, rng))
    draw = ImageDraw.Draw(image)
    x = rng.uniform(-12, 0)
    while x < _SIZE:
        width = rng.uniform(12, 22)
        draw.rectangle((x, rng.uniform(28, 64), x + width, _SIZE), fill=_near(far, rng, 6))
        x += width
    x = rng.uniform(-16, 0)
    while x < _SIZE:
        width = float(rng.integers(20, 31))
        _tower(draw, rng, x, rng.uniform(52, 92), width, _near(near, rng, 6), window)
        x += width + rng.uniform(0, 10)
    draw.rectangle((0, 118, _SIZE, _SIZE), fill=_near(np.asarray(near) * 0.86, rng, 4))
    return image


def _tower(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: Real, y: Real, width: Real,
    fill: Rgb, window: Rgb,
) -> None:  # fmt: skip
    draw.rectangle((x, y, x + width, _SIZE), fill=fill)
    columns = int(width // 8)
    left = x + (width - columns * 8 + 4) / 2
    lit = rng.random((10, columns)) < 0.6
    for row, column in np.argwhere(lit).tolist():
        u, v = left + 8 * column, y + 5 + 9 * row
        if v < 114:
            draw.rectangle((u, v, u + 3.4, v + 4), fill=window)


def _moon(rng: np.random.Generator) -> Image.Image:
    image = _gradient((14, 15, 26), _near((34, 36, 54), rng, 6))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(2, 126, (18, 2)).tolist():
        s = rng.uniform(0.6, 1.3)
        _disc(draw, x, y * 0.55, s, s, _near((170, 172, 186), rng, 30))
    if rng.random() < 0.4:
        x, y, r = rng.uniform(16, 112), rng.uniform(14, 30), rng.uniform(8, 12)
        _disc(draw, x, y, r, r, (70, 104, 146))
        _disc(draw, x - r * 0.25, y - r * 0.2, r * 0.45, r * 0.35, (104, 138, 128))
        _disc(draw, x + r * 0.35, y + r * 0.4, r * 0.35, r * 0.22, (150, 168, 184))
    horizon = rng.uniform(46, 74)
    _hills(draw, rng, _near((122, 122, 130), rng), horizon, 4)
    _hills(draw, rng, _near((142, 142, 148), rng), horizon + rng.uniform(16, 26), 4)
    for depth in np.sort(rng.uniform(0, 1, 7)).tolist():
        x, y = rng.uniform(0, _SIZE), horizon + 16 + depth * (116 - horizon)
        r = 4 + 8 * depth * rng.uniform(0.6, 1.2)
        _disc(draw, x, y, r * 1.5, r * 0.62, (160, 160, 166))
        _disc(draw, x, y + 1.2, r * 1.3, r * 0.46, (112, 112, 120))
    return image


def _sea(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_near((124, 182, 198), rng, 10), _near((44, 96, 132), rng, 10))
    draw = ImageDraw.Draw(image)
    deep = np.asarray(_near((112, 172, 192), rng, 6), dtype=float)
    for i, y in enumerate(np.arange(14, 128, 17) + rng.uniform(-5, 5)):
        _hills(draw, rng, _near(deep - i * np.array([10, 11, 8]), rng, 3), y, 3.2, 2.4)
        _crests(draw, rng, y, _near(deep - i * np.array([10, 11, 8]) + 24, rng, 3))
    for x, y in rng.uniform(6, 122, (5, 2)).tolist():
        r = rng.uniform(1.4, 3)
        box = (x - r, y - r, x + r, y + r)
        draw.ellipse(box, outline=(178, 212, 222), width=1)
    return image


def _crests(draw: ImageDraw.ImageDraw, rng: np.random.Generator, y: Real, fill: Rgb) -> None:
    for x in rng.uniform(0, _SIZE, 2).tolist():
        v, w = y + rng.uniform(4, 9), rng.uniform(7, 12)
        draw.arc((x - w, v - 3, x + w, v + 4), 195, 345, fill=fill, width=2)


def _desert(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_near((178, 202, 214), rng, 12), _near((240, 218, 182), rng, 6))
    draw = ImageDraw.Draw(image)
    x, y, r = rng.uniform(14, 114), rng.uniform(12, 34), rng.uniform(8, 12)
    _disc(draw, x, y, r + 4, r + 4, (240, 224, 186))
    _disc(draw, x, y, r, r, (252, 238, 196))
    horizon = rng.uniform(52, 70)
    _hills(draw, rng, _near((222, 190, 142), rng, 6), horizon, 5)
    for x in rng.uniform(6, 122, rng.integers(1, 4)).tolist():
        _cactus(draw, x, horizon + rng.uniform(4, 12), rng.uniform(6, 9))
    _hills(draw, rng, _near((210, 174, 124), rng, 6), horizon + 18, 6)
    _hills(draw, rng, _near((198, 160, 110), rng, 6), horizon + 38, 6, 1.1)
    return image


def _cactus(draw: ImageDraw.ImageDraw, x: Real, y: Real, h: Real) -> None:
    fill = (142, 152, 112)
    draw.line([(x, y), (x, y - 2 * h)], fill=fill, width=4)
    draw.line([(x - h / 1.6, y - 1.5 * h), (x - h / 1.6, y - h), (x, y - h)], fill=fill, width=3)
    draw.line([(x + h / 1.6, y - 1.8 * h), (x + h / 1.6, y - 1.2 * h), (x, y - 1.2 * h)],
              fill=fill, width=3)  # fmt: skip


def _snow(rng: np.random.Generator) -> Image.Image:
    image = _gradient(_near((168, 186, 208), rng, 10), _near((212, 222, 234), rng, 6))
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(50, 68)
    _hills(draw, rng, _near((204, 216, 230), rng, 4), horizon, 5)
    for x in rng.uniform(0, _SIZE, rng.integers(4, 8)).tolist():
        _fir(
            draw, x, horizon + rng.uniform(6, 14), rng.uniform(16, 26), _near((134, 158, 160), rng)
        )
    _hills(draw, rng, _near((220, 228, 238), rng, 4), horizon + 18, 5)
    _hills(draw, rng, _near((232, 237, 244), rng, 3), horizon + 38, 5, 1.1)
    for x, y in rng.uniform(2, 126, (16, 2)).tolist():
        s = rng.uniform(1.0, 1.8)
        _disc(draw, x, y, s, s, (246, 249, 253))
    return image


def _fir(draw: ImageDraw.ImageDraw, x: Real, y: Real, h: Real, fill: Rgb) -> None:
    for k in range(3):
        top, w = y - h + k * h * 0.24, h * (0.16 + 0.08 * k)
        draw.polygon([(x, top), (x + w, top + h * 0.42), (x - w, top + h * 0.42)], fill=fill)


_SCENERY = {
    "in the forest": _forest,
    "in the city": _city,
    "on the moon": _moon,
    "in the sea": _sea,
    "in the desert": _desert,
    "in the snow": _snow,
}
