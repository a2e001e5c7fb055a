"""Stage `export`: write the votes as tables that other programs read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sayso.base import files
from sayso.base.errors import UserError, quoted
from sayso.base.progress import console
from sayso.formats.exports import load_format, need_pyarrow
from sayso.formats.options import ExportOptions
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.formats.export_data import ExportData
    from sayso.formats.exports import ExportFormat


@dataclass(frozen=True)
class ExportConfig(ExportOptions):
    """What to export. docs/exports.md says what each format keeps and loses."""

    format: str = "sayso"
    """The format: sayso (our own, lossless), pickapic, imagerewarddb, hpdv2, hpdv3, imagefolder,
    webdataset, kto, or your own, such as ./mine.py."""
    out: str = ""
    """Output folder; default: exports/FORMAT in the study."""
    raters: Literal["auto", "people", "simulated"] = "auto"
    """Whose votes to export; auto: people's if there are any, otherwise those of simulated raters.
    The two are never mixed."""
    license: str = ""
    """Licence for the dataset card, such as cc-by-4.0; default: unknown."""


def export(study: Study, config: ExportConfig | None = None) -> Path:
    """Write one export, whole or not at all.

    Returns: the folder; with README.md (a dataset card) and manifest.json (counts, checksums).
    Raises: UserError: if pyarrow is not installed, there is nothing to export, an image that votes
        are about is missing or damaged, or the folder holds something else already.
    """
    config = config or ExportConfig()
    config.check()
    need_pyarrow()
    form = load_format(config.format)()
    out = _out(study, config)
    _refuse_foreign(out)
    files.remove_abandoned([out])
    simulated = _simulated(study, config)
    with files.new_folder(out) as folder:
        rows = _write(study, config, form, simulated, folder)
        _refuse_different(out, folder)
    console.print(f"{out}: {', '.join(f'{n} rows in {name}' for name, n in rows.items())}")
    return out


def plan(study: Study, config: ExportConfig) -> dict[str, object]:
    """Where the export would go and whose votes it would hold."""
    config.check()
    simulated = _simulated(study, config)
    votes = sum(1 for _ in study.feedback.stream(simulated))
    who = "simulated" if simulated else "people"
    return {"folder": _out(study, config), "votes of": who, "votes": votes}


def _out(study: Study, config: ExportConfig) -> Path:
    return Path(config.out) if config.out else study.export_path(Path(config.format).stem)


def _simulated(study: Study, config: ExportConfig) -> bool:
    """Whose votes to read; False is people."""
    votes = study.feedback
    there = {simulated: next(votes.stream(simulated), None) for simulated in (False, True)}
    simulated = config.raters == "simulated"
    if config.raters == "auto":
        simulated = there[False] is None
    if there[simulated] is None:
        who = {"auto": "anybody", "simulated": "simulated raters"}.get(config.raters, "people")
        raise UserError(
            f"{study.path} has no votes by {who}; collect some with sayso rate {quoted(study.path)}"
        )
    return simulated


def _refuse_foreign(out: Path) -> None:
    """Refuse at once what is no export, before any work is done."""
    if out.is_file():
        raise UserError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise UserError(f"{out} exists and is not an export; choose another --out")


def _refuse_different(out: Path, folder: Path) -> None:
    """Refuse to replace another export; an equal one, file by file, may be replaced."""
    from sayso.formats.manifest import NAME, checksums

    if not (out / NAME).is_file():
        return
    same = (out / NAME).read_bytes() == (folder / NAME).read_bytes()
    if not same or checksums(out) != checksums(folder):
        raise UserError(
            f"{out} exists and differs from what would be written now (other votes, options or "
            "changed files); delete it or choose another --out"
        )


def _write(
    study: Study, config: ExportConfig, form: "ExportFormat", simulated: bool, folder: Path
) -> Mapping[str, int]:
    from sayso.formats.export_data import ExportData
    from sayso.formats.exports._card import card
    from sayso.formats.manifest import write_manifest

    votes = folder / ".votes.parquet"
    data = ExportData(study, config, votes, simulated)
    counts = data.counts
    rows = form.write(data, folder)
    if not rows:
        raise UserError(
            f"nothing to export: format {config.format} can hold none of the {counts['votes']} "
            f"votes (left out: {data.left_out}); choose another --format or --question"
        )
    votes.unlink(missing_ok=True)
    name = Path(config.format).stem
    text = card(data, form, name, rows, config.license)
    (folder / "README.md").write_text(text, encoding="utf-8")
    write_manifest(folder, _facts(config, data, name, rows))
    return rows


def _facts(
    config: ExportConfig, data: "ExportData", name: str, rows: Mapping[str, int]
) -> dict[str, object]:
    options = {f.name: getattr(config, f.name) for f in fields(ExportOptions)}
    return {
        "format": name,
        "study": data.study.info.name,
        "raters": "simulated" if data.simulated else "people",
        "options": options,
        "counts": data.counts,
        "rows": dict(rows),
        "left_out": data.left_out,
    }
