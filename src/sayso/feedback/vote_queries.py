"""Which votes count, in SQL: the twin of `votes.counted`, which decides."""

from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists, false, not_, or_, true

from sayso.feedback import work_tables as work
from sayso.feedback.vote_tables import RETRACTED, exclusions
from sayso.votes.counted import RULES, Purpose, Trait


def counting(table: Table, purpose: Purpose) -> ColumnElement[bool]:
    """Whether a row of a table of votes counts for a purpose.

    Raises: KeyError: for the purposes that only `shown` can tell, "check" and "place".
    """
    rule = RULES[purpose]
    has: dict[str, ColumnElement[bool]] = {
        "attention": table.c.attention == true(), "decision": table.c.decision == true(),
    }  # fmt: skip
    needed = [or_(*(has[trait] for trait in rule.of))] if rule.of else []
    return and_(*(_lacks(table, trait) for trait in rule.without), *needed)


def _lacks(table: Table, trait: Trait) -> ColumnElement[bool]:
    if trait == "superseded":
        return is_live(table)
    if trait == "excluded":
        return not_(is_excluded(table.c.rater))
    if trait == "skip":
        return table.c.value != "skip"
    # as in the partial indexes, or SQLite would not use them
    return {"attention": table.c.attention, "decision": table.c.decision}[trait] == false()


def is_live(table: Table) -> ColumnElement[bool]:
    """Whether nothing supersedes a vote and it is none that takes another back."""
    later = table.alias()
    return and_(table.c.value != RETRACTED, ~exists().where(later.c.supersedes == table.c.id))


def is_struck(table: Table) -> ColumnElement[bool]:
    """Whether a vote is on an attention check that an admin has struck."""
    item = work.items.c
    struck = exists().where(item.id == table.c.item_id, item.standing == "struck")
    return and_(table.c.attention == true(), struck)


def is_excluded(rater: Any) -> ColumnElement[bool]:
    """Whether an admin has excluded the votes of the rater of this name."""
    return exists().where(exclusions.c.rater == rater)
