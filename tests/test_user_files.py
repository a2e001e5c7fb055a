"""What people write is read as editors leave it; what cannot be read is named with its line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pretraining import folder_study

from sayso.base.errors import UserError
from sayso.base.user_files import read_json, read_json_lines, read_text_lines
from sayso.cli.options import parse
from sayso.data.pretraining_images import open_pretraining
from sayso.prompts.grammar import load_grammar
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.study import Study
from sayso.web.work.tasks import read_gold

BOM = b"\xef\xbb\xbf"
FORMS = {
    "as Unix does": lambda t: t,
    "a byte order mark": lambda t: BOM + t,
    "the end of lines of Windows": lambda t: BOM + t.replace(b"\n", b"\r\n"),
    "no newline at the end": lambda t: t.rstrip(b"\n"),
    "empty lines": lambda t: b"\n" + t.replace(b"\n", b"\n\n  \n"),
    "files joined": lambda t: BOM + t.replace(b"\n", b"\n" + BOM, 1),
}  # fmt: skip


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest):
    """One way in which an editor leaves the same text."""
    return request.param


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return new(tmp_path / "study", NewConfig())


def own(study: Study, path: Path, **more: object) -> list[str]:
    write_prompts(study, PromptsConfig(file=str(path), fidelity=0, **more))  # type: ignore[arg-type]
    return [p.text for p in study.prompts()]


def test_prompts_of_a_text_file(study: Study, tmp_path: Path, form):
    path = tmp_path / "p.txt"
    path.write_bytes(form("a red dog\na blue cat\nein grüner Hund\n".encode()))
    assert own(study, path) == ["a red dog", "a blue cat", "ein grüner Hund"]


def test_prompts_of_a_json_lines_file(study: Study, tmp_path: Path, form):
    path = tmp_path / "p.JSONL"
    path.write_bytes(
        form('{"text": "a red dog"}\n{"text": "ein Köter", "split": "seen"}\n'.encode())
    )
    assert own(study, path) == ["a red dog", "ein Köter"]


def test_captions(tmp_path: Path, form):
    study = folder_study(tmp_path, n=30)
    before = (
        open_pretraining(study).train_captions(99),
        open_pretraining(study).heldout_captions(99),
    )
    path = tmp_path / "natural" / "metadata.jsonl"
    path.write_bytes(form(path.read_bytes()))
    after = open_pretraining(study).train_captions(99), open_pretraining(study).heldout_captions(99)
    assert after == before


def test_gold_votes(tmp_path: Path, form):
    path = tmp_path / "gold.jsonl"
    path.write_bytes(
        form(b'{"sample_id": "a", "value": "good"}\n{"sample_id": "b", "value": "bad"}\n')
    )
    assert read_gold(path) == {"a": "good", "b": "bad"}


def test_options_and_prompt_sets(tmp_path: Path, form):
    path = tmp_path / "own.json"
    path.write_bytes(form(b'{\n "name": "caf\xc3\xa9"\n}\n'))
    assert parse("new", NewConfig, "", ["s", "--config", str(path)]).config.name == "café"
    row = {"name": "s", "seen_objects": ["café"], "unseen_objects": ["b"], "counts": {"one": 1},
           "colours": ["red"], "backgrounds": ["at sea"]}  # fmt: skip
    path.write_bytes(form(json.dumps(row, ensure_ascii=False, indent=1).encode() + b"\n"))
    assert load_grammar(str(path)).seen_objects == ("café",)


def test_a_byte_order_mark_makes_no_second_prompt(study: Study, tmp_path: Path, capsys):
    path = tmp_path / "p.txt"
    path.write_bytes(BOM + b"a red dog\na red dog\na blue cat\na green cat\n")
    assert sorted(own(study, path, test=2, seed=3)) == ["a blue cat", "a green cat", "a red dog"]
    said = " ".join(capsys.readouterr().err.split())
    assert "p.txt: 1 lines are repeated and count once" in said


def test_the_locale_says_nothing(tmp_path: Path):
    """UTF-8 is read as such where the system's own encoding is another."""
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"text": "ein Köter 猫"}\n'.encode())
    program = (
        "import sys; from pathlib import Path;"
        "from sayso.base.user_files import read_json_lines; from sayso.base.files import read_json;"
        "print(ascii([r for _, r in read_json_lines(Path(sys.argv[1]))]));"
        "print(ascii(read_json(Path(sys.argv[1]))))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.count("ein K\\xf6ter \\u732b") == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a dog\ncaf\xe9\n", r"p\.txt line 2 is not UTF-8 text \(byte 0xe9\)"),
        (b"\xe9", r"p\.txt line 1 is not"),
        (b"a\r\nb\rc\n\xe9", r"p\.txt line 4 is not"),
        ("a dog\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_other_encodings_are_named(study: Study, tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        own(study, path)
    with pytest.raises(UserError, match=says):
        list(read_json_lines(path))
    assert not study.has_prompts


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n\n{"text": \n', "p.jsonl line 3 is not JSON"),
        ('{"text": "a"}\n["b"]', "p.jsonl line 2 is not a JSON object"),
        ('{"text": "\\ud83d"}', "p.jsonl line 1 has half a character"),
    ],
)
def test_the_line_that_is_wrong_is_named(study: Study, tmp_path: Path, content: str, says: str):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        own(study, path)
    assert not study.has_prompts


@pytest.mark.parametrize("name", ["p.csv", "p.json", "prompts", "p.txt.gz"])
def test_other_kinds_of_files_are_refused(study: Study, tmp_path: Path, name: str):
    (tmp_path / name).write_text("prompt,seed\n")
    with pytest.raises(UserError, match=r"give a \.txt file .* or a \.jsonl file"):
        own(study, tmp_path / name)


@pytest.mark.parametrize("split", ["train", "seen"])
def test_a_prompt_in_two_splits_is_one_line(study: Study, tmp_path: Path, split: str):
    path = tmp_path / "p.jsonl"
    rows = [{"text": "a dog"}, {"text": " a  dog", "split": split}]
    path.write_bytes(BOM + "\n".join(map(json.dumps, rows)).encode())
    with pytest.raises(UserError, match=f"'a dog' occurs twice .split train and {split}."):
        own(study, path)


def test_what_is_no_file_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="is missing"):
        read_text_lines(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)
