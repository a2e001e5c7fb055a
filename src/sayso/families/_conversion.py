"""Bases that are no folder yet: a single file, or a model with a LoRA on top, made one once.

The folder is in the user's cache under a digest of all that went into it, so it is shared by
studies and never stands for anything else.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers

from sayso.base.errors import UserError
from sayso.base.files import sync_folder, write_json
from sayso.base.hashes import MADE_OF, file_digest, folder_digest, user_cache
from sayso.base.progress import console
from sayso.base.types import digest
from sayso.families._diffusers import DiffusersPolicy
from sayso.families._folder import refuse_few_step_names
from sayso.families._loading import family, resolve
from sayso.families._lora import LORA_FILE, add_lora
from sayso.families._single_file import CPU, fetch_template, read_single_file, template_of

SINGLE = ".safetensors"
CARD = "README.md"
"""The model card, which names the licence."""


def as_folder(base: str, config: str = "", lora: str = "") -> Path:
    """The folder in diffusers' layout of a base model, made if it is not there yet.

    Args:
        base: a .safetensors file; with a LoRA also a folder, a world or a hub id.
        config: a folder or hub id whose configs a single file is read with; "" = those of the
            model of its architecture on the hub.
        lora: a LoRA to add to the weights; "" = none.
    Raises: UserError: if the parts do not belong together, or are not there.
    """
    single = base.endswith(SINGLE)
    refuse_few_step_names(Path(base), Path(lora).stem)
    if config and not single:
        raise UserError(f"--base-config is for a single file, and {base} is none; leave it away")
    file = _file(base) if single else None
    template = _template(file, config) if file else resolve(base)
    kind = family(template)
    if not issubclass(kind, DiffusersPolicy):
        raise UserError(f"the family of {base} takes neither single files nor a LoRA")
    added = _lora_file(lora) if lora else None
    origin = {
        "base": str(file or base),
        "base_sha256": file_digest(file) if file else folder_digest(template),
        "config": str(template) if file else "",
        "config_digest": folder_digest(template) if file else "",
        "lora": str(added or ""),
        "lora_sha256": file_digest(added) if added else "",
        "diffusers": diffusers.__version__,
    }
    key = digest(
        [value for name, value in origin.items() if name not in ("base", "config", "lora")]
    )
    folder = user_cache() / "models" / f"{Path(base).name.removesuffix(SINGLE)}-{key}"
    if not folder.is_dir():
        console.print(f"{base} is written as a folder to {folder}", soft_wrap=True)
        with _new_folder(folder) as temporary:
            _write(kind, template, file, added, temporary, base)
            write_json(temporary / MADE_OF, origin)
    return folder


def _write(
    kind: type[DiffusersPolicy],
    template: Path,
    file: Path | None,
    lora: Path | None,
    folder: Path,
    base: str,
) -> None:
    if file:
        pipeline = read_single_file(kind, file, template)
    else:
        pipeline = kind(template, CPU, None).pipeline()
    if lora:
        add_lora(pipeline, lora, base)
    pipeline.save_pretrained(folder, safe_serialization=True)
    del pipeline
    if not file and (template / CARD).is_file():
        shutil.copy(template / CARD, folder)
    kind(folder, CPU, None)  # whole and finite, or refused before it has its name


def _template(file: Path, config: str) -> Path:
    if not config:
        return fetch_template(file, template_of(file))
    folder = Path(config).expanduser()
    return resolve(config) if folder.exists() or config.count("/") != 1 else (
        fetch_template(file, config)
    )  # fmt: skip


def _file(name: str) -> Path:
    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"no model at {file}: there is no such file; check the path")
    return file


def _lora_file(name: str) -> Path:
    path = Path(name).expanduser().resolve()
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UserError(
            f"no LoRA at {file}: give a .safetensors file, or a folder with {LORA_FILE}"
        )
    return file


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not folder.is_dir():  # or another process was faster
            temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
