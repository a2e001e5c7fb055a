"""One word for one thing: words that are gone from source, texts, docs and recipes stay gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    # a field of every stored vote, in databases, exports and browsers' outboxes, and of the public
    # `Rating`: another name would make the votes of earlier versions unreadable
    "answered_at",
    # the question that vision-language models are asked in the literature, to the letter
    "Please answer Yes or No",
)
READERS_OF_OLD_NAMES = {
    # columns of the app's tables and a state in them, in databases of earlier versions
    "src/sayso/feedback/work_tables.py": "answer",
    "src/sayso/feedback/migrations/versions/v0003_counters.py": "answer",
    "docs/rating.md": "`answer",
    "src/sayso/stages/fit.py": '"marks": "counts"',
    "src/sayso/stages/_ready.py": '"mark"',
    "src/sayso/study/identity.py": '"mark"',
    "src/sayso/reporting/page.html.j2": "r.own_images",
}
"""File → what marks its lines that read what earlier versions wrote."""


def texts() -> Iterator[Path]:
    for folder in ("src/sayso", "docs", "recipes", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".j2", ".html", ".js", ".css", ".md", ".sh", ".mako", ".svg"):
                yield path
    yield from (
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")
    )


def names_in(path: Path) -> set[str]:
    """Names that a file of tests gives: functions, classes, arguments, variables, and its own."""
    found = {path.stem}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case _:
                pass
    return found


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
        reader = READERS_OF_OLD_NAMES.get(name, "\n")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if reader not in line:
                found += [f"{name}:{number}: {w}; say {b}" for w, b in said_wrongly(line).items()]
    assert not found, "\n".join(found)


def test_readers_of_old_names_are_still_needed() -> None:
    unused = [n for n, text in READERS_OF_OLD_NAMES.items() if text not in (ROOT / n).read_text()]
    assert not unused


def test_nothing_is_named_by_them() -> None:
    names = {str(path.relative_to(ROOT).with_suffix("")): "" for path in texts()}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names |= dict.fromkeys(names_in(path), str(path.relative_to(ROOT)))
    wrong = {name: where for name, where in names.items() if said_wrongly(name)}
    assert not wrong


PICTURE = re.compile(r"(?<!\.)\bpictures?\b(?!\.\w)", re.I)
READ_BY_USERS = ("docs", "src", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def shown(path: Path) -> list[str]:
    """What a document, a page or its scripts show, or the errors of a module say."""
    text = path.read_text(errors="replace")
    if path.suffix == ".md":
        return [re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)]
    if path.suffix == ".py":
        raised = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)]
        parts = [part for node in raised for part in ast.walk(node)]
        return [str(part.value) for part in parts if isinstance(part, ast.Constant)]
    if path.suffix == ".js":
        return re.findall(r"""["`]([^"`\n]* [^"`\n]*)["`]""", re.sub(r"//.*", "", text))
    text = re.sub(r"{%.*?%}", "", text, flags=re.S)
    return re.findall(r'(?:>|(?<!class=)")([^<>"{]*)', text)


def test_users_read_of_images_not_of_pictures() -> None:
    read = [p for p in texts() if p.relative_to(ROOT).parts[0] in READ_BY_USERS]
    found = {str(p): part for p in read for part in shown(p) if PICTURE.search(part)}
    assert not found, f"say image: {found}"
