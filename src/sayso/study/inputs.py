"""What a run learns from, frozen when it is begun, so that nothing later changes it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.plugins import Kind
from sayso.base.types import Sample
from sayso.study.identity import canonical_plugin, plugin_digest
from sayso.study.run import Run
from sayso.study.study import Study


def refuse_changed(
    run: Run, now: Mapping[str, str], earlier: Mapping[str, str] | None = None
) -> None:
    """Raises: UserError: naming what differs from the sources frozen when `run` was begun.

    Args:
        now: name of a source → its identity, as `sources` in the run's inputs.
        earlier: the same as versions before wrote it down, where they did otherwise.
    """
    before, earlier = _sources(run), earlier or {}
    if changed := [n for n in before if before[n] not in (now.get(n), earlier.get(n))]:
        raise UserError(
            f"inputs of {run.name} have changed since it began: {', '.join(changed)}; restore "
            "them, or choose another --name"
        )


def refuse_edited(run: Run, kind: Kind, plugin: str) -> None:
    """Raises: UserError: if one's own plug-in is not the file any more that made `run`.

    Args:
        plugin: its canonical name; one that ships with the package is never refused.
    """
    before, now = _sources(run).get(f"{kind} {plugin}"), plugin_digest(kind, plugin)
    if before is not None and before != now:
        raise UserError(
            f"{run.name} was made with another version of {plugin} (SHA-256 {before[:8]}…, now "
            f"{now[:8]}…); restore the file, or run the sayso command that made the run again "
            "under another --name"
        )


def _sources(run: Run) -> dict[str, str]:
    return (run.inputs or {}).get("sources", {})


def refuse_other_pictures(
    study: Study, run: Run, rows: Iterable[JsonObject], samples: Iterable[Sample]
) -> None:
    """Raises: UserError: naming the first picture that is not the one `run` began with.

    Args:
        rows: `images` of its inputs; those of an older version have no digest of the picture.
        samples: the sample of each row.
    """
    for row, sample in zip(rows, samples, strict=True):
        if "picture" in row and row["picture"] != picture_digest(study, sample):
            raise UserError(
                f"image {study.path / sample.path} is not the one that {run.name} learns from; "
                "restore it, or choose another --name"
            )


def picture_digest(study: Study, sample: Sample) -> str:
    """The first 16 hex digits of the SHA-256 of the sample's image file."""
    return study.image_hash(sample)[:16]


def refuse_other_latents(
    study: Study,
    run: str,
    rows: Iterable[JsonObject],
    samples: Iterable[Sample],
    now: Iterable[str],
) -> None:
    """Raises: UserError: naming the first sample whose latents are not those `run` began with.

    Args:
        run: its name, for the message.
        rows: `images` of its inputs; those of an older version have no digest of latents.
        samples: the sample of each row.
        now: digest of each sample's latents.
    """
    for row, sample, found in zip(rows, samples, now, strict=True):
        if row.get("latents", found) != found:
            raise UserError(
                f"the latents of sample {sample.id} in {study.path / sample.latents} are not those "
                f"that {run} learns from; restore the file, or choose another --name"
            )


def samples_by_id(study: Study, ids: Iterable[str], run: str) -> list[Sample]:
    """The samples that a run learns from, in the order of `ids`.

    Raises: UserError: naming the first that is gone.
    """
    there = {sample.id: sample for sample in study.samples()}
    found = []
    for sample_id in ids:
        if sample_id not in there:
            raise UserError(
                f"sample {sample_id}, which {run} learns from, is missing from samples.jsonl; "
                "restore the file, or choose another --name"
            )
        found.append(there[sample_id])
    return found


def source_of_plugin(kind: Kind, name: str) -> dict[str, str]:
    """One's own file with a hash of its source; nothing for what ships with the package."""
    found = plugin_digest(kind, canonical_plugin(name))
    return {f"{kind} {name}": found} if found else {}


def fitted_to(study: Study, reward: str) -> dict[str, str]:
    """Labels and raters that a run of fit learned from; empty if it is no such run."""
    run = Run(study.path / "runs" / Path(reward).name)
    if not run.finished or not run.path.name.startswith("fit-"):
        return {}
    return {"labels": run.config.get("labels", "share"), "raters": run.result["raters"]}
