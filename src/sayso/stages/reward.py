"""Stage `reward`: add a reward that needs no fit, with its options and weights, to the study."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sayso.base.errors import UserError, quoted
from sayso.base.files import new_folder, write_bytes
from sayso.base.hashes import file_digest, files_digest
from sayso.base.hub import MODEL, PROCESSOR, fetched, full_place
from sayso.base.progress import console
from sayso.study.identity import canonical_config, fitted_identity
from sayso.study.inputs import refuse_changed, refuse_edited, source_of_plugin
from sayso.study.provenance import computed_on, licence, loaded
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.rewards import Reward

COPIED = (*MODEL, *PROCESSOR)
"""Files of a folder that a reward can be made of."""
PARTS = ("weights", "tokenizer", "clip")
"""Options that say where what a reward is made of lies."""


@dataclass(frozen=True)
class RewardConfig:
    """Which reward to add to the study. The options of the reward follow below."""

    reward: str = "pickscore"
    """The reward: one that `sayso fit` does not train, or a file of your own, such as ./mine.py."""
    name: str = ""
    """Name of the run, runs/reward-NAME, which other commands take as --reward; default: the
    reward's name."""
    weights: str = ""
    """The reward's weights: a file, a folder or a path on the hub (owner/name or owner/name/file);
    default: those its authors published."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer, if the weights do not include one; default: the one that
    the reward was trained with."""
    clip: str = ""
    """Folder or hub id of the CLIP model that the reward uses, if the weights do not include one;
    default: the one that the reward was trained with."""


def add_reward(study: Study, config: RewardConfig, reward: "Reward | None" = None) -> Run:
    """Convert a reward's weights and keep them with its options in `runs/reward-<name>`.

    From then on the run stands for the reward wherever one is named. It needs the published files
    no more, and its identity is a digest of the converted weights and the options.

    Args:
        study: gets the run.
        config: which reward, and where the files are that it is made of.
        reward: with its options; None = the one that `config.reward` names, with its defaults.
    Raises: UserError: if a file is missing or not what the reward needs, an option is out of range,
        or the reward cannot score a grey image.
    """
    from sayso.rewards import TrainableReward, load_reward_class

    config = canonical_config(study, config)
    kind, name = load_reward_class(config.reward), config.name or Path(config.reward).stem
    if issubclass(kind, TrainableReward):
        raise UserError(
            f"reward {config.reward!r} is trained on ratings: run sayso fit {quoted(study.path)} "
            f"--reward {quoted(config.reward)}"
        )
    reward = reward or kind()
    places = _places(config, reward)
    config = replace(config, **places)
    begun = study.begun("reward", name)
    if begun and begun.finished:
        return _finished(study, config, reward, name, places)
    started = time.perf_counter()
    found = {part: _fetched(config.reward, part, place) for part, place in places.items()}
    sources = {**source_of_plugin("reward", config.reward), **_sources(places, found)}
    # before the run is opened: what is refused must leave no run behind
    made = study.cache / "rewards" / name
    with new_folder(made) as folder:
        _convert(reward, found, folder)
        _try(study, reward, found, folder)
    with study.run("reward", name, config, reward, inputs={"sources": sources}) as run:
        refuse_changed(run, sources)
        shutil.rmtree(run.weights, ignore_errors=True)
        shutil.move(made, run.weights)
        _finish(study, reward, run, started)
    console.print(f"added {run.name}; use it as --reward or --judge-reward", soft_wrap=True)
    return run


def _places(config: RewardConfig, reward: "Reward") -> dict[str, str]:
    """Where each part of the reward is, as given or else as published; paths are absolute.

    Raises: UserError: if the reward has no such part, or it was not published in one place.
    """
    from sayso.rewards import PretrainedReward

    published = reward.places() if isinstance(reward, PretrainedReward) else {}
    for part in PARTS:
        if getattr(config, part) and part not in published:
            flags = " and ".join(f"--{name}" for name in published)
            instead = f"; it takes {flags}" if flags else ""
            raise UserError(f"reward {config.reward} does not take --{part}{instead}")
    places = {part: getattr(config, part) or place for part, place in published.items()}
    for part in (part for part, place in places.items() if place == ""):
        raise UserError(f"reward {config.reward} has no default {part}; give --{part}")
    return {part: full_place(place) for part, place in places.items() if place}


def _fetched(reward: str, part: str, place: str) -> Path:
    return fetched(place, f"{part} of {reward}", PROCESSOR if part == "tokenizer" else ())


def _sources(places: Mapping[str, str], found: Mapping[str, Path]) -> dict[str, str]:
    """Each part and its place → a digest of what is there."""
    return {
        f"{part} {places[part]}": file_digest(path)
        if path.is_file()
        else files_digest(path, COPIED)
        for part, path in found.items()
    }


def _finished(
    study: Study, config: RewardConfig, reward: "Reward", name: str, places: Mapping[str, str]
) -> Run:
    """The run that is there, if it is of the same options and files; those may be gone by now."""
    run = study.run("reward", name, config, reward)
    refuse_edited(run, "reward", config.reward)
    there = {part: Path(place) for part, place in places.items() if Path(place).exists()}
    before = (run.inputs or {}).get("sources", {})
    refuse_changed(run, {**before, **_sources(places, there)})
    console.print(f"{run.name} is finished")
    return run


def _convert(reward: "Reward", found: Mapping[str, Path], folder: Path) -> None:
    from sayso.rewards import PretrainedReward

    if not isinstance(reward, PretrainedReward):
        return
    reward.convert(found, folder)
    weights = found.get("weights")
    named = (weights and weights.is_dir() and licence(weights)) or reward.licence
    if named:
        card = f"---\nlicense: {named}\n---\n\nConverted by sayso reward. {reward.source}\n"
        write_bytes(folder / "README.md", card.encode())


def _try(study: Study, reward: "Reward", found: Mapping[str, Path], folder: Path) -> None:
    """Load what was converted, and score a grey image.

    Raises: UserError: if that fails, or the score is not one finite number.
    """
    import torch

    try:
        reward.prepare(study, "cpu", folder)
    except UserError as error:
        # files keep their names
        given = str(found.get("weights", folder))
        raise UserError(str(error).replace(str(folder), given)) from None
    with torch.no_grad():
        reward.checked_score(
            torch.full((1, 3, 64, 64), 0.5), ["a photo"], ["a grey image"],
            "look at its weights and options",
        )  # fmt: skip


def _finish(study: Study, reward: "Reward", run: Run, started: float) -> None:
    from sayso.base.devices import make_accelerator
    from sayso.rewards import reads_clip

    seen = reads_clip(type(reward))
    facts = {**computed_on(make_accelerator("no")), "loaded": loaded([run.weights])}
    run.add_environment(facts)
    run.finish({
        "licence": licence(run.weights),
        "source": reward.source,
        "range": [None if math.isinf(end) else end for end in reward.range],
        "differentiable": reward.differentiable,
        "reads_clip": seen,
        "identity": fitted_identity(study, run, reads_clip=seen),
        "seconds": time.perf_counter() - started,
    })  # fmt: skip
