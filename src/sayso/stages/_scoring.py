"""One line an image: whether its prompt is true of it, the learned reward, CLIP similarity."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sayso.base.types import Prompt, Sample
from sayso.judges import Judge, Verdict
from sayso.metrics.evaluation import Scored
from sayso.rewards import load_reward
from sayso.study.study import Study


def score(
    study: Study,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    judge: Judge,
    reward: str,
    device: torch.device,
) -> list[Scored]:
    """All that is known of each sample, in the order of the samples.

    Args:
        prompts: each sample's own.
        judge: prepared here.
        reward: as in `load_reward`, or "" for none.
    Raises: UserError: if an image is missing or damaged, or judge or reward cannot be loaded.
    """
    judge.prepare(study, device)
    verdicts = judge.judge_samples(study, samples, prompts)
    rows = [
        _judged(Scored(s.id, s.model, p.id, s.seed, p.split, p.category), verdict)
        for s, p, verdict in zip(samples, prompts, verdicts, strict=True)
    ]
    texts = [p.text for p in prompts]
    for field, name in (("reward", reward), ("clip", "clip_score")):
        if name:
            values = load_reward(study, name, device).score_samples(study, samples, texts)
            rows = [replace(r, **{field: v}) for r, v in zip(rows, values.tolist(), strict=True)]
    return rows


def _judged(row: Scored, verdict: Verdict | None) -> Scored:
    return replace(row, **verdict._asdict()) if verdict else row
