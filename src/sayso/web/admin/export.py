"""The page on exports: choose a layout, wait until it is made, download it."""

import re
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy import Connection, func, select

from sayso.base.errors import UserError
from sayso.feedback.vote_tables import RETRACTED, VOTE_TABLES
from sayso.formats.exports import need_pyarrow
from sayso.web.admin.view import View, view_of
from sayso.web.downloads import Downloads
from sayso.web.pages import Fields
from sayso.web.site import Refusal, Site
from sayso.web.work import audit

FORMATS: Mapping[str, tuple[str, str]] = {
    "sayso": ("Sayso", "everything without loss: votes, images and labels as Parquet"),
    "pickapic": ("Pick-a-Pic v2", "preferences between two images, as preference trainers read"),
    "imagerewarddb": ("ImageRewardDB", "images with ratings from 1 to 7"),
    "hpdv2": ("HPDv2", "preferences between two images, one row a vote"),
    "hpdv3": ("HPDv3", "preferences between two images, one row a pair"),
    "imagefolder": ("ImageFolder", "images as files with their prompts, for fine-tuning"),
    "webdataset": ("WebDataset", "images with their prompts and marks in tar shards"),
    "kto": ("KTO style", "images called good or bad by most of their raters"),
}
CHOICES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "raters": ("Answers of", {"people": "people", "simulated": "simulated raters"}),
    "question": ("Question", {"alignment": "alignment", "fidelity": "fidelity"}),
    "keep": ("Rated images", {"all": "all", "good": "only good ones"}),
    "image_format": ("Images as", {"png": "PNG, as they are", "jpg": "JPEG, smaller"}),
}
"""Option of `sayso export` → its label, its values and what they are called."""


def export(site: Site) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()
    downloads = Downloads(site.study)

    def administrator(request: Request) -> View:
        return view_of(site, request, "admin")

    @router.get("/export")
    def show_export(view: Annotated[View, Depends(administrator)]) -> Response:
        return _page(view, downloads)

    @router.post("/export")
    def change_export(
        view: Annotated[View, Depends(administrator)], request: Request, form: Fields
    ) -> Response:
        view.check_form(request, form)
        try:
            if form.get("action") == "remove":
                downloads.remove()
            else:
                order = _order(form)
                downloads.start(order, view.asker.person.name, site.clock())
                with site.write() as db:
                    audit.note(db, view.asker.person.name, "export", order["format"])
        except UserError as error:
            return _page(view, downloads, str(error), 409)
        return RedirectResponse("/admin/export", 303)

    @router.get("/export.zip", dependencies=[Depends(administrator)])
    def download() -> Response:
        # the file is read in the thread pool, so votes do not wait for whoever downloads
        found = downloads.archive()
        if found is None:
            raise Refusal(404, "not_found", "There is no finished export; make one first.")
        layout, parts = found
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{site.study.info.name}-{layout}")
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
        return StreamingResponse(parts, media_type="application/zip", headers=headers)

    return router


def _order(form: Mapping[str, str]) -> dict[str, str]:
    """What the form asks for; never a file of the user's own, which would be a program to run.

    Raises: Refusal: 422 for a value that the page does not offer.
    """
    asked = {name: form.get(name, next(iter(values))) for name, (_, values) in CHOICES.items()}
    offered = all(asked[name] in values for name, (_, values) in CHOICES.items())
    layout, license_ = form.get("format", ""), form.get("license", "").strip()
    if not offered or layout not in FORMATS:
        raise Refusal(422, "invalid", "This page offers no such export.")
    if len(license_) > 80 or not license_.isprintable():
        raise Refusal(422, "invalid", "Name the licence in 80 printable characters, or not at all.")
    return {**asked, "format": layout, "license": license_}


def _page(view: View, downloads: Downloads, error: str = "", status: int = 200) -> Response:
    last = downloads.last()
    order = dict(last.order) if last else {}
    with view.site.read() as db:
        counts = {kind: _votes(db, simulated) for kind, simulated in _KINDS.items()}
    return view.page(
        "export", status, formats=FORMATS, choices=CHOICES, counts=counts, last=last, error=error,
        missing=_missing(), chosen={**_likely(counts), **order},
        at=time.strftime("%d %b, %H:%M", time.localtime(order.get("at", 0.0))),
    )  # fmt: skip


_KINDS = {"people": False, "simulated": True}


def _likely(counts: Mapping[str, int]) -> dict[str, str]:
    """What the form says before anybody has chosen."""
    raters = "people" if counts["people"] or not counts["simulated"] else "simulated"
    return {"format": "sayso", "raters": raters, "license": ""}


def _missing() -> str:
    """Which package is missing, as one line."""
    try:
        need_pyarrow()
    except UserError as error:
        return str(error)
    return ""


def _votes(db: Connection, simulated: bool) -> int:
    """How many answers there are, superseded ones too, as in the export without loss."""
    return sum(
        db.scalar(
            select(func.count())
            .select_from(table)
            .where(table.c.simulated == simulated, table.c.value != RETRACTED)
        )
        or 0
        for table in VOTE_TABLES.values()
    )
