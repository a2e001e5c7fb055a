"""The prompts of the tiny world: every object, count, colour and background that it draws."""

from dataclasses import replace

from sayso.prompts.grammar import Grammar, share_out
from sayso.tinyworld import scenes
from sayso.tinyworld.defaults import PROMPTS


def grammar() -> Grammar:
    """The grammar, with the numbers of prompts that suit a demo of minutes."""
    plain = Grammar(
        name="tinyworld",
        seen_objects=scenes.SEEN_OBJECTS,
        unseen_objects=scenes.UNSEEN_OBJECTS,
        plurals={noun: scenes.plural(noun) for noun in scenes.OBJECTS},
        counts=scenes.COUNTS,
        colours=scenes.COLOURS,
        backgrounds=scenes.BACKGROUNDS,
    )
    return replace(plain, sizes=share_out(plain, **PROMPTS))
