"""Prompts from a grammar of slots: the paper's four groups, split by object, altered prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sayso.base import files, user_files
from sayso.base.errors import UserError, unknown_name
from sayso.base.types import CATEGORIES, Prompt, Split, digest
from sayso.base.worlds import DEFAULT, find_world, world_names

Slots = dict[str, str | int]
Sizes = Mapping[str, Mapping[str, int]]
"""Prompts wanted: split ("train", "validation", "seen", "unseen") → group → number."""

ASKED: Mapping[str, tuple[str, ...]] = {
    "count": ("object", "count"),
    "colour": ("object", "colour"),
    "background": ("object", "background"),
    "combination": ("object", "count", "colour", "background"),
}
"""The slots that each of the paper's four groups asks for."""

TRAIN_SHARES = (0.235, 0.126, 0.087, 0.552)
"""The paper's shares of images by group (count 6,480 of 27,528, …); our shares of train prompts."""

TESTS: tuple[Split, ...] = ("seen", "unseen")

IMAGES_PER_PROMPT = 4
"""Images drawn for a prompt where its set does not say."""

_SETS = Path(__file__).parent / "sets"


@dataclass(frozen=True)
class Grammar:
    """The words that fill the slots of a set of prompts.

    Args:
        seen_objects: objects, in the singular, of train prompts and of "seen" test prompts.
        unseen_objects: objects of "unseen" test prompts only.
        plurals: plurals that are not the singular with an s.
        counts: number word → number, from one on.
        backgrounds: with their preposition.
        alike: values that one picture can show both of; neither replaces the other in altered
            prompts.
        bystanders: objects that may stand in a picture unasked (a tree, a table's cup) and hence
            replace none in altered prompts.
        sizes: the set's own numbers of prompts; empty for none.
        images_per_prompt: the set's own numbers of images per prompt, by group.
    """

    name: str
    seen_objects: tuple[str, ...]
    unseen_objects: tuple[str, ...]
    counts: Mapping[str, int]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    plurals: Mapping[str, str] = field(default_factory=dict[str, str])
    alike: tuple[tuple[str, ...], ...] = ()
    bystanders: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=dict[str, dict[str, int]])
    images_per_prompt: Mapping[str, int] = field(default_factory=dict[str, int])
    about: str = ""

    @cached_property
    def number_words(self) -> dict[int, str]:
        return {number: word for word, number in self.counts.items()}

    def values(self, slot: str, objects: tuple[str, ...]) -> list[str | int]:
        """All values of a slot, `objects` being those allowed."""
        every: dict[str, list[str | int]] = {
            "object": list(objects),
            "count": list(self.counts.values()),
            "colour": list(self.colours),
            "background": list(self.backgrounds),
        }
        return every[slot]


def grammar_names() -> list[str]:
    """The sets that ship with the package."""
    return sorted([*world_names(), *(p.stem for p in _SETS.glob("*.json"))])


def load_grammar(name_or_path: str) -> Grammar:
    """The grammar of a shipped set or world, or of a JSON file with the fields of `Grammar`.

    No name means the default world.

    Raises: UserError: for an unknown name, a missing file, or wrong fields.
    """
    if world := find_world(name_or_path or DEFAULT):
        return world.grammar()
    shipped = _SETS / f"{name_or_path}.json"
    if name_or_path in grammar_names():
        return _parse(shipped, files.read_json(shipped))
    if name_or_path.endswith(".json"):
        return _parse(Path(name_or_path), user_files.read_json(Path(name_or_path)))
    raise unknown_name("prompt set", name_or_path, grammar_names())


def _parse(path: Path, row: files.JsonObject) -> Grammar:
    known = {f.name for f in fields(Grammar)}
    needed = {"name", "seen_objects", "unseen_objects", "counts", "colours", "backgrounds"}
    odd = sorted((row.keys() - known) | (needed - row.keys()))
    if odd:
        raise UserError(
            f"{path} has missing or unknown fields: {', '.join(odd)}; "
            f"needed {', '.join(sorted(needed))}, allowed {', '.join(sorted(known))}"
        )
    frozen = {key: _tuples(value) for key, value in row.items()}
    return Grammar(**frozen)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def phrase(grammar: Grammar, slots: Mapping[str, str | int]) -> str:
    """Say the slots as the paper does.

    "two dogs", "a green colored dog", "a dog on the moon", "five white dogs in the city".

    Source: Lee et al. 2023, arXiv 2302.12192, the four prompt groups.
    """
    noun, colour = str(slots["object"]), str(slots.get("colour", ""))
    if "count" in slots:
        count = int(slots["count"])
        many = grammar.plurals.get(noun, f"{noun}s")
        words = [grammar.number_words[count], colour, noun if count == 1 else many]
    elif colour:
        words = [article(colour), colour, "colored", noun]
    else:
        words = [article(noun), noun]
    return " ".join(word for word in [*words, str(slots.get("background", ""))] if word)


def images_per_prompt(set_name: str, category: str) -> int:
    """How many images a set draws for a prompt of one group; `IMAGES_PER_PROMPT` if not said."""
    known = set_name in grammar_names() or set_name.endswith(".json")
    numbers = load_grammar(set_name).images_per_prompt if known else {}
    return int(numbers.get(category, IMAGES_PER_PROMPT))


# how many, and which


def capacity(grammar: Grammar, category: str, split: str) -> int:
    """How many different prompts of a group there are for a split.

    Seen test prompts may take a third of those with seen objects, and so may validation prompts;
    train prompts get the rest.
    """
    objects = grammar.unseen_objects if split == "unseen" else grammar.seen_objects
    total = int(np.prod([len(grammar.values(s, objects)) for s in ASKED[category]]))
    return total // 3 if split in ("seen", "validation") else total


def share_out(grammar: Grammar, train: int, seen: int, unseen: int, validation: int = 0) -> Sizes:
    """Divide totals over the four groups: train by the paper's shares, the others evenly.

    What a small group cannot give goes to the groups that can, the combinations first.

    Raises: UserError: if there are not that many different prompts.
    """
    evenly = (0.25,) * 4
    tests = {
        "seen": _share(grammar, "seen", seen, evenly, {}),
        "unseen": _share(grammar, "unseen", unseen, evenly, {}),
    }
    chosen_on = _share(grammar, "validation", validation, evenly, tests["seen"])
    taken = {c: tests["seen"][c] + chosen_on[c] for c in CATEGORIES}
    return {
        "train": _share(grammar, "train", train, TRAIN_SHARES, taken),
        "validation": chosen_on,
        **tests,
    }


def _share(
    grammar: Grammar, split: str, total: int, shares: tuple[float, ...], taken: Mapping[str, int]
) -> dict[str, int]:
    free = {c: capacity(grammar, c, split) - taken.get(c, 0) for c in CATEGORIES}
    if not 0 <= total <= sum(free.values()):
        raise UserError(
            f"{total} {split} prompts requested; set {grammar.name} has at most "
            f"{sum(free.values())} such prompts: ask for fewer"
        )
    sizes = {c: min(free[c], int(total * s)) for c, s in zip(CATEGORIES, shares, strict=True)}
    for category in reversed(CATEGORIES):
        missing = total - sum(sizes.values())
        sizes[category] += min(missing, free[category] - sizes[category])
    return sizes


def make_prompts(grammar: Grammar, sizes: Sizes, seed: int = 0) -> list[Prompt]:
    """Choose prompts: balanced over all values of all slots, no text twice, seeded.

    Test and validation prompts are chosen first, so their number decides which texts training may
    use.

    Args:
        sizes: how many per split and group, as `share_out` or a set's own `sizes` says.

    Raises: UserError: if a group has fewer different prompts than asked.
    """
    rng = np.random.default_rng([seed, 1])
    chosen: dict[str, list[Prompt]] = {split: [] for split in ("train", "validation", *TESTS)}
    for category in CATEGORIES:
        used: set[str] = set()
        for split in (*TESTS, "validation", "train"):
            wanted = sizes.get(split, {}).get(category, 0)
            # as before there were such prompts
            if split == "validation" and not wanted:
                continue
            found = _choose(grammar, category, split, wanted, used, rng)
            used.update(p.text for p in found)
            chosen[split] += found
    return [prompt for prompts in chosen.values() for prompt in prompts]


def _choose(
    grammar: Grammar, category: str, split: Split, n: int, used: set[str],
    rng: np.random.Generator,
) -> list[Prompt]:  # fmt: skip
    """`n` unused prompts, each time one whose slot values were chosen least so far."""
    objects = grammar.unseen_objects if split == "unseen" else grammar.seen_objects
    values = [grammar.values(slot, objects) for slot in ASKED[category]]
    shape = tuple(len(v) for v in values)
    every = [dict(zip(ASKED[category], row, strict=True)) for row in product(*values)]
    free = np.array([phrase(grammar, slots) not in used for slots in every])
    if n > free.sum():
        raise UserError(
            f"{n} {category} prompts requested for split {split}; set {grammar.name} has only "
            f"{free.sum()} left: ask for fewer"
        )
    picked = _balanced(shape, free, n, rng)
    return [make_prompt(phrase(grammar, every[i]), split, category, every[i]) for i in picked]


def _balanced(
    shape: tuple[int, ...], free: np.ndarray, n: int, rng: np.random.Generator
) -> list[int]:
    index = np.unravel_index(np.arange(free.size), shape)
    uses = [np.zeros(size) for size in shape]
    cost = np.where(free, 0.0, np.inf) + rng.random(free.size) * 1e-3
    picked: list[int] = []
    for _ in range(n):
        # a value of a long list is worth as much as its share: uses times number of values
        load = sum(u[i] * len(u) for u, i in zip(uses, index, strict=True))
        best = int(np.argmin(cost + load))
        picked.append(best)
        cost[best] = np.inf
        for u, i in zip(uses, index, strict=True):
            u[i[best]] += 1
    return picked


def make_prompt(
    text: str, split: Split, category: str = "custom", slots: Slots | None = None, n: int = 0
) -> Prompt:
    """A prompt whose id is a hash of text and split; `n` tells equal captions apart."""
    identity = [text, split, n] if n else [text, split]
    return Prompt(digest(identity), text, category, slots or {}, split)


# altered prompts


def altered(prompt: Prompt, grammar: Grammar, n: int, rng: np.random.Generator) -> list[str]:
    """Texts like the prompt with one asked slot replaced, hence not true of a good image.

    Replaced are only slots that the prompt asks for: of the others nobody knows what the image
    shows. An object of training is replaced by another one of training, so that nothing is
    learned about unseen objects; an unseen one by any.

    Args:
        n: how many; all of them different, fewer if the grammar has no more.

    Raises: UserError: if the prompt has no slots or its object is not of this grammar.
    Source: Lee et al. 2023, arXiv 2302.12192, prompt classification. How many and which is not
        given there.
    """
    seen, every = grammar.seen_objects, grammar.seen_objects + grammar.unseen_objects
    if prompt.slots.get("object") not in every:
        raise UserError(
            f"prompt {prompt.text!r} has no slots of set {grammar.name}; only prompts of a set "
            "can be altered by rule: use other prompts, or turn off prompt classification"
        )
    objects = seen if prompt.slots["object"] in seen else every
    options = {s: _others(grammar, s, prompt.slots[s], objects) for s in prompt.slots}
    texts: list[str] = []
    # slots take turns, so that a long list of objects does not crowd out the short one of counts
    queues = [rng.permutation(len(options[s])).tolist() for s in options]
    while len(texts) < n and any(queues):
        for i in rng.permutation(len(queues)).tolist():
            slot = list(options)[i]
            if queues[i] and len(texts) < n:
                texts.append(_replaced(prompt, grammar, slot, options[slot][queues[i].pop()]))
    return texts


def _replaced(prompt: Prompt, grammar: Grammar, slot: str, value: str | int) -> str:
    return phrase(grammar, {**prompt.slots, slot: value})


def _others(
    grammar: Grammar, slot: str, value: str | int, objects: tuple[str, ...]
) -> list[str | int]:
    alike = {other for group in grammar.alike if value in group for other in group}
    banned = alike | {value} | (set(grammar.bystanders) if slot == "object" else set())
    return [v for v in grammar.values(slot, objects) if v not in banned]


def article(word: str) -> str:
    """Return "a" or "an", as the word after it asks."""
    return "an" if word[0] in "aeiou" else "a"
