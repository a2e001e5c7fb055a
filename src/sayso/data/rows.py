"""What aligners learn from: latents, texts, labels, rewards. Labels and rewards are in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.base.types import Size
from sayso.data.conditions import Conditions, HeldConditions, encode_texts
from sayso.data.latents import Joined, Latents
from sayso.data.pretraining_latents import PretrainingLatents
from sayso.families import Cond, Policy, move

EMPTY = 0
"""Row of `TrainingRows.cond` that is the empty prompt."""


@dataclass(frozen=True)
class TrainingRows:
    """One table: first the samples, then pre-training images.

    `latents[indices]` are final, scaled latents as stored, read when they are asked for. `text` is
    the row of `cond` that belongs to the image. `label` is what the votes on the image come to, in
    [0, 1], NaN where nobody rated it. `reward` is the learned reward, NaN where there is none. Both
    are NaN for pre-training images, so that a wrong use shows at once. `bucket` has the number in
    `sizes` of each pre-training image's size; None = all images are of one size. `texts` are the
    texts by their numbers. `pretraining_share` is how often each pre-training image is drawn, in
    proportion, ≥ 0; None = all equally often.
    """

    latents: Latents
    text: Tensor
    label: Tensor
    reward: Tensor
    conditions: Conditions
    n_own: int
    bucket: Int[Tensor, " n"] | None = None
    sizes: Sequence[Size] = ()
    texts: Sequence[str] = ()
    pretraining_share: Float[Tensor, " n"] | None = None

    @property
    def own(self) -> Int[Tensor, " n"]:
        """Indices of the samples."""
        return torch.arange(self.n_own)

    @property
    def pretraining(self) -> Int[Tensor, " n"]:
        """Indices of the pre-training images."""
        return torch.arange(self.n_own, len(self.text))

    def shares(self, chosen: Int[Tensor, " m"] | None = None) -> Float[Tensor, " m"]:
        """How often pre-training images are drawn, in proportion; all of them or those chosen.

        Args:
            chosen: their places among the pre-training images.
        """
        share = self.pretraining_share
        if share is None:
            share = torch.ones(len(self.pretraining))
        return share if chosen is None else share[chosen]

    def cond(self, text_rows: Int[Tensor, " b"]) -> Cond:
        """Conditions of the texts with these numbers; see `text` and `EMPTY`."""
        return self.conditions[text_rows]


def in_memory(policy: Policy, texts: Sequence[str]) -> Conditions:
    """The conditions of few texts, encoded now."""
    return HeldConditions(move(encode_texts(policy, texts), torch.device("cpu")))


def make_rows(
    policy: Policy,
    samples: tuple[Latents, Sequence[str]],
    labels: Sequence[float],
    rewards: Sequence[float],
    pretraining: tuple[Latents, Sequence[str]] | None = None,
    conditions: Callable[[Policy, Sequence[str]], Conditions] = in_memory,
) -> TrainingRows:
    """Join samples and pre-training images (each latents and texts) to one table.

    Args:
        conditions: makes those of the distinct texts; the first is the empty prompt.
    """
    latents, texts = samples
    captions = pretraining[1] if pretraining else []
    everything = [*texts, *captions]
    place = {text: i for i, text in enumerate(dict.fromkeys(["", *everything]))}
    missing = [float("nan")] * len(captions)
    bucket, sizes = None, tuple[Size, ...]()
    if pretraining and isinstance(buckets := pretraining[0], PretrainingLatents):
        bucket = buckets.bucket if len(buckets.sizes) > 1 else None
        sizes = tuple(buckets.sizes)
    return TrainingRows(
        latents=Joined(latents, pretraining[0]) if pretraining else latents,
        text=torch.tensor([place[text] for text in everything], dtype=torch.long),
        label=torch.tensor([*labels, *missing]),
        reward=torch.tensor([*rewards, *missing]),
        conditions=conditions(policy, list(place)),
        n_own=len(texts),
        bucket=bucket,
        sizes=sizes,
        texts=list(place),
    )
