"""Which images belong to a model as it is now, and which to an earlier one of the same name.

docs/study-folder.md has the rules, also for images of before their model's identity was recorded.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property

from sayso.base.errors import UserError
from sayso.base.files import JsonObject, read_lines
from sayso.base.hashes import weight_hashes
from sayso.base.types import Comparison, Sample
from sayso.study.identity import (
    IMPORTED,
    NotHereError,
    canonical_model,
    canonical_reward,
    model_folder,
    model_identity,
    reward_identity,
)
from sayso.study.readable import ReadableStudy
from sayso.study.run import Run

IDENTITY = "identity"
"""Key of env.json: the identity of what a run drew with or measured."""


class Generations:
    """The images of a study by the identity of their models, as both are when this is made."""

    def __init__(self, study: ReadableStudy) -> None:
        self.study = study
        self.now = cache(self._now)
        self._unrecorded_are_present = cache(self._are_unrecorded_present)

    @cached_property
    def samples(self) -> list[Sample]:
        return self.study.samples()

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        return {sample.id: sample for sample in self.samples}

    def _now(self, model: str) -> str:
        """The identity of `model`; what its newest image records if its weights are not here.

        Raises: UserError: if the model is a run that is not finished.
        """
        if model.startswith(IMPORTED):
            return ""
        try:
            return model_identity(self.study, model)
        except NotHereError:
            recorded = [s.model_identity for s in self.samples if s.model == model]
            return next((identity for identity in reversed(recorded) if identity), "")

    def of(self, model: str) -> list[Sample]:
        """The images of the model as it is now, oldest first. Raises: UserError: as `now`."""
        self.now(model)
        return [s for s in self.samples if s.model == model and self.is_present(s)]

    def is_present(self, sample: Sample) -> bool:
        """Whether the image is of its model as it is now."""
        if not sample.model_identity:
            return self._unrecorded_are_present(sample.model)
        try:
            return sample.model_identity == self.now(sample.model)
        except UserError:
            return False

    def label(self, sample: Sample) -> str:
        """The model's name, or that with a note if the image is of an earlier model."""
        if self.is_present(sample):
            return sample.model
        return f"{sample.model} (earlier, {sample.model_identity[:8] or 'not recorded'})"

    def labelled(self, votes: Iterable[Comparison]) -> Iterator[Comparison]:
        """The comparisons with models called as `label` does, so that no two models share a name.

        One whose images have no record keeps the names that it has.
        """
        for vote in votes:
            left, right = (self.by_id.get(ids[0]) for ids in (vote.left_ids, vote.right_ids))
            yield replace(
                vote,
                left_model=self.label(left) if left else vote.left_model,
                right_model=self.label(right) if right else vote.right_model,
            )

    def notes(self, models: Iterable[str]) -> list[str]:
        """A line for each model with images of an earlier one, or of which nothing is recorded."""
        found: list[str] = []
        for model in dict.fromkeys(models):
            own = [s for s in self.samples if s.model == model]
            older = sum(not self.is_present(s) for s in own)
            if older:
                found.append(f"{older} images of an earlier {model} are left out")
            unknown = sum(not s.model_identity and self.is_present(s) for s in own)
            if unknown and not model.startswith(IMPORTED) and self._evidence(model) is None:
                found.append(
                    f"{unknown} images of {model} do not record which model generated them; they "
                    "count as its own"
                )
        return found

    def changed_since(self, evaluation: Run) -> list[str]:
        """Of what a finished run of evaluate measured, what is another under the same name now.

        The models and the reward; `sayso.judges.changed_judge` tells of the judge.
        """
        result = evaluation.result
        recorded = result.get("identities")
        if recorded is None:
            ids = {row["id"] for row in read_lines(evaluation.path / "scores.jsonl")}
            measured = [s for s in self.samples if s.id in ids]
            return sorted({s.model for s in measured if not self.is_present(s)})
        names = {**result["models"], "reward": evaluation.config["reward"]}
        return [
            names[role]
            for role, was in recorded.items()
            if role in names and self._is_another(role, names[role], was)
        ]

    def _is_another(self, role: str, name: str, recorded: str) -> bool:
        try:
            now = reward_identity(self.study, name) if role == "reward" else self.now(name)
        except NotHereError:
            return False
        except UserError:
            return True
        return now != recorded

    # of before identities were recorded

    def _are_unrecorded_present(self, model: str) -> bool:
        """Whether images that record no identity are of the model as it is now.

        Not if something shows that they are of another: the weights that generate noted in its
        env.json are others, or the run was made when identities were recorded already. If nothing
        shows anything, they are taken as the model's.
        """
        if model.startswith(IMPORTED):
            return True
        try:
            self.now(model)
        except UserError:
            return False
        shown = self._evidence(model)
        return not self._is_of_today(model) if shown is None else shown

    def _is_of_today(self, model: str) -> bool:
        run = self._run(model)
        return run is not None and run.finished and "identity" in run.result

    def _evidence(self, model: str) -> bool | None:
        """Whether env.json of the runs that drew names the weights of now; None if there is none.

        Runs that disagree show nothing in favour: nobody knows which images are whose.
        """
        old_selection = re.fullmatch(r"(.+)@best-of-(\d+)", model)
        if old_selection:
            return self._evidence_of_choice(old_selection[1], int(old_selection[2]))
        now = self._weights(model)
        runs = [run for run in self._draws(model) if _drew(run)]
        return self._all_loaded(runs, now) if now else None

    def _evidence_of_choice(self, model: str, n: int) -> bool | None:
        """The same of a selection from before its name said how it was made."""
        runs = [run for run in self._draws(model) if run.config.get("best_of") == n]
        made = {(run.config["per_prompt"], run.config["reward"]) for run in runs}
        if len(made) > 1 or not self._unrecorded_are_present(model):
            return False
        rewards = {canonical_reward(self.study, run.config["reward"]) for run in runs}
        fits = [fit for reward in rewards if (fit := self._run(reward))]
        return self._all_loaded(runs, [weight_hashes(fit.weights) for fit in fits])

    def _all_loaded(self, runs: Sequence[Run], now: list[dict[str, str]]) -> bool | None:
        found = [env["loaded"] for run in runs if (env := run.environment).get("loaded")]
        if not found or not now:
            return None
        return all(_among(weights, loaded) for loaded in found for weights in now)

    def _draws(self, model: str) -> list[Run]:
        """The runs of generate on the model that recorded no identity."""
        runs = [run for run in self.study.runs("generate") if run.config.get("model")]
        named = [r for r in runs if canonical_model(self.study, r.config["model"]) == model]
        return [run for run in named if IDENTITY not in run.environment]

    def _weights(self, model: str) -> list[dict[str, str]]:
        """The hashes of the weights of the base, and of the runs over it; [] if not here."""
        if model == "base":
            folder = model_folder(self.study.info.base_model, "pipeline")
            return [weight_hashes(folder)] if folder else []
        run = self._run(model)
        if run is None or "aligner" not in run.config or not run.weights.is_dir():
            return []
        below = self._weights(canonical_model(self.study, run.config.get("model", "base")))
        return [*below, weight_hashes(run.weights)] if below else []

    def _run(self, name: str) -> Run | None:
        try:
            return self.study.find_run(name) if name.startswith("runs/") else None
        except UserError:
            return None


def _drew(run: Run) -> bool:
    """Whether the run loaded the model; one that chose among images may not have."""
    return not run.config.get("best_of") or (run.finished and run.result.get("drawn", 0) > 0)


def _among(weights: dict[str, str], loaded: Iterable[JsonObject]) -> bool:
    """Whether one of the folders loaded held these weights; there may be more of them by now."""
    return any(row["sha256"] and row["sha256"].items() <= weights.items() for row in loaded)


def say(study: ReadableStudy, models: Iterable[str]) -> None:
    """Print the notes on the models' images, if there are any."""
    from sayso.base.progress import console

    for line in Generations(study).notes(models):
        console.print(line, highlight=False)


def own_name(
    study: ReadableStudy,
    stage: str,
    name: str,
    default: str,
    identity: str,
    *,
    unrecorded: bool,
    former: str = "",
) -> str:
    """The name of a run on what has this identity: `name`, or else `default`.

    If the run called `default` was of something else that had the same name then, the identity is
    added to it.

    Args:
        unrecorded: whether a finished run that records no identity is taken as of this one.
        former: the identity as an earlier version computed it, if it did so in another way.
    Raises: UserError: if `name` is given and that run was of something else.
    """
    path = study.path / "runs" / f"{stage}-{name or default}"
    if not (path / "config.json").exists():
        return name or default
    run = study.find_run(path.name)
    recorded = run.environment.get(IDENTITY)
    if recorded in (identity, former) or (recorded is None and (unrecorded or not run.finished)):
        return name or default
    if name:
        raise UserError(
            f"{run.name} belongs to an earlier model, reward or judge of the same name; choose "
            "another --name"
        )
    return f"{default}-{identity[:8]}"
