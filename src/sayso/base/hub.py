"""Files of models that others published: on this machine, or fetched from the hub."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from sayso.base.errors import UserError

MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json")
"""Files of a model's folder in transformers' layout that hold the model; no pickle."""
PROCESSOR = (
    "tokenizer*", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "chat_template*",
)  # fmt: skip
"""Those that hold what is made of texts and pictures for it."""
_IN_HUB = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>\w[\w./+-]*))?")


def full_place(place: str) -> str:
    """A path as an absolute one, a place on the hub as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() or not _IN_HUB.fullmatch(place) else place


def copy_files(folder: Path, to: Path, patterns: Sequence[str]) -> None:
    """Copy the files of a folder, not of those below it, that match one of the patterns.

    Raises: UserError: if it is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the model's folder")
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in patterns):
            shutil.copyfile(path, to / path.name)


def fetched(place: str, what: str, patterns: Sequence[str] = ()) -> Path:
    """The file or folder at `place`, fetched from the hub if it is not on this machine.

    Args:
        place: a path; owner/name, a repository of the hub; or owner/name/file, a file of one.
        what: the words for it in an error.
        patterns: which files of a whole repository are fetched; none = the model's and the
            processor's.
    Raises: UserError: if it is none of these, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    path = Path(place).expanduser()
    if path.exists():
        return path.resolve()
    named = _IN_HUB.fullmatch(place)
    if not named:
        raise UserError(f"{what} {place!r} does not exist; check the path")
    wanted = [*(patterns or (*MODEL, *PROCESSOR)), "README.md"]
    try:
        if named["file"]:
            return Path(hf_hub_download(named["repository"], named["file"]))
        return Path(snapshot_download(place, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(". ")
        raise UserError(
            f"{what} {place!r} is not on this machine and could not be fetched from the hub "
            f"({reason}); give a path"
        ) from None
