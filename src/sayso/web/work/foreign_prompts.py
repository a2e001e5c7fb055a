"""Which prompt no picture of another prompt is true of, for attention checks.

Slots tell it for sure. Of plain text nobody but a person knows ("an automobile" is true of many a
red car), so there it is only proposed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

from sayso.base.types import Prompt
from sayso.prompts.grammar import grammar_names, load_grammar
from sayso.web.work.queue import Standing

_TOO_COMMON = 0.2  # of the prompts: a word in more of them ("photo") tells none from another

T = TypeVar("T")


class Fits:
    """Whether a picture of one prompt may be true of another, told from all `prompts`."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._stems = {prompt.text: _stems(prompt.text) for prompt in prompts}
        often = Counter(stem for stems in self._stems.values() for stem in stems)
        most = max(1, _TOO_COMMON * len(self._stems))
        self._common = {stem for stem, n in often.items() if n > most}

    def first_foreign(
        self, prompt: Prompt, among: Sequence[T], of: Callable[[T], Prompt], shown: bool = False
    ) -> tuple[T, Standing] | None:
        """The first that is surely foreign to a prompt; else one that may be, to be looked at.

        Args:
            shown: whether `prompt` is the one that stands on the page and not the picture's.
        """
        perhaps: T | None = None
        for one in among:
            picture, text = (of(one), prompt) if shown else (prompt, of(one))
            if is_surely_foreign(picture, text):
                return one, ""
            if perhaps is None and self._may_be_foreign(picture, text):
                perhaps = one
        return None if perhaps is None else (perhaps, "proposed")

    def _may_be_foreign(self, one: Prompt, other: Prompt) -> bool:
        """Whether each has words that tell it from others, and none of them is the other's."""
        left, right = (self._stems[p.text] - self._common for p in (one, other))
        return bool(left) and bool(right) and not left & right


def is_surely_foreign(picture: Prompt, text: Prompt) -> bool:
    """Whether no picture of one prompt is true of another text, by the slots of both.

    Their objects differ and no value is shared; the object of the text is none that stands in many
    pictures unasked, nor one that is taken for the other.
    """
    objects = [str(prompt.slots.get("object", "")).lower() for prompt in (picture, text)]
    if not all(objects) or set(picture.slots.values()) & set(text.slots.values()):
        return False
    alike = any(all(o in group for o in objects) for group in _TAKEN_FOR_EACH_OTHER)
    return (
        not alike
        and objects[1] not in _bystanders()
        and not _stems(objects[0]) & _stems(objects[1])
    )


_TAKEN_FOR_EACH_OTHER = (
    ("dog", "wolf"), ("cat", "lion", "tiger"), ("cup", "vase"), ("vase", "rose"),
)  # fmt: skip


@cache
def _bystanders() -> frozenset[str]:
    return frozenset(word for name in grammar_names() for word in load_grammar(name).bystanders)


def _stems(text: str) -> set[str]:
    """The beginnings of the words that carry meaning, roughly."""
    return {word[:4] for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - _SMALL_WORDS


_SMALL_WORDS = {
    "the", "and", "with", "colo", "for", "from", "one", "two", "thre", "four", "five",
}  # fmt: skip
