"""A word-level vocabulary in CLIP's byte-pair format: every word of the grammar is one token."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from transformers import CLIPTokenizer

MAX_TOKENS = 16
_END = "</w>"
_START_OF_TEXT, _END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: Sequence[str]) -> Any:
    """Return a tokenizer that knows `words` whole and spells all others in bytes.

    Merges of a later word rank below those of all earlier ones, so they cannot break them up.
    """
    letters = sorted(_byte_letters())
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _split(word, merges)
        for i in range(1, len(pieces)):
            merges.append(("".join(pieces[:i]), pieces[i]))
    names = [*letters, *(letter + _END for letter in letters)]
    names += dict.fromkeys(left + right for left, right in merges)
    names += [_START_OF_TEXT, _END_OF_TEXT]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    build: Any = CLIPTokenizer  # its annotation leaves out pairs, which its vocabulary file needs
    return build(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _byte_letters() -> list[str]:
    """The 256 visible letters that stand for bytes in byte-level vocabularies."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges, in order of rank, until none fits."""
    pieces = [*word[:-1], word[-1] + _END]
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [(rank.get(pair, -1), pair) for pair in pairwise(pieces)]
        known = [pair for pair in pairs if pair[0] >= 0]
        if not known:
            return pieces
        best = min(known)[1]
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
            else:
                merged.append(piece)
        pieces = merged
