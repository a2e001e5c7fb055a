"""One line an image: whether its prompt is true of it, the learned reward, CLIP similarity."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sayso.base.progress import progress
from sayso.base.types import Prompt, Sample
from sayso.data.clip import stacked
from sayso.metrics.evaluation import Scored
from sayso.rewards import load_reward
from sayso.study.study import Study
from sayso.tinyworld.judge import Judge, Reading, verdict

_BATCH = 128


def score(
    study: Study,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    judge: str,
    reward: str,
    device: torch.device,
) -> list[Scored]:
    """All that is known of each sample, in the order of the samples.

    Args:
        prompts: each sample's own.
        judge: "tinyworld", or "" to take the marks of the people who rated the samples.
        reward: as in `load_reward`, or "" for none.
    Raises: UserError: if an image is missing or damaged, or the reward cannot be loaded.
    """
    rows = [
        Scored(s.id, s.model, p.id, s.seed, p.split, p.category)
        for s, p in zip(samples, prompts, strict=True)
    ]
    rows = _judged(study, rows, samples, prompts, device) if judge else _rated(study, rows)
    texts = [p.text for p in prompts]
    for field, name in (("reward", reward), ("clip", "clip_score")):
        if name:
            values = load_reward(study, name, device).score_samples(study, samples, texts)
            rows = [replace(r, **{field: v}) for r, v in zip(rows, values.tolist(), strict=True)]
    return rows


def _judged(
    study: Study,
    rows: Sequence[Scored],
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    device: torch.device,
) -> list[Scored]:
    judge, readings = Judge.load(device=device), []
    with progress("judging images", len(rows)) as advance:
        for pixels in stacked((study.image(s) for s in samples), _BATCH):
            readings += judge.read(pixels)
            advance(len(pixels))
    return [_marked(*known) for known in zip(rows, prompts, readings, strict=True)]


def _marked(row: Scored, prompt: Prompt, reading: Reading) -> Scored:
    said = verdict(reading, prompt.slots)
    return replace(row, true=said.true, certainty=said.certainty, saw=in_words(reading))


def in_words(reading: Reading) -> str:
    """What the judge saw, such as "2 × red cat, 1 × blue cat, on the moon"."""
    kinds = [f"{found.colour} {found.object}" for found in reading.objects]
    parts = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join([*(parts or ["nothing"]), reading.background])


def _rated(study: Study, rows: Sequence[Scored]) -> list[Scored]:
    """Marks from the ratings of people: true if more said good than bad, or a reviewer decided."""
    labels = study.feedback.counts(simulated=False)
    found = []
    for row in rows:
        label = labels.get(row.id)
        if label is not None and label.value != "skip":
            most = max(label.good, label.bad)
            sure = 1.0 if label.decided else most / (label.good + label.bad)
            row = replace(row, true=label.value == "good", certainty=sure)
        found.append(row)
    return found
