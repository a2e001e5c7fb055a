"""Raters and what they agreed to: names, roles, sign-in links, guidelines."""

import hashlib
import secrets
import time
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Select, bindparam, false, func, insert, select, true, update

from sayso.base.errors import UserError
from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import is_excluded
from sayso.feedback.work_tables import Row

Role = Literal["rater", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_NEXT = work.raters.c.epoch + 1
LOCAL_NAME = "local"
"""The rater of a server without sign-in."""

# built once, because every request asks for them
_raters, _texts, _read = work.raters.c, work.guidelines.c, work.acceptances.c
_PERSON = select(work.raters, is_excluded(_raters.name).label("excluded"))
_ACTIVE = _PERSON.where(_raters.active == true())
_BY_ID = _ACTIVE.where(_raters.id == bindparam("of_id"))
_BY_LINK = _ACTIVE.where(_raters.link == bindparam("of_link"))
_BY_NAME = _PERSON.where(_raters.name == bindparam("of_name"))
_OTHERS = (
    select(func.count())
    .select_from(work.raters)
    .where(_raters.name != LOCAL_NAME, _raters.simulated == false())
)
_GUIDELINES = select(work.guidelines).order_by(_texts.version.desc())
_NEWEST_GUIDELINE = _GUIDELINES.limit(1)
_HAS_ACCEPTED = select(_read.version).where(
    _read.rater == bindparam("by_rater"), _read.version == bindparam("of_version")
)


@dataclass(frozen=True, slots=True)
class Person:
    """Who is asking. `simulated` raters are programs; their votes are kept apart.

    The votes of who is `excluded` are kept and do not count.
    """

    id: str
    name: str
    role: Role
    simulated: bool
    excluded: bool = False
    epoch: int = 0

    def may(self, role: Role) -> bool:
        """Whether the person has this role or a stronger one."""
        return ROLES.index(self.role) >= ROLES.index(role)


def add(db: Connection, name: str, role: Role, simulated: bool = False) -> str:
    """Add a rater: the secret of the sign-in link, which is stored only as a hash.

    Raises: UserError: for a name that is taken or cannot be one, or an unknown role.
    """
    name = name.strip()
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise UserError(f"{name!r} is not a valid name; give 1 to 80 printable characters")
    if role not in ROLES:
        raise UserError(f"role {role!r} is unknown; give {', '.join(ROLES)}")
    if simulated != ("simulated" in name):
        raise UserError(
            f"rater {name!r}: only names of programs contain 'simulated', and all of them do"
        )
    if find(db, name) is not None:
        raise UserError(f"rater {name!r} already exists; give another name, or make a new link")
    secret = secrets.token_urlsafe(24)
    row = {
        "id": secrets.token_hex(8), "name": name, "role": role, "simulated": simulated,
        "active": True, "link": _hash(secret), "created_at": time.time(),
    }  # fmt: skip
    db.execute(insert(work.raters).values(row))
    return secret


def new_link(db: Connection, name: str) -> str:
    """Replace a rater's sign-in link; the old one stops working, and all sessions end.

    Raises: UserError: if there is no such rater.
    """
    _need(db, name)
    secret = secrets.token_urlsafe(24)
    chosen = work.raters.c.name == name
    db.execute(update(work.raters).where(chosen).values(link=_hash(secret), epoch=_NEXT))
    return secret


def end_sessions(db: Connection, rater: str) -> None:
    """Sign a rater out everywhere, whoever has the cookie."""
    db.execute(update(work.raters).where(work.raters.c.id == rater).values(epoch=_NEXT))


def set_active(db: Connection, name: str, active: bool) -> None:
    """Switch a rater off or on; votes stay, and all sessions end.

    Raises: UserError: if there is no such rater, or it is the only admin who is to be switched off.
    """
    _need(db, name)
    if not active and _is_only_admin(db, name):
        raise UserError(f"{name} is the only admin; add another admin first")
    values = {"active": active, "epoch": _NEXT}
    db.execute(update(work.raters).where(work.raters.c.name == name).values(values))


def _is_only_admin(db: Connection, name: str) -> bool:
    table = work.raters.c
    admins = select(table.name).where(
        table.role == "admin", table.active == true(), table.name != LOCAL_NAME
    )
    return list(db.scalars(admins)) == [name]


def _need(db: Connection, name: str) -> None:
    if find(db, name) is None:
        raise UserError(f"there is no rater {name!r}; list them with: sayso raters STUDY list")


def find(db: Connection, name: str) -> Row | None:
    """The row of a rater."""
    return db.execute(select(work.raters).where(work.raters.c.name == name)).mappings().first()


def everyone(db: Connection) -> list[Row]:
    """All raters, oldest first."""
    order = work.raters.c.created_at, work.raters.c.name
    return list(db.execute(select(work.raters).order_by(*order)).mappings())


def must_sign_in(db: Connection) -> bool:
    """Whether people were added, so that the server cannot take everyone for the local one."""
    return bool(db.scalar(_OTHERS))


def local_person(db: Connection) -> Person:
    """The one rater of a server without sign-in, made if missing."""
    if find(db, LOCAL_NAME) is None:
        add(db, LOCAL_NAME, "admin")
    person = _one(db, _BY_NAME, of_name=LOCAL_NAME)
    assert person is not None
    return person


def by_link(db: Connection, secret: str) -> Person | None:
    """Who a sign-in link belongs to."""
    return _one(db, _BY_LINK, of_link=_hash(secret))


def by_id(db: Connection, rater: str) -> Person | None:
    """The active rater of this id."""
    return _one(db, _BY_ID, of_id=rater)


def _one(db: Connection, query: Select[Any], **which: str) -> Person | None:
    row = db.execute(query, which).mappings().first()
    if row is None:
        return None
    return Person(**{field.name: row[field.name] for field in fields(Person)})


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


# guidelines


@dataclass(frozen=True, slots=True)
class Guideline:
    """What raters are told before they begin. Version 0 is none."""

    version: int
    text: str
    author: str = ""
    created_at: float = 0.0


def guidelines(db: Connection) -> list[Guideline]:
    """Every version, newest first."""
    return [Guideline(**row) for row in db.execute(_GUIDELINES).mappings()]


def guideline(db: Connection) -> Guideline:
    """The newest version."""
    row = db.execute(_NEWEST_GUIDELINE).mappings().first()
    return Guideline(**row) if row else Guideline(0, "")


def write_guideline(db: Connection, text: str, author: str, base_version: int) -> int:
    """Add a version; raters see it before they go on. The same text adds none.

    Raises: UserError: if somebody saved another version meanwhile.
    """
    newest = guideline(db)
    if newest.version != base_version:
        raise UserError(
            f"{newest.author} has saved version {newest.version} in the meantime; check it and "
            "save again"
        )
    text = text.replace("\r\n", "\n").strip()
    if text == newest.text:
        return newest.version
    row = {
        "version": newest.version + 1, "text": text, "author": author, "created_at": time.time(),
    }  # fmt: skip
    db.execute(insert(work.guidelines).values(row))
    return newest.version + 1


def accept(db: Connection, rater: str, version: int) -> None:
    """Note that a rater has read a version.

    Raises: UserError: if it is not the newest.
    """
    if version != guideline(db).version:
        raise UserError("the guideline has changed; read the new version")
    if version and not has_accepted(db, rater, version):
        row = {"rater": rater, "version": version, "accepted_at": time.time()}
        db.execute(insert(work.acceptances).values(row))


def has_accepted(db: Connection, rater: str, version: int) -> bool:
    """Whether a rater has read a version; of none there is nothing to read."""
    which = {"by_rater": rater, "of_version": version}
    return version == 0 or db.execute(_HAS_ACCEPTED, which).first() is not None
