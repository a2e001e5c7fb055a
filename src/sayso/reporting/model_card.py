"""The card of a tuned model: what it was made of, from whose votes, and what was measured."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from PIL import Image

from sayso.reporting.gallery import chosen
from sayso.reporting.report_data import ReportData
from sayso.reporting.summary import summarise
from sayso.reporting.words import number, percent
from sayso.study.generations import Generations
from sayso.study.run import Run
from sayso.study.study import Study

PICTURES = "before-after.png"
PROMPTS_SHOWN = 6
CELL_PX, GAP_PX = 256, 8
TRUE = "images true to their prompt"
NOT_MEASURED = "## Measured\n\nThis model has not been evaluated."


def write_card(study: Study, run: Run, folder: Path, *, adapters: bool) -> None:
    """Write README.md and, where base and tuned model drew the same prompts, before-after.png.

    Args:
        run: of align.
        folder: where the weights are.
        adapters: whether they are a LoRA.
    """
    pairs = _pairs(study, run)
    if pairs:
        _grid(study, pairs).save(folder / PICTURES)
    text = card(study, run, [text for text, *_ in pairs], adapters=adapters)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card(study: Study, run: Run, shown: list[str], *, adapters: bool) -> str:
    """The card's text.

    Args:
        shown: prompts of the images of before and after, from top to bottom.
    """
    data = ReportData(study, _evaluation(study, run))
    summary = summarise(data)
    loaded = run.environment.get("loaded", [])
    licences = {row["folder"]: row["licence"] or "not stated" for row in loaded}
    base = study.info.base_model
    own = next(iter(licences.values()), None)
    facts = ModelCardData(
        base_model=base if base.count("/") == 1 and not Path(base).exists() else None,
        license=own if own != "not stated" else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[
            "text-to-image",
            *(["human-feedback"] if summary["feedback"]["kind"] == "people" else []),
            *(["lora"] if adapters else []),
        ],
    )
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {study.info.name}: {run.name}",
        _made(study, run),
        _prompts(study),
        _feedback(summary),
        _measured(summary) if data.models.get("aligned") == run.name else NOT_MEASURED,
        _shown(shown),
        "## Licences\n\n" + "\n".join(f"- {name}: {kind}" for name, kind in licences.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _evaluation(study: Study, run: Run) -> str:
    """The newest evaluation of this run; "" if there is none."""
    found = [
        other.name
        for other in ReportData(study).runs
        if other.path.name.startswith("evaluate") and other.finished
        and other.result.get("models", {}).get("aligned") == run.name
    ]  # fmt: skip
    return found[-1] if found else ""


def _made(study: Study, run: Run) -> str:
    config = run.config
    lora = f", adapters of rank {config['lora_rank']}" if config.get("lora_rank") else ""
    options = ", ".join(f"{name} {value}" for name, value in config.get("options", {}).items())
    return (
        f"`{study.info.base_model}` fine-tuned on ratings with Sayso: aligner "
        f"{config['aligner']}{lora}, {config['max_steps']} steps of {config['batch_size']}, "
        f"learning rate {config['learning_rate']:g}, from `{config['model']}`"
        + (f"; {options}." if options else ".")
    )


def _prompts(study: Study) -> str:
    rows = Counter((p.split, p.category) for p in study.prompts())
    lines = [f"| {split} | {category} | {n} |" for (split, category), n in sorted(rows.items())]
    return "\n".join(
        ["## Prompts", "", "| split | category | prompts |", "| --- | --- | --- |", *lines]
    )


def _feedback(summary: Mapping[str, Any]) -> str:
    found = summary["feedback"]
    if not found["ratings"]:
        return ""
    one = found["raters"] == 1
    people, simulated = ("person", "simulated rater") if one else ("people", "simulated raters")
    who = {"people": people, "simulated": simulated}[found["kind"]]
    said = (
        f"## Feedback\n\n{found['ratings']:,} ratings by {found['raters']} {who}: "
        f"{found['good']:,} good, {found['bad']:,} bad, {found['skip']:,} skipped."
    )
    alpha = (summary["agreement"].get("alpha") or {}).get("value")
    return said if alpha is None else f"{said} Krippendorff's alpha {number(alpha)}."


def _measured(summary: Mapping[str, Any]) -> str:
    alignment = summary["alignment"]
    before, after = alignment["base"], alignment["aligned"]
    lines = [
        f"| {group} | {percent(before[group])} | {percent(share)} |"
        for group, share in after.items()
        if share is not None and before.get(group) is not None
    ]
    said = [
        "## Measured",
        f"Judge: {alignment['judge']}; N {alignment['n']}, p {alignment['p_value']:.2g}.",
        "\n".join([f"| {TRUE} | base | tuned |", "| --- | --- | --- |", *lines]),
    ]
    if ratio := summary["fidelity"].get("ratio"):
        said.append(f"Distance to pre-training images, tuned to base: {number(ratio)}.")
    return "\n\n".join(said)


def _shown(shown: list[str]) -> str:
    if not shown:
        return ""
    lines = "\n".join(f"{i}. {text}" for i, text in enumerate(shown, 1))
    return (
        f"## Before and after\n\nBase on the left, tuned on the right, the same seeds:\n\n{lines}"
        f"\n\n![Images of the base and of the tuned model]({PICTURES})"
    )


def _pairs(study: Study, run: Run) -> list[tuple[str, Any, Any]]:
    """Text and the two samples of some test prompts that both models drew with one seed."""
    generations = Generations(study)
    base, tuned = ({(s.prompt_id, s.seed, s.sampler): s for s in generations.of(model)}
                   for model in ("base", run.name))  # fmt: skip
    common = {key[0]: key for key in sorted(base.keys() & tuned.keys(), key=str)}
    prompts = [p for p in study.prompts("test") if p.id in common]
    picked = chosen(prompts, study.info.seed, PROMPTS_SHOWN)
    return [(p.text, base[common[p.id]], tuned[common[p.id]]) for p in picked]


def _grid(study: Study, pairs: list[tuple[str, Any, Any]]) -> Image.Image:
    """A row for each prompt, base and tuned side by side."""
    step = CELL_PX + GAP_PX
    sheet = Image.new("RGB", (2 * step - GAP_PX, len(pairs) * step - GAP_PX), "white")
    for row, (_, *samples) in enumerate(pairs):
        for column, sample in enumerate(samples):
            image = study.image(sample)
            scale = CELL_PX / max(image.size)
            small = image.resize([max(1, round(side * scale)) for side in image.size])
            sheet.paste(small, (column * step, row * step))
    return sheet
