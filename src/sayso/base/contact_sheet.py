"""A contact sheet: pictures in a grid, each with its caption, under a title."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

SIDE_PX = 256
"""The longer side of a picture on the sheet; smaller ones are enlarged by whole numbers."""
_NARROWEST_PX, _GAP_PX, _MARGIN_PX = 160, 12, 16
_CAPTION_LINES = 3
_INK, _SOFT, _PAPER, _NOTHING = "#1a1a1a", "#555555", "#ffffff", "#d9d9d9"
_KEY = "contact-sheet"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FONTS = (
    "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "arial.ttf",
    "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc",
    "Hiragino Sans GB.ttc", "malgun.ttf",
)  # fmt: skip
"""Fonts that systems have, for letters that Pillow's own lacks."""
Row = TypeVar("Row")
Box = tuple[int, int, int, int]


class Sheet(NamedTuple):
    """The sheet, and where each picture is on it: (left, upper, right, lower)."""

    image: Image.Image
    boxes: list[Box]
    captions: list[str]

    def png_info(self) -> PngInfo:
        """What `tiles` reads from the file again."""
        info = PngInfo()
        told = {"boxes": self.boxes, "captions": self.captions}
        info.add_text(_KEY, json.dumps(told))
        return info


def contact_sheet(
    pictures: Sequence[Image.Image | None], captions: Sequence[str], title: str
) -> Sheet:
    """Put pictures on a sheet, in rows of four, or of eight where there are more than sixteen.

    Args:
        pictures: ≥ 1, all of one size; None leaves a grey field.
        captions: of each, in as many as three lines.
        title: above all.
    """
    font, large = font_for("".join(captions), 13), font_for(title, 17)
    given = next((p.size for p in pictures if p is not None), (SIDE_PX, SIDE_PX))
    size = _shown(given)
    column = max(size[0], _NARROWEST_PX)
    lines = [_wrapped(caption, font, column) for caption in captions]
    line_px, title_px = _height(font), _height(large) + _GAP_PX
    row = size[1] + 6 + line_px * max(map(len, lines)) + _GAP_PX
    columns = min(len(pictures), 4 if len(pictures) <= 16 else 8)
    rows = -(-len(pictures) // columns)
    width = max(
        2 * _MARGIN_PX + columns * (column + _GAP_PX) - _GAP_PX,
        2 * _MARGIN_PX + int(large.getlength(title)) + 1,
    )
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + title_px + rows * row - _GAP_PX), _PAPER)
    draw, boxes = ImageDraw.Draw(sheet), list[Box]()
    draw.text((_MARGIN_PX, _MARGIN_PX), title, _INK, large)
    for i, (picture, caption) in enumerate(zip(pictures, lines, strict=True)):
        left = _MARGIN_PX + i % columns * (column + _GAP_PX)
        upper = _MARGIN_PX + title_px + i // columns * row
        box = (left, upper, left + size[0], upper + size[1])
        if picture is None:
            draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), _NOTHING)
        else:
            sheet.paste(_resized(picture, size), box)
        draw.multiline_text((left, box[3] + 6), "\n".join(caption), _SOFT, font, spacing=3)
        boxes.append(box)
    return Sheet(sheet, boxes, list(captions))


def tiles(sheet: Image.Image) -> list[tuple[str, Image.Image]]:
    """Caption and picture of each field of a sheet that was read from its file; none of another."""
    try:
        told = json.loads(sheet.info[_KEY])
        rows = zip(told["captions"], told["boxes"], strict=True)
        return [(str(caption), sheet.crop(tuple(box))) for caption, box in rows]
    except (KeyError, TypeError, ValueError):
        return []


def font_for(text: str, height: int) -> Font:
    """Pillow's own font, which has plain Latin letters only, or one of the system that has more.

    Args:
        height: in pixels.
    """
    best = ImageFont.load_default(height)
    fewest = lacking(best, text)
    for name in FONTS if fewest else ():
        with suppress(OSError):
            font = ImageFont.truetype(name, height)
            if (n := lacking(font, text)) < fewest:
                best, fewest = font, n
    return best


def lacking(font: Font, text: str) -> int:
    """How many different characters of the text the font does not have."""
    nothing = _drawn(font, "\U0010ffff")
    return sum(_drawn(font, c) == nothing for c in set(text) if not c.isspace())


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = font.getmask(character)
    return mask.size, bytes(mask)


def spaced(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many of the rows, evenly spaced, the first and the last among them."""
    n = min(len(rows), most)
    return [rows[i * (len(rows) - 1) // max(1, n - 1)] for i in range(n)]


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    if longest <= SIDE_PX:
        times = SIDE_PX // longest
        return size[0] * times, size[1] * times
    return (
        max(1, round(size[0] * SIDE_PX / longest)),
        max(1, round(size[1] * SIDE_PX / longest)),
    )


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    larger = picture.width < size[0]
    how = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return picture.resize(size, how)


def _height(font: Font) -> int:
    return int(font.getbbox("Ágjp")[3]) + 3


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most that width; what does not fit in them ends in an ellipsis."""
    lines, words = [""], text.split()
    while words:
        word = words.pop(0)
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif not lines[-1]:
            # a word wider than the column, or a language without spaces
            fits = max(1, sum(font.getlength(word[: n + 1]) <= width for n in range(len(word))))
            lines[-1] = word[:fits]
            words[:0] = [word[fits:]] if word[fits:] else []
        else:
            lines.append("")
            words.insert(0, word)
    if len(lines) > _CAPTION_LINES:
        last = lines[_CAPTION_LINES - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: _CAPTION_LINES - 1], f"{last.rstrip()}…"]
    return lines
