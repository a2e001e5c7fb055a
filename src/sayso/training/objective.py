"""What the loop minimises: the aligner's loss, and terms that any aligner may be trained with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, predict_together
from sayso.families import mean_squared_error, root_mean_square
from sayso.training.options import TrainOptions


def prediction_distance(
    prediction: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """Mean squared difference of two predictions, per row, in fp32.

    Up to a factor that depends on t it is the KL divergence between the two models' next steps of
    drawing, so it keeps the policy near its reference wherever it is trained.
    """
    return mean_squared_error(prediction, reference)


def norm_excess(
    prediction: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """By how much the prediction's root mean square exceeds the reference's; 0 if it does not.

    Source: NormGuard 2026, arXiv 2606.27771, with the mean in place of the sum, so that a weight
    means the same at every size of image.
    """
    ours, theirs = (root_mean_square(x) for x in (prediction, reference))
    return (ours - theirs).clamp(min=0)


@dataclass(frozen=True)
class Part:
    """A micro-batch: rows of the aligner, and pre-training rows.

    The shares are what the rows are of all rows of their kind in the step, times the number of
    processes, whose gradients are averaged.
    """

    own: Batch
    own_share: float
    pretraining: Batch | None
    pretraining_share: float


@dataclass(frozen=True)
class Term:
    """A value to log, and how much of the step it is the mean of."""

    value: Tensor
    share: float


def objective(
    work: Work, aligner: Aligner, options: TrainOptions, part: Part
) -> tuple[Tensor, dict[str, Term]]:
    """The loss of a micro-batch, which adds up to the step's, and terms for the log.

    L = aligner(rows) + kl_weight · E[distance to the reference] + norm_guard · E[excess norm]
        + pretraining_weight · E over pre-training rows [denoising error]

    What a model predicts for a row is computed once, for pre-training rows of the same size
    together with the others, and shared by all terms.
    """
    own, pretraining = part.own, part.pretraining
    terms, total = dict[str, Term](), torch.zeros((), device=work.policy.device)
    if options.uses_reference and len(own):
        work.prediction(own, "reference")
    if pretraining is not None and _is_shown(own) and _alike(own, pretraining):
        predict_together(work.policy, [own, pretraining])
    if len(own):
        loss, scalars = aligner.loss(work, own)
        loss = loss + _near(work, own, options, scalars)
        total = part.own_share * loss
        terms = {name: Term(value, part.own_share) for name, value in scalars.items()}
    if pretraining is not None:
        error = work.error(pretraining).mean()
        total = total + (options.pretraining_weight or 0.0) * (part.pretraining_share * error)
        terms["pretraining_error"] = Term(error, part.pretraining_share)
    return total, terms


def _is_shown(batch: Batch) -> bool:
    """Whether the rows are there and say what the network is shown."""
    return bool(len(batch)) and ("noisy" in batch or "latents" in batch) and "t" in batch


def _alike(own: Batch, pretraining: Batch) -> bool:
    """Whether the rows are of one size, so that one pass can take both."""
    latents = own["noisy"] if "noisy" in own else own["latents"]
    return latents.shape[1:] == pretraining["latents"].shape[1:]


def _near(
    work: Work, batch: Batch, options: TrainOptions, scalars: dict[str, Tensor]
) -> Tensor | float:
    """The terms that keep the policy near its reference; they are added to the scalars too."""
    if not options.uses_reference:
        return 0.0
    ours, theirs = work.prediction(batch), work.prediction(batch, "reference")
    found = {
        "kl": (options.kl_weight, prediction_distance),
        "norm_excess": (options.norm_guard, norm_excess),
    }
    total: Tensor | float = 0.0
    for name, (weight, measure) in found.items():
        if weight:
            scalars[name] = measure(ours, theirs).mean()
            total = total + weight * scalars[name]
    return total
