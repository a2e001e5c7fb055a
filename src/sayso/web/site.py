"""What every request needs: the study, its database, the task, the secret; who is asking."""

import ipaddress
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from sqlalchemy import Connection, select

from sayso.feedback import work_tables as work
from sayso.feedback.database import Database
from sayso.study.study import Study
from sayso.web import sessions
from sayso.web.pictures import BrokenPicture, Pictures, size_of
from sayso.web.sessions import Session
from sayso.web.slow_counts import SlowCounts
from sayso.web.work import people
from sayso.web.work.people import Person, Role


class Refusal(Exception):  # noqa: N818 - it is a reply, not a failure
    """A reply that is not 200: status, code of the API, sentence for a person."""

    def __init__(
        self, status: int, code: str, message: str, retry: bool = False, **more: object
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry = status, code, message, retry
        self.more = more


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is asking, in which session."""

    person: Person
    session: Session


def _app_version() -> str:
    try:
        return version("sayso")
    except PackageNotFoundError:
        return "unknown"


@dataclass
class Site:
    """The server's state, the same in every worker.

    Args:
        task: id of the task that is handed out; "" for none.
        local: one rater, no sign-in; see `still_local`.
        root_path: under which a proxy serves the site, such as "/sayso"; "" is none.
        split_tie: comparisons offer "both good" and "both bad" in place of a tie.
        clock: seconds since the epoch.
        unseen: reviewer and item, by their ids, whose pictures the reviewer's browser cannot show.
    """

    study: Study
    database: Database
    task: str
    local: bool
    clock: Callable[[], float] = time.time
    app_version: str = field(default_factory=_app_version)
    split_tie: bool = False
    root_path: str = ""
    pictures: Pictures = field(default_factory=Pictures)
    counts: SlowCounts = field(default_factory=SlowCounts)
    unseen: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    @cached_property
    def secret(self) -> bytes:
        return self.study.secret()

    @cached_property
    def store_id(self) -> str:
        """Random and always the same; browsers keep their outbox under it."""
        with self.read() as db:
            return str(db.scalar(select(work.store.c.id)))

    @property
    def cookie(self) -> str:
        """Cookies do not know ports, so two studies on one machine need two names.

        Nor does a server learn their paths, so one for another path needs another name.
        """
        return f"sayso-{self.store_id[:8]}{self.root_path.replace('/', '-')}"

    @property
    def cookie_path(self) -> str:
        return self.root_path or "/"

    def read(self) -> AbstractContextManager[Connection]:
        return self.database.read()

    def write(self, shares: bool = False) -> AbstractContextManager[Connection]:
        return self.database.write(shares)

    # people

    def asker(self, request: Request) -> Asker | None:
        """Who is asking; None if nobody is signed in."""
        session = sessions.verify(self.secret, request.cookies.get(self.cookie, ""))
        if session is None:
            return None
        with self.read() as db:
            person = people.by_id(db, session.rater)
            if person and person.name == people.LOCAL_NAME and people.must_sign_in(db):
                person = None  # of the time before others were added
        return Asker(person, session) if person and person.epoch == session.epoch else None

    def welcome(self, request: Request) -> Asker | None:
        """As `asker`; where nobody signs in, the local rater gets a session."""
        found = self.asker(request)
        if found is not None or not self.still_local():
            return found
        with self.write() as db:
            person = people.local_person(db)
        return Asker(person, sessions.begin(person.id, person.epoch))

    def still_local(self) -> bool:
        """Whether nobody has to sign in. Once people were added they have to, at once."""
        if self.local:
            with self.read() as db:
                self.local = not people.must_sign_in(db)
        return self.local

    def remember(self, request: Request, response: Response, asker: Asker) -> None:
        """Set the cookie when it is new, or half its time is over."""
        if request.cookies.get(self.cookie) and not asker.session.is_half_over:
            known = sessions.verify(self.secret, request.cookies[self.cookie])
            if known == asker.session:
                return
        self.set_cookie(request, response, asker.session)

    def set_cookie(self, request: Request, response: Response, session: Session) -> None:
        response.set_cookie(
            self.cookie, sessions.sign(self.secret, session), max_age=round(sessions.LIFETIME_S),
            httponly=True, samesite="lax", secure=request.url.scheme == "https",
            path=self.cookie_path,
        )  # fmt: skip

    def require(self, request: Request, role: Role = "rater") -> Asker:
        """Who is asking.

        Raises: Refusal: 401 if nobody is signed in, 403 without the role.
        """
        asker = self.welcome(request) if request.method == "GET" else self.asker(request)
        if asker is None:
            raise Refusal(401, "not_signed_in", "Please sign in again with your link.")
        if not asker.person.may(role):
            raise Refusal(403, "forbidden", f"This page is for {role}s only.")
        return asker

    def check_token(self, asker: Asker | None, token: str) -> None:
        """Refuse a change that does not come from a page of ours.

        Raises: Refusal: 403.
        """
        session = asker.session if asker else None
        if not sessions.is_form_token(self.secret, session, token):
            raise Refusal(403, "csrf", "This page is out of date. Reload it and try again.")

    # pictures

    def usable(self, item: Any) -> bool:
        """Whether all pictures of an item can be opened."""
        try:
            for path in (path for side in item["images"] for path in side):
                size_of(self.picture(path))
        except BrokenPicture:
            return False
        return True

    def picture(self, path: str) -> Path:
        """The file of a picture; paths are relative to the study."""
        return self.study.path / path


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
