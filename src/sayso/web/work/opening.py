"""Open a task: put its items into the database once, and take account of votes made elsewhere."""

import gc
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from sayso.base.types import digest
from sayso.feedback import vote_tables as votes
from sayso.feedback import work_tables as work
from sayso.feedback.database import Database
from sayso.study.study import Study
from sayso.web.work.across_tasks import take_over_votes
from sayso.web.work.checks import draft_with_checks
from sayso.web.work.counting import count_anew, set_check_share
from sayso.web.work.leases import locked_task
from sayso.web.work.queue import shuffled
from sayso.web.work.tasks import Draft, Page, TaskOptions, task_identity

_CHUNK = 5000
_RULES = 2
"""Version of how pages are drafted: a task that was opened by older rules gets what is new."""


def open_task(database: Database, study: Study, options: TaskOptions) -> str:
    """Make the task, or find it again: its id.

    Images drawn since are added at the end of the order; another overlap adds or closes items and
    takes no vote away; votes of the same raters on the same images, made in other tasks, count.

    Raises: UserError: if the study lacks the images, or the store cannot be written.
    """
    task = task_identity(study, options)
    source = _fingerprint(study, options)
    with database.read() as db:
        old = db.execute(select(work.tasks).where(work.tasks.c.id == task)).mappings().first()
        foreign = _foreign_votes(db, task, options.kind)
    if old and old["source"] == f"{source} {foreign}":
        _reopen(database, task)
        return task
    with _no_collections():
        seed = _seed(study, options)
        pages = draft_with_checks(study, options, seed)
        with database.write() as db:
            _make(db, task, options, pages, seed)
            _count(db, task, options, source)
    _reopen(database, task)
    return task


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage collections among a hundred thousand records take 40 % of the time and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _seed(study: Study, options: TaskOptions) -> int:
    # programs do not cheat, and the same seed shall give the same votes of theirs
    return options.seed if options.simulated else private_seed(options.seed, study.secret())


def private_seed(seed: int, secret: bytes) -> int:
    """The seed of a task, in [0, 2³¹): raters who know the options must not replay its order.

    Who has the study can: the store holds this seed.
    """
    mac = hmac.new(secret, f"seed of a task\n{seed}".encode(), "sha256").digest()
    return int.from_bytes(mac[:4], "big") >> 1


def _make(
    db: Connection, task: str, options: TaskOptions, pages: Sequence[Page], seed: int
) -> None:
    """Put the task and its items in, or what is new of them."""
    known = db.scalar(select(work.tasks.c.id).where(work.tasks.c.id == task))
    if not known:
        db.execute(insert(work.tasks).values(_task_row(task, options, seed)))
    row = locked_task(db, task)  # votes that are being cast count before or after, and not between
    _add_items(db, task, pages, row["seed"])
    if known:
        _set_overlaps(db, task, pages)
    take_over_votes(db, task, options)


def _fingerprint(study: Study, options: TaskOptions) -> str:
    """Changes when the study's files or the options do."""
    sizes = [
        (p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None
        for p in (*study.sample_files, study.path / "prompts.jsonl")
    ]
    shares = [options.overlap, options.shared_overlap, options.gold_share, options.attention_share]
    return digest([sizes, shares, _RULES])


def _foreign_votes(db: Connection, task: str, kind: str) -> int:
    """The number of the newest vote that this task did not collect."""
    table = votes.VOTE_TABLES[kind]
    elsewhere = or_(table.c.task_id.is_(None), table.c.task_id != task)
    return db.scalar(select(func.coalesce(func.max(table.c.seq), 0)).where(elsewhere)) or 0


def _reopen(database: Database, task: str) -> None:
    """Images may have been restored since somebody found them broken."""
    broken = work.items.c.broken
    with database.read() as db:
        known = select(work.items.c.id).where(work.items.c.task == task, broken == true()).limit(1)
        if db.execute(known).first() is None:
            return
    with database.write() as db:
        db.execute(update(work.items).where(work.items.c.task == task).values(broken=False))


def _task_row(task: str, options: TaskOptions, seed: int) -> dict[str, Any]:
    return {
        "id": task,
        "name": options.name,
        "kind": options.kind,
        "images_per_page": options.images_per_page if options.kind == "rate" else 1,
        "overlap": options.overlap,
        "seed": seed,
        "gold_share": options.gold_share,
        "attention_share": options.attention_share or 0.0,
        "state": "open",
        "source": "",
        "n_items": 0,
        "n_ranks": 0,
        "wanted": 0,
        "votes": 0,
        "all_votes": 0,
        "check_share": 0.0,
        "created_at": time.time(),
    }


# items


def _add_items(db: Connection, task: str, pages: Sequence[Page], seed: int) -> None:
    """Append the pages that are new in an order that the seed decides."""
    items = work.items
    known = set(db.scalars(select(items.c.content).where(items.c.task == task)))
    first = db.scalar(select(func.coalesce(func.max(items.c.rank), -1)).where(items.c.task == task))
    new = [page for page in pages if any(item.content not in known for item in page)]
    order = shuffled(len(new), seed, task, len(known))
    start = (first or 0) + 1 if known else 0
    rows = _item_rows(task, seed, (new[i] for i in order), start, known)
    with _progress(sum(map(len, new))) as advance:
        while part := list(islice(rows, _CHUNK)):
            db.execute(insert(items), part)
            advance(len(part))


def _progress(items: int) -> AbstractContextManager[Callable[[int], None]]:
    """A bar for what takes longer than a blink."""
    if items <= _CHUNK:
        return nullcontext(lambda _: None)
    from sayso.base.progress import progress

    return progress("set up", items, unit="items")


def _item_rows(
    task: str, seed: int, pages: Iterable[Page], first: int, known: set[str]
) -> Iterator[dict[str, Any]]:
    """Rows of the items that are not `known`, their pages ranked from `first`."""
    for rank, page in enumerate(pages, first):
        page_id = _place_id(seed, task, rank)
        for slot, item in enumerate(page):
            content = item.content
            if content not in known:
                known.add(content)
                row = _item_row(item, content)
                place = {"task": task, "rank": rank, "slot": slot, "page": page_id}
                yield {**row, **place, "id": _place_id(seed, task, rank, slot)}


def _place_id(*place: str | int) -> str:
    """A hash of the place in a shuffled order: it tells nothing of the image."""
    return hashlib.sha256("/".join(map(str, place)).encode()).hexdigest()[:16]


def _item_row(item: Draft, content: str) -> dict[str, Any]:
    return {
        "content": content,
        "pair": item.pair if len(item.sets) == 2 else "",
        "control": item.control,
        "question": item.question,
        "prompt_id": item.prompt.id,
        "prompt": item.prompt.text,
        "samples": [[s.id for s in side] for side in item.sets],
        "images": [[s.path for s in side] for side in item.sets],
        "models": [side[0].model for side in item.sets],
        "expected": item.expected,
        "overlap": item.overlap,
        "votes": 0,
        "open": not item.standing,
        "broken": False,
        "standing": item.standing,
    }


def _set_overlaps(db: Connection, task: str, pages: Sequence[Page]) -> None:
    items, contents = work.items, {}
    for page in pages:
        for item in page:
            contents.setdefault(item.overlap, []).append(item.content)
    stored = dict(
        db.execute(select(items.c.content, items.c.overlap).where(items.c.task == task)).all()  # type: ignore[arg-type]
    )
    for overlap, asked in contents.items():
        changed = [content for content in asked if stored.get(content) != overlap]
        for i in range(0, len(changed), 500):
            part = items.c.content.in_(changed[i : i + 500])
            db.execute(update(items).where(items.c.task == task, part).values(overlap=overlap))


# counters


def _count(db: Connection, task: str, options: TaskOptions, source: str) -> None:
    """Set the counters of items and task anew.

    Args:
        source: see `_fingerprint`.
    """
    count_anew(db, task)
    items = work.items.c
    last = db.scalar(select(func.max(items.rank)).where(items.task == task))
    foreign = _foreign_votes(db, task, options.kind)
    values = {
        "n_ranks": (last or 0) + 1, "source": f"{source} {foreign}", "overlap": options.overlap,
        "gold_share": options.gold_share, "attention_share": options.attention_share or 0.0,
        "all_votes": _count_votes(db, task),
    }  # fmt: skip
    db.execute(update(work.tasks).where(work.tasks.c.id == task).values(values))
    set_check_share(db, task)


def _count_votes(db: Connection, task: str) -> int:
    """Count the votes of each rater anew: how many there are in all."""
    done, of = work.assignments.c, work.participants.c
    given = and_(done.task == task, done.state == work.VOTED)
    of_rater = select(func.count()).where(given, done.rater == of.rater).scalar_subquery()
    db.execute(update(work.participants).where(of.task == task).values(all_votes=of_rater))
    return db.scalar(select(func.count()).where(given)) or 0
