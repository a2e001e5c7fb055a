"""Best of n: of the images drawn for a prompt, the top by a reward become a model's of their own.

The reward is the caller's: this file ranks, and records what was chosen under the selection's name.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sayso.base import files
from sayso.base.types import Sample, sample_id
from sayso.stages._drawing_plan import Drawing, place
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.rewards import Reward


def keep_best(
    study: Study,
    drawings: Sequence[Drawing],
    reward: "Reward",
    *,
    keep: int,
    n: int,
    model: str,
    identity: str,
) -> int:
    """Record the best images of every prompt once more, as those of the selection's model.

    Args:
        drawings: the plan, all of it drawn; n images for each prompt, side by side.
        keep: how many of the n stay.
        model, identity: of the selection.
    Returns: how many were chosen in all, those recorded before included.
    Raises: UserError: as `Reward.score_samples`.
    """
    drawn = {place(sample): sample for sample in study.samples(drawings[0][1].model)}
    samples = [drawn[place(sample)] for _, sample in drawings]
    texts = [prompt.text for prompt, _ in drawings]
    scores = reward.score_samples(study, samples, texts).tolist()
    best = [_selected(samples[i], model, identity) for i in best_of(scores, keep=keep, n=n)]
    there = {sample.id for sample in study.samples(model)}
    new = [asdict(sample) for sample in best if sample.id not in there]
    files.append_lines(study.path / "samples.jsonl", new)
    return len(best)


def best_of(scores: Sequence[float], *, keep: int, n: int) -> list[int]:
    """Where the `keep` highest of every n scores stand, the highest first.

    Ties go to the earlier one, so the choice is the same on every machine.
    """
    found = []
    for start in range(0, len(scores), n):
        order = sorted(range(start, start + n), key=lambda i: (-scores[i], i))
        found += order[:keep]
    return found


def _selected(sample: Sample, model: str, identity: str) -> Sample:
    """The same picture under the selection's name."""
    own_id = sample_id(sample.prompt_id, model, sample.seed, sample.sampler, identity)
    return replace(sample, id=own_id, model=model, model_identity=identity)
