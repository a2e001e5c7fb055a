"""One line an image: whether its prompt is true of it, the learned reward, CLIP similarity."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sayso.base.devices import in_shares
from sayso.base.types import Prompt, Sample
from sayso.judges import Judge, Verdict
from sayso.metrics.evaluation import Scored
from sayso.rewards import load_reward
from sayso.study.study import Study

PORTION = 128
"""Samples that stay together where processes share them: as many as are computed at once."""


def score(
    study: Study,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    judge: Judge,
    reward: str,
    device: torch.device,
) -> list[Scored]:
    """All that is known of each sample, in order; each process of a launch works out a share.

    Args:
        prompts: each sample's own.
        judge: prepared here.
        reward: as in `load_reward`, or "" for none.
    Raises: UserError: if an image is missing or damaged, or judge or reward cannot be loaded.
    """
    judge.prepare(study, device)
    texts = [p.text for p in prompts]
    named = {"reward": reward, "clip": "clip_score"}
    scores = {
        field: rewards_of(study, name, samples, texts, device)
        for field, name in named.items()
        if name
    }
    verdicts = in_shares(
        list(zip(samples, prompts, strict=True)),
        lambda own: judge.judge_samples(study, [s for s, _ in own], [p for _, p in own]),
        PORTION,
    )
    rows = [
        _judged(Scored(s.id, s.model, p.id, s.seed, p.split, p.category), verdict)
        for s, p, verdict in zip(samples, prompts, verdicts, strict=True)
    ]
    for field, values in scores.items():
        rows = [replace(r, **{field: v}) for r, v in zip(rows, values, strict=True)]
    return rows


def rewards_of(
    study: Study,
    name: str,
    samples: Sequence[Sample],
    texts: Sequence[str],
    device: torch.device,
) -> list[float]:
    """The reward of each sample, in order; each process of a launch works out a share.

    Args:
        name: as in `load_reward`.
        texts: each sample's own.
    Raises: UserError: as `load_reward` and `Reward.score_samples`.
    """
    reward = load_reward(study, name, device)
    reward.prepare_samples(study, samples)
    return in_shares(
        list(zip(samples, texts, strict=True)),
        lambda own: reward.score_samples(
            study, [s for s, _ in own], [text for _, text in own]
        ).tolist(),
        PORTION,
    )


def _judged(row: Scored, verdict: Verdict | None) -> Scored:
    return replace(row, **verdict._asdict()) if verdict else row
