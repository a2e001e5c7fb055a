"""Plots as inline SVG. Bars stretch with the page (no text inside); line plots scale whole.

Colours are CSS classes of style.css, so that plots follow the light and the dark theme.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

Number = int | float
WIDTH, HEIGHT = 366, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 40


def bar(share: Number, low: Number | None, high: Number | None, kind: str) -> Markup:
    """One share in [0, 1] as a bar with its interval, if any, as a whisker; `kind` is a colour."""
    return Markup(
        '<svg class="bar" aria-hidden="true" width="100%" height="16">'
        f'<rect class="track" width="100%" height="100%" rx="3"/>'
        f'<rect class="{escape(kind)}" width="{share:.2%}" height="100%" rx="3"/>'
        f"{_whisker(low, high)}</svg>"
    )


def _whisker(low: Number | None, high: Number | None) -> str:
    if low is None or high is None:
        return ""
    across = (f"{low:.2%}", "50%", f"{high:.2%}", "50%")
    ends = "".join(_line(f"{x:.2%}", "22%", f"{x:.2%}", "78%", "whisker") for x in (low, high))
    return f"{_line(*across, 'halo')}{_line(*across, 'whisker')}{ends}"


def dot(row: Mapping[str, Number | None], kind: str, start: Number, end: Number) -> Markup:
    """One estimate as a dot with its interval as a whisker, on an axis from `start` to `end`.

    Args:
        row: value, and low and high or None; what lies outside the axis is drawn at its end.
        kind: CSS class that gives the colour.
    """
    span = (end - start) or 1.0

    def place(value: Number) -> str:
        return f"{min(1.0, max(0.0, (value - start) / span)):.2%}"

    value, low, high = row["value"], row["low"], row["high"]
    parts = ['<rect class="track" y="7" width="100%" height="2" rx="1"/>']
    if start < 0 < end:
        parts.append(_line(place(0), "1", place(0), "15", "zero"))
    if low is not None and high is not None:
        parts.append(_line(place(low), "8", place(high), "8", f"reach {escape(kind)}"))
    if value is not None:
        parts.append(f'<circle class="{escape(kind)}" cx="{place(value)}" cy="8" r="4.5"/>')
    inside = "".join(parts)
    return Markup(f'<svg class="dot" aria-hidden="true" width="100%" height="16">{inside}</svg>')


def stacked(parts: Sequence[tuple[str, float]]) -> Markup:
    """Shares in [0, 1] one after the other; each part is (CSS class, share)."""
    pieces, start = [], 0.0
    for kind, share in parts:
        place = f'x="{start:.2%}" width="{share:.2%}" height="100%"'
        pieces.append(f'<rect class="{escape(kind)}" {place}/>')
        if start > 0 and share > 0:
            pieces.append(_line(f"{start:.2%}", "0", f"{start:.2%}", "100%", "gap"))
        start += share
    inside = "".join(pieces)
    return Markup(
        '<svg class="stack" aria-hidden="true" width="100%" height="22">'
        f'<rect class="track" width="100%" height="100%"/>{inside}</svg>'
    )


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line or cloud, in data units; `intervals` gives (low, high) of y a point."""

    kind: str
    points: Sequence[tuple[Number, Number]]
    intervals: Sequence[tuple[Number, Number]] = ()
    line: bool = True
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its words, its range (None: that of the data) and whether in percent."""

    label: str
    low: Number | None = None
    high: Number | None = None
    percent: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """An axis whose range and ticks are settled."""

    axis: Axis
    low: Number
    high: Number
    ticks: Sequence[Number]

    def fraction(self, value: Number) -> float:
        return (value - self.low) / (self.high - self.low)


def plot(series: Sequence[Series], x: Axis, y: Axis, title: str, diagonal: bool = False) -> Markup:
    """A plot with two axes and a few ticks; `title` is what a screen reader says."""
    across = _fitted(x, [p[0] for s in series for p in s.points])
    up = _fitted(y, [v for s in series for p in _extent(s) for v in p])
    inside = [_axes(across, up)]
    if diagonal:
        inside.append(_line(*_place(across, up, 0, 0), *_place(across, up, 1, 1), "ideal"))
    inside += [_drawn(s, across, up) for s in series]
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(inside)}</svg>'
    )


def smooth(points: Sequence[tuple[Number, Number]], most: int = 120) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that at most `most` remain; few points stay as they are."""
    size = ceil(len(points) / most) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(_mean(p[0] for p in g), _mean(p[1] for p in g)) for g in groups]


def _mean(values: Iterable[Number]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def _extent(series: Series) -> Sequence[tuple[Number, ...]]:
    return series.intervals or [(p[1],) for p in series.points]


def _fitted(axis: Axis, values: Sequence[Number]) -> _Scale:
    """Fill in the range and the ticks that were left open."""
    low = axis.low if axis.low is not None else min(values, default=0.0)
    high = axis.high if axis.high is not None else max(values, default=1.0)
    high = high if high > low else low + (abs(low) or 1.0)
    step = _step(high - low)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    low = low if axis.low is not None else first * step
    high = high if axis.high is not None else last * step
    ticks = [n * step for n in range(first, last + 1) if low - 1e-9 <= n * step <= high + 1e-9]
    return _Scale(axis, low, high, ticks)


def _step(span: Number) -> float:
    """A round tick distance that gives three to six ticks."""
    rough = span / 4
    power = 10.0 ** floor(log10(rough))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)


def _place(x: _Scale, y: _Scale, px: Number, py: Number) -> tuple[Number, Number]:
    """Data to picture units."""
    return (
        round(_LEFT + x.fraction(px) * (WIDTH - _LEFT - _RIGHT), 1),
        round(HEIGHT - _BOTTOM - y.fraction(py) * (HEIGHT - _TOP - _BOTTOM), 1),
    )


def _axes(x: _Scale, y: _Scale) -> str:
    bottom, parts = HEIGHT - _BOTTOM, []
    for tick in y.ticks:
        height = _place(x, y, x.low, tick)[1]
        parts.append(_line(_LEFT, height, WIDTH - _RIGHT, height, "grid"))
        parts.append(_text(_LEFT - 6, height + 4, _label(tick, y.axis), "end"))
    for tick in x.ticks:
        along = _place(x, y, tick, y.low)[0]
        parts.append(_line(along, bottom, along, bottom + 4, "axis"))
        anchor = "end" if along > WIDTH - 24 else "middle"
        parts.append(_text(along, bottom + 17, _label(tick, x.axis), anchor))
    parts.append(_line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, x.axis.label, "middle", "name"))
    middle = (_TOP + bottom) / 2
    parts.append(_text(11, middle, y.axis.label, "middle", "name", f"rotate(-90 11 {middle:g})"))
    return "".join(parts)


def _label(value: Number, axis: Axis) -> str:
    if axis.percent:
        return f"{value:.0%}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}".replace(",", " ")


def _drawn(series: Series, x: _Scale, y: _Scale) -> str:
    places = [_place(x, y, *point) for point in series.points]
    kind, parts = escape(series.kind), []
    for (px, _), (low, high) in zip(series.points, series.intervals, strict=False):
        parts.append(_line(*_place(x, y, px, low), *_place(x, y, px, high), f"interval {kind}"))
    if series.line and places:
        path = " ".join(f"{a:g},{b:g}" for a, b in places)
        parts.append(f'<polyline class="curve {kind}" points="{path}"/>')
    if series.dots:
        parts += [f'<circle class="dot {kind}" cx="{a:g}" cy="{b:g}" r="3.5"/>' for a, b in places]
    return "".join(parts)


def _line(x1: Number | str, y1: Number | str, x2: Number | str, y2: Number | str, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: Number, y: Number, words: str, anchor: str, kind: str = "tick", turn: str = "") -> str:
    turned = f' transform="{turn}"' if turn else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}{turned}>{escape(words)}</text>'
