"""`sayso raters`: the people who sign in to rate."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from sayso.errors import UserError
from sayso.study import Study


@dataclass(frozen=True)
class RatersConfig:
    """Add a rater and print the sign-in link, list them, make a new link, switch one off or on."""

    action: Annotated[Literal["add", "list", "link", "off", "on"], tyro.conf.Positional] = "list"
    """What to do."""
    name: Annotated[str, tyro.conf.Positional] = ""
    """Of the rater; names of programs contain "simulated"."""
    role: Literal["rater", "reviewer", "admin"] = "rater"
    """Reviewers decide where raters disagree; admins see and change everything."""
    address: str = "http://127.0.0.1:8321"
    """How raters reach the server; it begins the link."""


def raters(study: Study, config: RatersConfig) -> None:
    """Do what the config says, and print a link or the list.

    Raises: UserError: for a missing, taken or unknown name.
    """
    from sayso.web import people

    if config.action == "list":
        return _list(study)
    if not config.name:
        raise UserError(f"sayso raters STUDY {config.action} needs a name")
    with study.feedback.database.write() as db:
        if config.action == "add":
            _print_link(config, people.add(db, config.name, config.role, _is_program(config.name)))
        elif config.action == "link":
            _print_link(config, people.new_link(db, config.name))
        else:
            people.set_active(db, config.name, config.action == "on")
    return None


def _is_program(name: str) -> bool:
    return "simulated" in name


def _print_link(config: RatersConfig, secret: str) -> None:
    print(f"{config.address.rstrip('/')}/in/{secret}")


def _list(study: Study) -> None:
    from sayso.web import people

    if study.feedback.database.absent:
        return
    with study.feedback.database.read() as db:
        for row in people.everyone(db):
            state = "" if row["active"] else " (off)"
            print(f"{row['name']}\t{row['role']}{state}")
