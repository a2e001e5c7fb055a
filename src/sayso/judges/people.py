"""What people's ratings of an image come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample
from sayso.judges import Judge, Verdict
from sayso.study.study import Study
from sayso.votes.labels import LabelMethod, RatingCounts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass
class People(Judge):
    """People's ratings of the images. Images that nobody rated, or whose raters are evenly split,
    stay undecided.

    The prompt is true if the image's label is above 1/2. Simulated ratings are not used.
    """

    labels: LabelMethod = "share"
    """How the ratings of an image become its label: share or majority, which give the same verdict
    with different certainties, or dawid-skene, which weights raters by their reliability."""

    @property
    def title(self) -> str:
        return "rated by people"

    def verdicts(
        self,
        images: "Float[Tensor, 'b 3 h w']",
        prompts: Sequence[Prompt],  # noqa: ARG002 (refused)
    ) -> list[Verdict]:
        """Refused: people have rated stored images, and are not asked about others.

        Raises: UserError: always.
        """
        raise UserError(
            f"people cannot be asked about {len(images)} images that are in no study; collect "
            "ratings with sayso rate, or choose another judge"
        )

    def judge_samples(
        self,
        study: Study,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],  # noqa: ARG002 (raters saw them)
    ) -> list[Verdict | None]:
        """What the ratings of each sample come to, or a reviewer's decision.

        Raises: UserError: for an unknown way to make labels, or dawid-skene where no image has
            ratings of two people.
        """
        labels = study.feedback.soft_labels(simulated=False, method=self.labels)
        votes = study.feedback.counts(simulated=False)
        return [_verdict(labels[s.id], votes[s.id]) if s.id in labels else None for s in samples]


def _verdict(label: float, votes: RatingCounts) -> Verdict | None:
    if label == 0.5:
        return None
    why = f"{votes.good} of {votes.good + votes.bad} said good"
    decided = ", a reviewer decided" if votes.decided else ""
    return Verdict(label > 0.5, max(label, 1 - label), why + decided)
