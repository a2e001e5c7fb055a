"""`sayso raters`: the people who sign in to rate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sayso.base.errors import UserError
from sayso.study.study import Study

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class RatersConfig:
    """Add raters and print their sign-in links, list them, make new links, disable, enable, exclude
    or include them.

    Votes of excluded raters are kept, and do not count until the raters are included again.
    """

    action: Annotated[
        Literal["add", "list", "link", "off", "on", "exclude", "include"], tyro.conf.Positional
    ] = "list"
    """What to do."""
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of raters; names of programs contain "simulated"."""
    role: Literal["rater", "reviewer", "admin"] = "rater"
    """Role of added raters: reviewers decide where raters disagree; admins see and change
    everything."""
    address: str = "http://127.0.0.1:8321"
    """Address at which raters reach the server; the links begin with it."""


def raters(study: Study, config: RatersConfig) -> None:
    """Do what the config says to all names or, if one is refused, to none; print links or the list.

    Raises: UserError: for a missing, taken or unknown name, or an address that is none.
    """
    if config.action == "list":
        if config.names:
            raise UserError(f"sayso raters STUDY list takes no names; omit {config.names[0]}")
        return _list(study)
    if not config.address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {config.address} is no web address; begin it with http:// or https://"
        )
    if not config.names:
        raise UserError(f"sayso raters STUDY {config.action} NAME needs at least one name")
    with study.feedback.database.write() as db:
        for name in config.names:
            secret = _change(db, config, name)
            if secret:
                whose = f"{name}\t" if len(config.names) > 1 else ""
                print(f"{whose}{config.address.rstrip('/')}/in/{secret}")
    return None


def _change(db: "Connection", config: RatersConfig, name: str) -> str:
    """Do what the config says to one rater: the secret of a new link, or ""."""
    from sayso.web.work import audit, people
    from sayso.web.work.excluding import set_excluded

    action, secret = config.action, ""
    if action == "add":
        secret = people.add(db, name, config.role, "simulated" in name)
    elif action == "link":
        secret = people.new_link(db, name)
    elif action in ("on", "off"):
        people.set_active(db, name, action == "on")
        action = "enable" if action == "on" else "disable"
    else:
        set_excluded(db, name, action == "exclude", _COMMAND_LINE)
    audit.note(db, _COMMAND_LINE, action, name)
    return secret


_COMMAND_LINE = "the command line"
"""Who the audit names: whoever has the study."""


def _list(study: Study) -> None:
    from sqlalchemy import select

    from sayso.feedback.vote_tables import exclusions
    from sayso.web.work import people

    if study.feedback.database.absent:
        return
    with study.feedback.database.read() as db:
        out = set(db.scalars(select(exclusions.c.rater)))
        for row in people.everyone(db):
            state = "" if row["active"] else " (off)"
            state += " (excluded)" if row["name"] in out else ""
            print(f"{row['name']}\t{row['role']}{state}")
