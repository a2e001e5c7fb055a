"""The page on which admins write the guideline."""

from datetime import datetime

from fastapi import Response

from sayso.base.errors import UserError
from sayso.web.admin.numbers import whole_number
from sayso.web.admin.view import AdminForm, AdminView, View, admin_router
from sayso.web.work import audit, people
from sayso.web.work.guideline_text import to_html

router = admin_router()


@router.get("/guideline")
def show_guideline(view: AdminView) -> Response:
    return _page(view)


@router.post("/guideline")
def save_guideline(view: AdminView, form: AdminForm) -> Response:
    text, known = form.get("text", ""), whole_number(form.get("base_version", ""))
    author = view.asker.person.name
    try:
        with view.site.write() as db:
            version = people.write_guideline(db, text, author, known)
            if version != known:
                audit.note(db, author, "guideline", f"as version {version}")
    except UserError as error:
        return _page(view, error=str(error), kept=text, status=409)
    return _page(view, saved=True)


def _page(
    view: View, saved: bool = False, error: str = "", kept: str | None = None, status: int = 200
) -> Response:
    with view.site.read() as db:
        versions = people.guidelines(db)
    newest = versions[0] if versions else people.Guideline(0, "")
    text = newest.text if kept is None else kept
    history = [
        {"version": v.version, "at": datetime.fromtimestamp(v.created_at), "by": v.author,
         "text": v.text}
        for v in versions
    ]  # fmt: skip
    return view.page(
        "guideline", status, version=newest.version, text=text, html=to_html(newest.text),
        history=history, saved=saved, error=error,
    )  # fmt: skip
