"""A reward with a threshold: the prompt is true where the score reaches it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample
from sayso.judges import Judge, Verdict
from sayso.study.identity import canonical_reward, reward_identity, reward_name
from sayso.study.study import Study

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclass
class RewardJudge(Judge):
    """Any reward with a threshold. It should not be the reward that training maximised.

    The certainty is the distance of the score from the threshold, as a share of the distance to the
    end of the reward's range; if the range has no end, d / (1 + d) for the distance d.
    """

    judge_reward: str = ""
    """The reward: a run of fit or reward, or a reward that needs neither, such as clip_score."""
    threshold: float = 0.5
    """The prompt is true if the score is at least this. 0.5 suits rewards that are probabilities,
    such as clip_head; CLIP similarities are lower, mostly between 0.2 and 0.35."""

    @property
    def title(self) -> str:
        return f"scored {self.threshold:g} or more by {reward_name(self.judge_reward)}"

    @property
    def caveat(self) -> str:
        return (
            "The judge is a reward with a threshold and has that reward's errors. If training "
            "maximised this reward or a similar one, a rise shows that training worked, not that "
            "the images are better."
        )

    def canonical(self, study: Study) -> "RewardJudge":
        """With the reward's canonical name."""
        if not self.judge_reward:
            raise UserError(
                "--judge reward needs a reward to judge with; give --judge-reward, such as "
                "clip_score or a run of fit"
            )
        return replace(self, judge_reward=canonical_reward(study, self.judge_reward))

    def folders(self, study: Study) -> list[Path]:
        """The folders of the reward's weights."""
        from sayso.rewards import reward_folders

        return reward_folders(study, self.judge_reward)

    def identity(self, study: Study) -> str:
        """The reward's identity."""
        return reward_identity(study, self.judge_reward)

    def prepare(self, study: Study, device: "torch.device | str" = "cpu") -> None:
        """Load the reward.

        Raises: UserError: if there is none, or the threshold is out of its range.
        """
        from sayso.rewards import load_reward

        self._reward: Any = load_reward(study, self.judge_reward, device)
        low, high = self._reward.range
        if not low < self.threshold < high:
            raise UserError(
                f"--threshold {self.threshold:g} is out of reach: {self.judge_reward} scores from "
                f"{low:g} to {high:g}"
            )

    def verdicts(
        self, images: "Float[Tensor, 'b 3 h w']", prompts: Sequence[Prompt]
    ) -> list[Verdict]:
        """Score each image against its prompt's text."""
        names = [f"an image for {prompt.text!r}" for prompt in prompts]
        scores = self._reward.checked_score(images, [prompt.text for prompt in prompts], names)
        return [self._verdict(score) for score in scores.tolist()]

    def judge_samples(
        self, study: Study, samples: Sequence[Sample], prompts: Sequence[Prompt]
    ) -> list[Verdict | None]:
        """Score stored samples as the reward does best, from embeddings that are cached if any."""
        texts = [prompt.text for prompt in prompts]
        scores = self._reward.score_samples(study, samples, texts)
        return [self._verdict(score) for score in scores.tolist()]

    def _verdict(self, score: float) -> Verdict:
        true, distance = score >= self.threshold, abs(score - self.threshold)
        reach = abs(self._reward.range[true] - self.threshold)
        certainty = distance / (1 + distance) if math.isinf(reach) else min(1.0, distance / reach)
        return Verdict(true, certainty, f"{reward_name(self.judge_reward)} {score:.3g}")
