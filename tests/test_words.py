"""One word for one thing: words that are gone from source, texts, docs and recipes stay gone."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEAKS_OF_STORED_ANSWERS = ("src/sayso/web/", "docs/rating.md")
"""The rating app has columns, states and fields of messages called answers and answered."""

GONE = {
    "mark": "rating (of one image), label (what its votes come to) or verdict (of a judge)",
    "ballot": "vote",
    "judgement": "vote, rating or verdict",
    "judgment": "vote, rating or verdict",
    "answer": "vote or value; response, of a server",
    "receipt": "record",
    "seat": "assignment",
    "office": "the name of what it is",
    "desk": "the name of what it is",
    "circumstance": "the name of what it is",
    "material": "data",
}
"""Word, in any of its forms and as a part of any name → what to say."""
PHRASES = {
    r"own[ _-](images?|pictures?)": "samples",
    r"natural[ _-](images?|pictures?|photos?)": "pretraining_images, pre-training images",
    r"soft[ _-]targets?": "label",
}
ALLOWED = (
    "byte order mark",
    "byte_order_mark",
    "question mark",
    "question_mark",
    # names stored in databases, exports and votes
    "answered_at",
    '"answers"',
    "SET answers",
    'row["answers"]',
    "'answered'",
    "| released | answered |",
    "`answered_at`",
)
READERS_OF_OLD_NAMES = {
    "src/sayso/stages/fit.py": '"marks": "counts"',
    "src/sayso/stages/align.py": '"mark"',
    "src/sayso/study/identity.py": '"mark"',
    "src/sayso/reporting/page.html.j2": "r.own_images",
}
"""File → what marks its lines that read what earlier versions wrote."""


def texts() -> Iterator[Path]:
    for folder in ("src/sayso", "docs", "recipes", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".j2", ".html", ".js", ".css", ".md", ".sh", ".mako"):
                yield path
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))


def parts(line: str) -> set[str]:
    """The words of a line, those that names are made of too: `_ownMarks` has own and marks."""
    split = re.sub(r"([a-z])([A-Z])", r"\1 \2", line)
    return {word.lower() for word in re.findall(r"[A-Za-z]+", split)}


FORMS = {word: {word, *(word + end for end in ("s", "ed", "ing"))} for word in GONE}


def said_wrongly(line: str) -> dict[str, str]:
    """Gone words of a line → what to say."""
    for allowed in ALLOWED:
        line = line.replace(allowed, "")
    here = parts(line)
    words = {word: better for word, better in GONE.items() if here & FORMS[word]}
    found = {p: better for p, better in PHRASES.items() if re.search(rf"\b{p}\b", line, re.I)}
    return words | found


@pytest.mark.parametrize(
    "line",
    ["people marked it", "def own_marks(", "class _BallotBox", "two judgements", "its answers",
     "on own images", "natural pictures", "seatsOf(", "const deskOf = 1"],
)  # fmt: skip
def test_gone_words_are_found_in_names_and_texts(line: str) -> None:
    assert said_wrongly(line)


@pytest.mark.parametrize(
    "line", ["from markupsafe import Markup", "benchmarks", "remarkable", "a markdown file",
             "a byte order mark", "vote.answered_at", "it looks more natural"],
)  # fmt: skip
def test_other_words_that_hold_them_are_not(line: str) -> None:
    assert not said_wrongly(line)


def test_gone_words_are_said_nowhere() -> None:
    found = []
    for path in texts():
        name = str(path.relative_to(ROOT))
        stored = {"answer"} if name.startswith(SPEAKS_OF_STORED_ANSWERS) else set[str]()
        reader = READERS_OF_OLD_NAMES.get(name, "\n")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if reader not in line:
                wrong = said_wrongly(line)
                found += [f"{name}:{number}: {w}; say {wrong[w]}" for w in wrong.keys() - stored]
    assert not found, "\n".join(found)


def test_files_and_tests_are_not_named_by_them() -> None:
    names = [str(path.relative_to(ROOT).with_suffix("")) for path in texts()]
    for path in sorted((ROOT / "tests").glob("*.py")):
        names += re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    assert not {name: wrong for name in names if (wrong := said_wrongly(name))}
