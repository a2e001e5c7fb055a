"""The manifest of an export: what is in it, and the checksum of every file."""

from collections.abc import Mapping
from pathlib import Path

from sayso.base import files
from sayso.base.errors import UserError

NAME = "manifest.json"
VERSION = 1
"""Format of the manifest and of our own tables; newer ones are refused."""


def checksums(folder: Path) -> dict[str, dict[str, object]]:
    """Size in bytes and SHA-256 of every file of a folder but its manifest, by path."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)
    return {str(p.relative_to(folder)): _checksum(p) for p in found}


def _checksum(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write manifest.json: `facts` and the checksums of what is there."""
    manifest = {"manifest_version": VERSION, **facts, "files": checksums(folder)}
    files.write_json(folder / NAME, manifest)


def read_manifest(folder: Path) -> files.JsonObject:
    """The manifest of an export, after every file was compared with it.

    Raises: UserError: if it is missing or newer, or a file is missing, changed or extra.
    """
    manifest = files.read_json(folder / NAME)
    if manifest.get("manifest_version") != VERSION:
        raise UserError(
            f"{folder / NAME} has version {manifest.get('manifest_version')!r}, but this sayso "
            f"reads {VERSION}; upgrade sayso"
        )
    written, there = manifest.get("files", {}), checksums(folder)
    changed = sorted(k for k in written.keys() | there.keys() if written.get(k) != there.get(k))
    if changed:
        raise UserError(
            f"{folder / changed[0]} is not what {NAME} says ({len(changed)} files differ); get "
            "the export again"
        )
    return manifest
