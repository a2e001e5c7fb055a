"""The page on exports: which layouts there are, and the command that makes each."""

from collections.abc import Mapping

from fastapi import Response
from sqlalchemy import Connection, func, select

from sayso.base.errors import quoted
from sayso.feedback.vote_tables import RETRACTED, VOTE_TABLES
from sayso.web.admin.view import AdminView, admin_router

router = admin_router()

FORMATS: Mapping[str, tuple[str, str]] = {
    "sayso": ("Sayso", "everything, lossless: votes, images and labels as Parquet"),
    "pickapic": ("Pick-a-Pic v2", "pairs of images with a preference, for preference training"),
    "imagerewarddb": ("ImageRewardDB", "images with ratings from 1 to 7"),
    "hpdv2": ("HPDv2", "preferences between two images, one row per vote"),
    "hpdv3": ("HPDv3", "preferences between two images, one row per pair"),
    "imagefolder": ("ImageFolder", "image files with their prompts, for fine-tuning"),
    "webdataset": ("WebDataset", "images with their prompts and ratings in tar shards"),
    "kto": ("KTO style", "images that most raters called good or bad"),
}
"""`--format` of `sayso export` → what it is called, and what it holds."""


@router.get("/export")
def show_export(view: AdminView) -> Response:
    with view.site.read() as db:
        counts = {"people": _votes(db, False), "simulated": _votes(db, True)}
    study = quoted(view.site.study.path)
    layouts = [
        {"key": key, "title": title, "text": text,
         "command": f"sayso export {study} --format {key}"}
        for key, (title, text) in FORMATS.items()
    ]  # fmt: skip
    return view.page("export", layouts=layouts, counts=counts)


def _votes(db: Connection, simulated: bool) -> int:
    """How many votes there are, superseded ones too, as in the lossless export."""
    return sum(
        db.scalar(
            select(func.count())
            .select_from(table)
            .where(table.c.simulated == simulated, table.c.value != RETRACTED)
        )
        or 0
        for table in VOTE_TABLES.values()
    )
