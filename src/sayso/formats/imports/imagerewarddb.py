"""ImageRewardDB style tables: ratings from 1 to 7 become good, bad or skip."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sayso.base.errors import UserError
from sayso.base.types import Question, Rating, Value, digest
from sayso.formats.imports import Column, Context, Entry, Picture, RowError, TableImport

RATER = "imagerewarddb"
"""The table names no raters."""
_RATINGS = ("image_text_alignment_rating", "overall_rating", "fidelity_rating")


class ImageRewardDB(TableImport):
    """5 to 7 is good, 1 to 3 is bad, 4 says neither and becomes skip.

    The question alignment comes from image_text_alignment_rating, or from overall_rating if the
    option `rating_column` says so; fidelity from fidelity_rating. Ranks are not used.
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "image": Column("image", required=True),
        "prompt": Column("text", required=True),
        "image_text_alignment_rating": Column("number"),
        "overall_rating": Column("number"),
        "fidelity_rating": Column("number"),
        "prompt_id": Column("text"),
        "classification": Column("text"),
        "image_amount_in_total": Column("number"),
        "rank": Column("number"),
    }

    def entry(self, where: str, row: Mapping[str, Any], context: Context) -> Entry:
        rated = [c for c in _RATINGS if row.get(c) is not None]
        if not rated and (row["image"] is None or row["prompt"] is None):
            return Entry(left_out="rows without a rating")
        prompt = context.prompt(where, row["prompt"], row.get("classification") or "imported")
        picture = context.picture(where, row["image"], prompt, "")
        sources: dict[Question, str] = {
            "alignment": context.rating_column, "fidelity": "fidelity_rating",
        }  # fmt: skip
        if context.rating_column not in row:
            raise UserError(
                f"{where} has no {context.rating_column}; choose another --rating-column"
            )
        ratings = tuple(
            _rating(where, picture, question, column, row[column], context)
            for question, column in sources.items()
            if row.get(column) is not None
        )
        return Entry((prompt,), (picture,), ratings)


def _rating(
    where: str, picture: Picture, question: Question, column: str, given: object, context: Context
) -> Rating:
    own_id = picture.sample.id
    return Rating(
        id=digest([RATER, own_id, question]),
        sample_id=own_id,
        rater=RATER,
        question=question,
        value=_value(where, column, given),
        simulated=context.simulated,
        shown_at=0.0,
        answered_at=0.0,
        shown={"imported_from": RATER, "column": column},
    )


def _value(where: str, column: str, given: object) -> Value:
    if not isinstance(given, int | float) or not 1 <= given <= 7:
        raise RowError(f"{where} has {column} {given!r} (allowed is 1 to 7)")
    return "good" if given > 4 else "bad" if given < 4 else "skip"
