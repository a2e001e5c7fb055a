"""Files that people write: prompts, captions, gold votes, options; as any editor leaves them.

UTF-8 with or without a byte order mark, lines ended as on any system, the last one ended or not.
What Sayso itself appends is read by `files.read_lines`, where a half-written line means a crash.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError
from sayso.base.files import JsonObject

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file, its lines ended by "\\n".

    Raises: UserError: if there is no such file, or naming the first line that is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check its name") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a file") from None
    if content.startswith(_WIDE):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(content[: error.start].replace(b"\r\n", b"\n").splitlines() or [b""])
        number += content[: error.start].endswith((b"\n", b"\r"))
        raise UserError(
            f"{path} line {number} is not UTF-8 text (byte {content[error.start]:#04x}); "
            "save it as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n\ufeff", "\n")  # where files were joined


def read_text_lines(path: Path) -> list[str]:
    """The lines that are not empty; white space within them is one space.

    Raises: UserError: as `read_text`.
    """
    return [" ".join(line.split()) for line in read_text(path).split("\n") if line.strip()]


def read_json_lines(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """The JSON objects of a file with one a line, and where each stands, for error messages.

    Raises: UserError: as `read_text`, or naming the first line that is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path} line {number}"
        if line.strip():
            yield where, _object(where, line)


def read_json(path: Path) -> JsonObject:
    """The JSON object of a file.

    Raises: UserError: as `read_text`, or if it is none.
    """
    return _object(str(path), read_text(path))


def _object(where: str, text: str) -> JsonObject:
    try:
        value: Any = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has half a character (a lone surrogate); delete it") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); fix it") from None
    if not isinstance(value, dict):
        raise UserError(f'{where} is not a JSON object; write {{"name": value, …}}')
    return value
