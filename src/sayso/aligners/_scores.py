"""How good each stored image is: what its ratings come to, or the learned reward."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sayso.data.rows import TrainingRows

Score = Literal["label", "reward"]


def needs_of(score: Score) -> frozenset[str]:
    """What an aligner that learns from these scores cannot do without."""
    return frozenset({"data", "bad"} if score == "label" else {"reward"})


def scores(data: TrainingRows, score: Score) -> Float[Tensor, " n"]:
    """The score of each sample; a label is NaN where nobody rated."""
    return (data.label if score == "label" else data.reward)[: data.n_own]
