"""The page on who changed what, and when."""

from datetime import datetime

from fastapi import Response

from sayso.web.admin.view import AdminView, admin_router, part_of
from sayso.web.work import audit

router = admin_router()

PAGE_SIZE = 100


@router.get("/audit")
def show_audit_log(view: AdminView, page: int = 1) -> Response:
    with view.site.read() as db:
        page, pages = part_of(audit.count(db), PAGE_SIZE, page)
        found = audit.lines(db, (page - 1) * PAGE_SIZE, PAGE_SIZE)
    rows = [
        {**row, "at": datetime.fromtimestamp(row["at"]), "words": audit.WORDS[row["action"]]}
        for row in found
    ]
    return view.page("audit", rows=rows, page=page, pages_total=pages)
