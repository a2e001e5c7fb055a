"""What a study holds for its report, and what is missing and how to make it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from sayso.base.errors import UserError, quoted
from sayso.base.files import JsonObject, read_lines
from sayso.base.types import Comparison, Rating
from sayso.base.worlds import find_world
from sayso.judges import changed_judge
from sayso.study.generations import Generations
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.votes.counted import is_for
from sayso.votes.item_votes import fingerprint

SESSION_GAP_S = {"people": 300.0, "simulated": 10.0}
"""Votes further apart than this belong to two sittings; the pause between them is not counted."""


@dataclass(frozen=True)
class ReportData:
    """All that the report reads. `evaluation` names a run of evaluate; "" takes the newest one."""

    study: Study
    evaluation: str = ""

    @cached_property
    def runs(self) -> list[Run]:
        """Every run, in the order in which they were started."""
        return sorted(
            self.study.runs(), key=lambda run: (run.environment.get("started_at", 0), run.name)
        )

    @cached_property
    def evaluate_run(self) -> Run | None:
        """The evaluation that the report tells of: the newest whose models are still the same.

        Raises: UserError: if the one asked for is not there, not finished, or of earlier models.
        """
        if self.evaluation:
            run = self.study.find_run(self.evaluation)
            _ = run.result
            if not run.path.name.startswith("evaluate"):
                raise UserError(
                    f"{run.name} is not a run of evaluate; give one, such as evaluate-rwr"
                )
            if changed := self._changed_since(run):
                raise UserError(
                    f"{run.name} measured an earlier {' and '.join(changed)} than there is now; "
                    "evaluate again, or choose another evaluation"
                )
            return run
        found = [r for r in self._finished("evaluate") if not self._changed_since(r)]
        return found[-1] if found else None

    @cached_property
    def align_run(self) -> Run | None:
        """The run that made the tuned model of the evaluation; without one, the newest."""
        return self._of_evaluation("model") or self._newest("align")

    @cached_property
    def fit_run(self) -> Run | None:
        """The run that made the reward of the evaluation; without one, the newest."""
        return self._of_evaluation("reward") or self._newest("fit")

    @cached_property
    def generations(self) -> Generations:
        return Generations(self.study)

    def _changed_since(self, evaluation: Run) -> list[str]:
        """Of what an evaluation measured and who judged it, what is another by now."""
        return [
            *self.generations.changed_since(evaluation),
            *changed_judge(self.study, evaluation),
        ]

    def _finished(self, stage: str) -> list[Run]:
        return [r for r in self.runs if r.path.name.split("-")[0] == stage and r.finished]

    def _newest(self, stage: str) -> Run | None:
        own = self._finished(stage)
        return own[-1] if own else None

    def _of_evaluation(self, field: str) -> Run | None:
        name = str(self.evaluate_run.config.get(field, "")) if self.evaluate_run else ""
        found = [run for run in self.runs if run.name == name and run.finished]
        return found[0] if found else None

    @cached_property
    def result(self) -> JsonObject:
        """The evaluation's result; empty without one."""
        return self.evaluate_run.result if self.evaluate_run else {}

    @cached_property
    def scores(self) -> list[JsonObject]:
        """The evaluation's line of every image."""
        return read_lines(self.evaluate_run.path / "scores.jsonl") if self.evaluate_run else []

    @property
    def models(self) -> Mapping[str, str]:
        """Role ("base", "best_of_n", "aligned") → model."""
        return self.result.get("models", {})

    @cached_property
    def feedback(self) -> JsonObject:
        """Ratings that count, of the kind that training used: people, or simulated raters.

        `left_out`: why → how many live votes do not count, comparisons among them.
        """
        store = self.study.feedback
        people = {"people": False, "simulated": True}
        chosen = self.fit_run.result.get("raters") if self.fit_run else None
        simulated = people[chosen] if chosen in people else store.kind_in_use()
        ratings = (r for r in store.ratings(simulated) if r.question == "alignment")
        votes = [r for r in ratings if is_for(r, "vote")]
        counts = {value: sum(r.value == value for r in votes) for value in ("good", "bad", "skip")}
        kind = "none" if not votes else "simulated" if simulated else "people"
        raters = len({r.rater for r in votes})
        return {
            "ratings": len(votes),
            **counts,
            "kind": kind,
            "raters": raters,
            "left_out": store.left_out(simulated),
        }

    @property
    def agreement_kind(self) -> str:
        """Whose agreement the page tells of: people's if any person voted, else of programs."""
        store = self.study.feedback
        return "simulated" if store.kind_in_use() and not store.comparisons(False) else "people"

    @cached_property
    def agreement(self) -> JsonObject:
        """The newest result of `agreement` on raters of one kind; empty without one."""
        runs = [r for r in self.runs if r.path.name.split("-")[0] == "agreement" and r.finished]
        found = [r.result for r in runs if r.result["raters"] == self.agreement_kind]
        return found[-1] if found else {}

    @cached_property
    def agreement_is_stale(self) -> bool:
        """Votes have come or changed since."""
        votes = self.study.feedback.votes(self.agreement_kind == "simulated")
        return bool(self.agreement) and self.agreement["votes"] != fingerprint(votes)

    @cached_property
    def _voted_twice(self) -> bool:
        """Some image or pair of sets has votes of two raters, so that they could disagree."""
        store, simulated = self.study.feedback, self.agreement_kind == "simulated"
        votes = [v for v in store.votes(simulated) if is_for(v, "vote")]
        items = [(v.question, v.sample_id) for v in votes if isinstance(v, Rating)]
        pairs = [
            (v.question, frozenset((v.left_ids, v.right_ids)))
            for v in votes
            if isinstance(v, Comparison)
        ]
        return len(set(items)) < len(items) or len(set(pairs)) < len(pairs)

    @cached_property
    def simulated(self) -> bool:
        """Some number on the page comes from simulated raters."""
        rows = self.result.get("comparisons", [])
        kinds = (self.feedback["kind"], self.agreement.get("raters"))
        return "simulated" in kinds or any(row["simulated"] for row in rows)

    @cached_property
    def images(self) -> dict[str, int]:
        """How many images were drawn, by model; a selection draws none of its own."""
        samples = [s for s in self.generations.samples if "@" not in s.model]
        return dict(Counter(map(self.generations.label, samples)))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each stage took, all its runs together, in the order of the loop."""
        found: dict[str, float] = {}
        for run in self.runs:
            took = run.result.get("seconds") if run.finished else None
            if isinstance(took, int | float):
                stage = run.path.name.split("-")[0]
                found[stage] = found.get(stage, 0.0) + float(took)
        found["rate"] = found.get("rate", 0.0) + self._rating_seconds()
        order = ("prompts", "generate", "rate", "fit", "align", "evaluate")
        return {stage: found[stage] for stage in order if found.get(stage)}

    def _rating_seconds(self) -> float:
        """Time between votes, without the pauses between sittings; the stage keeps no run.

        It is what rating took, whether the votes count or not.
        """
        total, store = 0.0, self.study.feedback
        for kind, gap_s in SESSION_GAP_S.items():
            simulated = kind == "simulated"
            votes = [*store.ratings(simulated, True), *store.comparisons(simulated, True)]
            times = sorted({t for v in votes for t in (v.shown_at, v.answered_at)})
            gaps = [b - a for a, b in pairwise(times)]
            total += sum(gap for gap in gaps if gap <= gap_s)
        return total

    @property
    def _not_evaluated(self) -> str:
        runs = self._finished("evaluate")
        if not runs:
            return "Not evaluated yet"
        changed = " and ".join(self._changed_since(runs[-1]))
        return f"{runs[-1].name} measured an earlier {changed}"

    @cached_property
    def missing(self) -> dict[str, str]:
        """Part of the report → what is not there yet and the command that makes it."""
        path = quoted(self.study.path)
        model = quoted(self.align_run.name) if self.align_run else "runs/align-rwr"
        simulated = " --simulated" if find_world(self.study.info.base_model) else ""
        compare = f"sayso rate {path}{simulated} --task compare --left base --right {model}"
        lacks = {
            "images": (not self.images, f"No images yet: sayso generate {path}"),
            "feedback": (
                not self.feedback["ratings"],
                f"No ratings yet: sayso rate {path}{simulated}",
            ),
            "fit": (self.fit_run is None, f"No reward trained yet: sayso fit {path}"),
            "align": (self.align_run is None, f"No model tuned yet: sayso align {path}"),
            "evaluate": (
                self.evaluate_run is None,
                f"{self._not_evaluated}: sayso evaluate {path} --model {model}",
            ),
            "agreement": (
                self._voted_twice and not self.agreement,
                f"Agreement between raters not measured yet: sayso agreement {path}",
            ),
            "comparison": (
                not self.result.get("comparisons"),
                f"No side-by-side comparisons (make them before evaluating): {compare}",
            ),
            "best_of_n": (
                "best_of_n" not in self.models,
                f"No best-of-n selection: sayso generate {path} --prompts test --best-of 16 "
                "--reward runs/fit-clip_head",
            ),
        }
        return {part: text for part, (absent, text) in lacks.items() if absent}


def number(value: Any) -> int | float | None:
    """A number as it is; None for what was skipped or is not there."""
    return value if isinstance(value, int | float) else None
