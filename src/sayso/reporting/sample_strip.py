"""The sample grids of a training in the report: a row for some of the steps, a column a prompt."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sayso.base.contact_sheet import spaced, tiles
from sayso.base.pictures import UnreadablePicture, read_picture
from sayso.reporting.gallery import webp_url
from sayso.study.run import Run

_STEPS, _PROMPTS, _SIDE_PX = 5, 4, 160


class Strip(NamedTuple):
    """What is shown: prompts, and for each step the pictures as data URLs."""

    prompts: list[str]
    rows: list[tuple[int, list[str]]]


def sample_strip(run: Run | None) -> Strip | None:
    """Some steps and some prompts of the run's sample grids, evenly spaced; None without any.

    Grids of other prompts than the last one's are left out, and files that are none.
    """
    read = {step: _read(path) for step, path in run.sample_grids().items()} if run else {}
    grids = {step: fields for step, fields in read.items() if fields}
    if not grids:
        return None
    prompts = [caption for caption, _ in grids[max(grids)]]
    alike = [step for step, fields in grids.items() if [c for c, _ in fields] == prompts]
    columns = spaced(range(len(prompts)), _PROMPTS)
    return Strip(
        [prompts[i] for i in columns],
        [
            (step, [webp_url(_small(grids[step][i][1])) for i in columns])
            for step in spaced(alike, _STEPS)
        ],
    )


def _read(path: Path) -> list[tuple[str, Image.Image]]:
    try:
        return tiles(read_picture(path))
    except (OSError, UnreadablePicture):
        return []


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    return picture
