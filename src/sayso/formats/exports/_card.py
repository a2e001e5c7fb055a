"""The dataset card: README.md with the header that dataset hubs read."""

import json
from collections.abc import Mapping

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat

CHOICES = "left, right, tie (or, if the task offers them, both good or both bad instead) or skip."
ASKED = {
    "alignment": "Does the image show what the prompt asks for? good, bad or skip. For two sets of "
    f"images: which shows it better? {CHOICES}",
    "fidelity": "How natural and free of faults is the image? good, bad or skip. For two sets of "
    f"images: which is better? {CHOICES}",
}


def card(
    data: ExportData, form: ExportFormat, name: str, rows: Mapping[str, int], license_: str
) -> str:
    """The text of README.md."""
    title = f"{data.study.info.name} ({name})"
    sections = [
        f"---\n{_header(title, form, rows, license_)}\n---",
        f"# {title}",
        f"{form.summary} Written by Sayso; `manifest.json` has the checksum of every file.",
        "## Questions\n\n" + _asked(data),
        "## Contents\n\n" + _counts(data, rows),
        "## Columns\n\n" + _table("column", "meaning", form.columns),
        "## Licence\n\n" + _licence(license_),
    ]
    return "\n\n".join(sections) + "\n"


def _header(title: str, form: ExportFormat, rows: Mapping[str, int], license_: str) -> str:
    """YAML; every string is also valid JSON, which YAML contains."""
    lines = [
        f"license: {json.dumps(license_ or 'unknown')}",
        f"pretty_name: {json.dumps(title, ensure_ascii=False)}",
        "task_categories:\n- text-to-image",
        f"size_categories:\n- {_size(sum(rows.values()))}",
    ]
    configs = [_config(c, splits, rows) for c, splits in form.configs.items()]
    if any(configs):
        lines.append("configs:\n" + "\n".join(c for c in configs if c))
    return "\n".join(lines)


def _config(name: str, splits: Mapping[str, str], rows: Mapping[str, int]) -> str:
    there = {s: pattern for s, pattern in splits.items() if rows.get(s) or rows.get(name)}
    if not there:
        return ""
    files = [f"  - split: {s}\n    path: {json.dumps(pattern)}" for s, pattern in there.items()]
    return f"- config_name: {name}\n  data_files:\n" + "\n".join(files)


def _size(rows: int) -> str:
    steps = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((word for limit, word in steps.items() if rows < limit), "1M<n<10M")


def _asked(data: ExportData) -> str:
    who = "programs (simulated raters)" if data.simulated else "people"
    asked = [f"- **{question}**: {text}" for question, text in ASKED.items()]
    return (
        f"Raters are {who}. They were asked about images and the prompts they were generated "
        "for:\n\n" + ("\n".join(asked))
    )


def _counts(data: ExportData, rows: Mapping[str, int]) -> str:
    votes = _table("in the store", "number", data.counts)
    written = _table("rows here", "number", rows)
    text = f"{votes}\n\n{written}"
    if data.left_out:
        text += f"\n\nNot included in this format:\n\n{_table('left out', 'number', data.left_out)}"
    return text + (
        "\n\nRaters' names are replaced by keyed hashes; the key stays with the study's owner. "
        "Base model: " + json.dumps(data.base_model, ensure_ascii=False) + "."
    )


def _licence(license_: str) -> str:
    if license_:
        return f"`{license_}`, as stated by the person who made this export."
    return (
        "Not stated. Choose one before you publish (`sayso export --license …`): it must be "
        "compatible with the licence of the model that generated the images and with what the "
        "raters agreed to."
    )


def _table(left: str, right: str, rows: Mapping[str, object]) -> str:
    lines = [f"| {left} | {right} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {key} | {value} |" for key, value in rows.items()])
