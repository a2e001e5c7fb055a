"""The page on disagreements, and the rating page on which reviewers decide them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from sayso.web.admin.view import View, view_of
from sayso.web.decisions import Splits
from sayso.web.pages import render
from sayso.web.site import Site
from sayso.web.work.disagreements import decided_rows, standing

PAGE_SIZE = 20


def adjudication(site: Site, splits: Splits) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter()

    def reviewer(request: Request) -> View:
        return view_of(site, request, "reviewer")

    @router.get("/disagreements")
    def show_disagreements(view: Annotated[View, Depends(reviewer)], page: int = 1) -> Response:
        split = splits.of(view.task)
        with site.read() as db:
            so_far = standing(db, view.task, split, view.asker.person.name)
            pages = max(1, -(-len(so_far.decided) // PAGE_SIZE))
            page = min(max(page, 1), pages)
            part = so_far.decided[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
            rows = decided_rows(db, view.task, part)
        return view.page(
            "disagreements", rows=rows, page=page, pages_total=pages,
            waiting=len(so_far.waiting), judged=len(so_far.judged), decided=len(so_far.decided),
        )  # fmt: skip

    @router.get("/decide")
    def decide(view: Annotated[View, Depends(reviewer)]) -> Response:
        return render(site, "admin/decide.html", view.asker, task_id=view.task["id"])

    return router
