"""The tables of work shared by several raters: tasks, their items, who has what, who is who.

They stand in the database of the votes, the same on SQLite and PostgreSQL. `items.images` holds the
paths of the pictures, so that serving them needs no other file of the study.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)

from sayso.feedback.vote_tables import metadata

Row = Mapping[Any, Any]
"""A row that was read: column → value."""

VOTED = "answered"
"""State of an assignment whose rater has voted, as databases store it."""

store = Table(
    "store",
    metadata,
    Column("id", Text, primary_key=True),  # random; browsers keep their outbox under it
)

raters = Table(
    "raters",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("link", Text, unique=True),  # hash of the sign-in link's secret
    Column("created_at", Double, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),  # of the sessions that hold
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

acceptances = Table(
    "acceptances",
    metadata,
    Column("rater", Text, ForeignKey("raters.id"), nullable=False),
    Column("version", Integer, ForeignKey("guidelines.version"), nullable=False),
    Column("accepted_at", Double, nullable=False),
    PrimaryKeyConstraint("rater", "version"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),  # rate | compare
    Column("images_per_page", Integer, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("gold_share", Double, nullable=False),
    Column("attention_share", Double, nullable=False),
    Column("state", Text, nullable=False),  # open | paused | closed
    Column("source", Text, nullable=False),  # fingerprint of the files that the items came from
    Column("n_items", Integer, nullable=False),  # without gold and attention
    Column("n_ranks", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),  # votes, without gold and attention
    Column("votes", Integer, nullable=False),  # of them given
    Column("created_at", Double, nullable=False),
    # of raters on all items, checks too; stored under an older name
    Column("answers", Integer, nullable=False, server_default=text("0"), key="all_votes"),
    Column("check_share", Double, nullable=False, server_default=text("0")),  # of pages, expected
)

items = Table(
    "items",
    metadata,
    Column("id", Text, primary_key=True),
    Column("task", Text, ForeignKey("tasks.id"), nullable=False),
    Column("content", Text, nullable=False),  # what is asked of what: `tasks.Draft.content`
    Column("pair", Text, nullable=False),  # of a comparison: hash of its sets without the question
    Column("control", Text, nullable=False),  # "" | gold | attention
    Column("rank", Integer, nullable=False),  # place of its page in the order of the task
    Column("slot", Integer, nullable=False),  # place on the page
    Column("page", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("prompt_id", Text, nullable=False),
    Column("prompt", Text, nullable=False),  # as shown
    Column("samples", JSON, nullable=False),  # one sample id, or the two sets
    Column("images", JSON, nullable=False),  # paths relative to the study, in the same order
    Column("models", JSON, nullable=False),  # of the two sets
    Column("expected", Text, nullable=False),  # of gold and attention; of sets before any swap
    Column("overlap", Integer, nullable=False),  # 0: everyone
    Column("votes", Integer, nullable=False),
    Column("open", Boolean, nullable=False),  # whether somebody is still wanted
    Column("broken", Boolean, nullable=False, server_default=false()),
    Column("standing", Text, nullable=False, server_default=text("''")),  # `queue.Standing`
    UniqueConstraint("task", "content"),
)
Index("items_open", items.c.task, items.c.control, items.c.open, items.c.rank)
Index("items_page", items.c.page)
Index(
    "items_broken",
    items.c.task,
    sqlite_where=items.c.broken == true(),
    postgresql_where=items.c.broken == true(),
)
Index("items_pair", items.c.task, items.c.pair)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("author", Text, nullable=False),
    Column("action", Text, nullable=False),  # `web.audit.WORDS`
    Column("about", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""What admins and reviewers changed; lines are only ever added."""

participants = Table(
    "participants",
    metadata,
    Column("task", Text, ForeignKey("tasks.id"), nullable=False),
    Column("rater", Text, ForeignKey("raters.id"), nullable=False),
    Column("cursor", Integer, nullable=False),  # rank from which the next page is looked for
    Column("handed_out", Integer, nullable=False),  # pages so far
    Column("seen_at", Double, nullable=False),
    # of raters on all items, checks too; stored under an older name
    Column("answers", Integer, nullable=False, server_default=text("0"), key="all_votes"),
    # of comparisons: handed out with the first set right, minus left
    Column("leaning", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("task", "rater"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("item", Text, ForeignKey("items.id"), nullable=False),
    Column("rater", Text, ForeignKey("raters.id"), nullable=False),
    Column("task", Text, ForeignKey("tasks.id"), nullable=False),
    Column("key", Text, nullable=False, unique=True),  # of the images' addresses
    Column("state", Text, nullable=False),  # leased | released | VOTED | refused
    Column("until", Double, nullable=False),  # end of the lease
    Column("swapped", Boolean, nullable=False),
    Column("position", Integer, nullable=False),
    Column("vote", Text),  # id of the newest vote, which may be a retraction
    Column("surplus", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("item", "rater"),
)
Index("assignments_rater", assignments.c.task, assignments.c.rater, assignments.c.state)
