"""Pick-a-Pic style tables: each row becomes a comparison of two single images."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from sayso.base.types import Choice, Comparison, digest
from sayso.formats.imports import Column, Context, Entry, RowError, TableImport
from sayso.formats.snapshot import seconds

VALUES: Mapping[float, Choice] = {1.0: "left", 0.0: "right", 0.5: "tie"}


class PickAPic(TableImport):
    """label_0 of 1 is left, 0 is right, 0.5 a tie; image 0 counts as the left one.

    Rows without a label and of twice the same image are left out. Nobody knows who cast the votes
    without a user; several on the same two images are taken for those of several raters.
    """

    derives_ratings: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, Column]] = {
        "caption": Column("text", required=True),
        "jpg_0": Column("image", required=True),
        "jpg_1": Column("image", required=True),
        "label_0": Column("number", required=True),
        "label_1": Column("number"),
        "user_id": Column("number"),
        "model_0": Column("text"),
        "model_1": Column("text"),
        "has_label": Column("flag"),
        "created_at": Column("time"),
        "ranking_id": Column("number"),
        "image_0_uid": Column("text"),
        "image_1_uid": Column("text"),
        "image_0_url": Column("text"),
        "image_1_url": Column("text"),
        "best_image_uid": Column("text"),
        "are_different": Column("flag"),
        "num_example_per_prompt": Column("number"),
        "__index_level_0__": Column("number"),
    }

    def entry(self, where: str, row: Mapping[str, Any], context: Context) -> Entry:
        if _is_unlabelled(row):  # its picture or caption may well be missing
            return Entry(left_out="rows without a label")
        value = _value(where, row)
        prompt = context.prompt(where, row["caption"], "imported")
        left, right = (
            context.picture(where, row[f"jpg_{i}"], prompt, row.get(f"model_{i}") or "")
            for i in (0, 1)
        )
        if left.sample.id == right.sample.id:
            return Entry(left_out="rows with the same image twice")
        answered_at = seconds(row.get("created_at") or 0)
        ids = (left.sample.id, right.sample.id)
        rater = _rater(row.get("user_id"), ids, context)
        vote = Comparison(
            id=digest(["pickapic", rater, sorted(ids), context.question]),
            prompt_id=prompt.id,
            left_ids=ids[:1],
            right_ids=ids[1:],
            left_model=left.sample.model,
            right_model=right.sample.model,
            rater=rater,
            question=context.question,
            value=value,
            simulated=context.simulated,
            shown_at=answered_at,
            answered_at=answered_at,
            shown={"imported_from": "pickapic"},
        )
        return Entry((prompt,), (left, right), comparisons=(vote,))


def _rater(user: int | float | None, ids: tuple[str, str], context: Context) -> str:
    if user is not None and not math.isnan(user):
        return f"pickapic-{int(user)}"
    nth = context.times(*sorted(ids))
    return "pickapic" if nth == 1 else f"pickapic-anonymous-{nth}"


def _is_unlabelled(row: Mapping[str, Any]) -> bool:
    if row.get("has_label") is None:
        return row["label_0"] is None and row.get("label_1") is None
    return not row["has_label"]


def _value(where: str, row: Mapping[str, Any]) -> Choice:
    label, other = row["label_0"], row.get("label_1")
    if label not in VALUES or (other is not None and label + other != 1):
        raise RowError(
            f"{where} has label_0 {label!r} and label_1 {other!r} (allowed are 1 and 0, 0 and 1, "
            "0.5 and 0.5)"
        )
    return VALUES[label]
