"""The vote store: append-only ratings and comparisons in SQLite or PostgreSQL. No torch.

A vote is a row that is never changed and never deleted. Who thinks again adds a row that names the
old one in `supersedes`; the constraints leave at most one live row per item, rater and question,
whoever writes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sqlalchemy import Connection, Engine, Table, insert, or_, select

from sayso.base.errors import UserError
from sayso.base.types import Choice, Comparison, Preference, Question, Rating, Sample, Value, digest
from sayso.feedback import vote_tables as tables
from sayso.feedback.database import BUSY_TIMEOUT_S, Database
from sayso.feedback.vote_queries import counting, is_excluded, is_live, is_struck
from sayso.votes import counted
from sayso.votes.counted import Purpose
from sayso.votes.labels import (
    LabelMethod,
    RatingCounts,
    count_ratings,
    preferences,
    soft_labels,
)

_STREAM_CHUNK = 10_000  # rows in memory while all votes are read
_CHUNK = 500  # ids in one query; SQLite allows some thousands of variables


class Recorded(NamedTuple):
    """A stored vote; `live`: not superseded; `excluded`: none of its rater's votes counts."""

    vote: Rating | Comparison
    live: bool = True
    excluded: bool = False

    @property
    def standing(self) -> counted.Standing:
        return counted.standing(self.vote, superseded=not self.live, excluded=self.excluded)


class Feedback:
    """Ratings and comparisons in a database, opened at first use.

    A SQLite file that does not exist reads as empty and is made by the first vote.

    Args:
        url: "sqlite:///path", "postgresql://user@host/name", or the path of a SQLite file.
        busy_timeout_s: how long to wait while another program writes.
    """

    def __init__(self, url: str | Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.database = Database(url, busy_timeout_s)

    # writing

    def add_ratings(self, ratings: Sequence[Rating]) -> int:
        """Store ratings, all or none; what is stored already is left as it is.

        Returns: how many were new.
        Raises: UserError: if an id is stored with another body, if the rater has rated the image
            already and the rating does not supersede that one, or if the store cannot be written.
        """
        for rating in ratings:
            _check(rating, get_args(Value))
        return self._add(tables.ratings, ratings)

    def add_comparisons(self, comparisons: Sequence[Comparison]) -> int:
        """Store comparisons; see `add_ratings`."""
        for comparison in comparisons:
            _check(comparison, get_args(Choice))
        return self._add(tables.comparisons, comparisons)

    def _add(self, table: Table, votes: Sequence[Rating] | Sequence[Comparison]) -> int:
        rows: dict[str, dict[str, Any]] = {}
        for row in map(vote_row, votes):
            _refuse_other_body(row, rows.setdefault(row["id"], row))
        if not rows:
            return 0
        with self.database.write() as db:
            for old in _stored(db, table, list(rows)):
                _refuse_other_body(rows.pop(old["id"]), old)
            if rows:
                known = {vote.id: flags(vote) for vote in votes}
                db.execute(insert(table), [{**row, **known[key]} for key, row in rows.items()])
        return len(rows)

    # reading

    def ratings(self, simulated: bool | None = None, excluded: bool = False) -> list[Rating]:
        """The live ratings, oldest first: of people (False), of programs (True), or of both.

        Reviewers' decisions and checks of attention are among them; `votes.counted` says what each
        counts for.

        Args:
            excluded: also those of raters whom an admin has excluded.
        """
        return [_rating(row) for row in self._live(tables.ratings, simulated, excluded)]

    def comparisons(
        self, simulated: bool | None = None, excluded: bool = False
    ) -> list[Comparison]:
        """The live comparisons, oldest first; see `ratings`."""
        return [_comparison(row) for row in self._live(tables.comparisons, simulated, excluded)]

    def votes(self, simulated: bool | None = None) -> list[Rating | Comparison]:
        """The live ratings, then the live comparisons; see `ratings`."""
        return [*self.ratings(simulated), *self.comparisons(simulated)]

    def stream(self, simulated: bool) -> Iterator[Recorded]:
        """Every rating, then every comparison, oldest first, whether it counts or not.

        Also those that were superseded; rows that only take a vote back are no votes. One statement
        a table is a snapshot of it; rows come in chunks, so memory stays bounded however many there
        are.
        """
        if self.database.absent:
            return
        for table, read in ((tables.ratings, _rating), (tables.comparisons, _comparison)):
            known = is_live(table).label("live"), is_excluded(table.c.rater).label("excluded")
            query = (
                _votes_of(table)
                .add_columns(*known)
                .where(table.c.simulated == simulated, table.c.value != tables.RETRACTED)
                .order_by(table.c.seq)
                .execution_options(yield_per=_STREAM_CHUNK)
            )
            with self.database.read() as db:
                for row in db.execute(query).mappings():
                    yield Recorded(read(dict(row)), bool(row["live"]), bool(row["excluded"]))

    def left_out(self, simulated: bool, purpose: Purpose = "vote") -> dict[str, int]:
        """How many live votes do not count for a purpose, by why (see `counted.RULES`)."""
        live = (found.standing for found in self.stream(simulated) if found.live)
        return counted.left_out(live, purpose)

    def counts(self, simulated: bool, question: Question = "alignment") -> dict[str, RatingCounts]:
        """The ratings that count per sample id: of people or of simulated raters, never both."""
        return count_ratings(self._counted(simulated, question))

    def soft_labels(
        self,
        simulated: bool,
        question: Question = "alignment",
        method: LabelMethod = "share",
        among: Collection[str] | None = None,
    ) -> dict[str, float]:
        """Sample id → how good its raters find it, in [0, 1] (see `labels.soft_labels`).

        Args:
            among: ids of the samples whose ratings count; default: all.
        """
        ratings = self._counted(simulated, question)
        return soft_labels([r for r in ratings if among is None or r.sample_id in among], method)

    def preferences(
        self,
        samples: Sequence[Sample],
        simulated: bool,
        question: Question = "alignment",
        method: LabelMethod = "share",
    ) -> list[Preference]:
        """Every image that its raters find good over every bad one of the same prompt.

        Args:
            samples: the study's images, which know their prompts.
        """
        labels = self.soft_labels(simulated, question, method)
        return preferences(labels, samples, simulated, question)

    def _counted(self, simulated: bool, question: Question) -> list[Rating]:
        """The ratings that say something of an image: the raters' own, and reviewers' decisions."""
        if self.database.absent:
            return []
        table = tables.ratings
        query = (
            _votes_of(table)
            .where(table.c.simulated == simulated, table.c.question == question)
            .where(or_(counting(table, "vote"), counting(table, "decision")))
            .order_by(table.c.seq)
        )
        with self.database.read() as db:
            return [_rating(dict(row)) for row in db.execute(query).mappings()]

    def kind_in_use(self) -> bool:
        """The `simulated` to read with: False (people) if any person rated, else True."""
        return not self.ratings(simulated=False)

    def _live(
        self, table: Table, simulated: bool | None, excluded: bool
    ) -> list[Mapping[str, Any]]:
        if self.database.absent:
            return []
        query = _votes_of(table).where(is_live(table)).order_by(table.c.seq)
        if simulated is not None:
            query = query.where(table.c.simulated == simulated)
        if not excluded:
            query = query.where(~is_excluded(table.c.rater))
        with self.database.read() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    @property
    def _engine(self) -> Engine:
        return self.database.engine


# rows


def _check(vote: Rating | Comparison, values: tuple[str, ...]) -> None:
    kind = type(vote).__name__.lower()
    if vote.value not in values:
        raise UserError(f"{kind} {vote.id} has value {vote.value!r}; allowed: {', '.join(values)}")
    if vote.question not in get_args(Question):
        allowed = ", ".join(get_args(Question))
        raise UserError(f"{kind} {vote.id} has question {vote.question!r}; allowed: {allowed}")
    if not vote.id or not vote.rater:
        raise UserError(f"{kind} {vote.id!r} of rater {vote.rater!r} needs an id and a rater")


def vote_row(vote: Rating | Comparison) -> dict[str, Any]:
    """The columns of a vote, without the flags (see `flags`)."""
    row = asdict(vote)
    if isinstance(vote, Comparison):
        row["left_ids"], row["right_ids"] = list(vote.left_ids), list(vote.right_ids)
        row["pair"] = digest(sorted([row["left_ids"], row["right_ids"]]))
    times = {"shown_at": float(vote.shown_at), "answered_at": float(vote.answered_at)}
    return {**row, **times, "shown": dict(vote.shown)}


def flags(vote: Rating | Comparison) -> dict[str, bool]:
    """What `shown` says of a vote as columns, for queries and constraints."""
    known = counted.standing(vote)
    return {"attention": known.attention, "decision": known.decision}


def _stored(db: Connection, table: Table, ids: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i in range(0, len(ids), _CHUNK):
        query = select(table).where(table.c.id.in_(ids[i : i + _CHUNK]))
        found += [dict(row) for row in db.execute(query).mappings()]
    return found


def _refuse_other_body(row: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    if digest({key: old[key] for key in row}) != digest(row):
        raise UserError(
            f"vote {row['id']} is stored with other content; votes never change: give the new "
            "vote its own id and let it supersede the old one"
        )


def _votes_of(table: Table) -> Any:
    return select(table, is_struck(table).label(counted.STRUCK))


def _rating(row: Mapping[str, Any]) -> Rating:
    return Rating(**_fields(Rating, row))


def _comparison(row: Mapping[str, Any]) -> Comparison:
    plain = _fields(Comparison, row)
    sides = {key: tuple(plain[key]) for key in ("left_ids", "right_ids")}
    return Comparison(**{**plain, **sides})


def _fields(kind: type[Rating] | type[Comparison], row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {f.name: row[f.name] for f in fields(kind)}
    if row[counted.STRUCK]:
        plain["shown"] = {**plain["shown"], counted.STRUCK: True}
    return plain
