"""The page on disagreements, and the rating page on which reviewers decide them."""

from fastapi import Response

from sayso.web.admin.view import ReviewerView, admin_router, part_of
from sayso.web.decisions import standing_of
from sayso.web.rendering import render
from sayso.web.work.disagreements import decided_rows

router = admin_router()

PAGE_SIZE = 20


@router.get("/disagreements")
def show_disagreements(view: ReviewerView, page: int = 1) -> Response:
    with view.site.read() as db:
        so_far = standing_of(view.site, db, view.task, view.asker.person.name)
        page, pages = part_of(len(so_far.decided), PAGE_SIZE, page)
        part = so_far.decided[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        rows = decided_rows(db, view.task, part)
    return view.page(
        "disagreements", rows=rows, page=page, pages_total=pages,
        waiting=len(so_far.waiting), rated=len(so_far.rated), decided=len(so_far.decided),
    )  # fmt: skip


@router.get("/decide")
def decide(view: ReviewerView) -> Response:
    return render(view.site, "admin/decide.html", view.asker, task_id=view.task["id"])
