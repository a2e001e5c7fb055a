"""Direct preference optimisation of diffusion models, with a guard for the preferred image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.aligners import Aligner, Batch, Work, stratified
from sayso.aligners._limits import refuse_not_below_one
from sayso.base.errors import UserError


def dpo_loss(
    error: Float[Tensor, "n 2"], reference_error: Float[Tensor, "n 2"], beta: float
) -> Float[Tensor, " n"]:
    """How far the policy is from preferring the chosen image of each pair, as the raters do.

    L = −log sigmoid(beta/2 · m), where m = (e_ref − e)(chosen) − (e_ref − e)(rejected) says how
    much more the policy has improved on the chosen image than on the rejected one, and e is the
    mean squared error at the same t and noise for both.

    Args:
        error: the policy's, of (chosen, rejected), ≥ 0, mean over c, h and w.
        reference_error: the same of the frozen start.
        beta: strength of the pull to the reference; the paper's β, 2000 for Stable Diffusion 1.5.
            It belongs to the mean: with the sum over c, h and w it is c·h·w times smaller.
    Returns: loss per pair, not reduced; ln 2 at the start.
    Raises: ValueError: if beta ≤ 0.
    Source: Wallace et al. 2023, arXiv 2311.12908, Eq. 14.
    """
    if beta <= 0:
        raise ValueError(f"beta {beta} must be above 0")
    gain = reference_error - error
    return -F.logsigmoid(beta / 2 * (gain[:, 0] - gain[:, 1]))


def guard_scale(
    chosen: Float[Tensor, "n c h w"], rejected: Float[Tensor, "n c h w"], guard: float
) -> Float[Tensor, " n"]:
    """By how much the push away from the rejected image is scaled, so that the chosen stays.

    A push at the network's output moves both images. To first order the chosen one's error does not
    rise as long as the push is at most |g|² / (g · h) of its full length, where g and h are the
    gradients of the two errors; (1 − guard) of that is let through.

    Args:
        chosen, rejected: prediction minus target of the two images; the gradients up to a factor.
        guard: the paper's μ, in [0, 1); 0.9 for Stable Diffusion 1.5, 0.6 for SDXL.
    Returns: scale per pair, in [0, 1]; 1 where the push does the chosen image no harm.
    Source: Diffusion-SDPO 2025, arXiv 2511.03317, Sec. 4, which has one scale for a batch.
    """
    g, h = chosen.flatten(1).float(), rejected.flatten(1).float()
    along = (g * h).sum(1)
    safe = (1 - guard) * g.square().sum(1) / along.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(along > 0, safe.clamp(max=1), 1.0)


@dataclass(frozen=True)
class DirectPreference(Aligner):
    """Learn from pairs which of two images of a prompt people prefer, without a reward.

    Source: Wallace et al. 2023, arXiv 2311.12908; guard: arXiv 2511.03317.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "reference"})
    defaults: ClassVar[Mapping[str, float]] = {"learning_rate": 2e-5}

    beta: float = 2000.0
    """Strength of the pull to the frozen start; smaller values move further from it. It applies to
    the mean squared error over the latents, so it does not change with the image size; multiply a
    beta for the sum by c·h·w."""
    guard: float = 0.8
    """Protection of the chosen image: how much to limit the push on the rejected image where it
    would hurt the chosen one, the paper's mu; 0 = plain DPO."""
    prompt_dropout: float = 0.1
    """Share of pairs trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UserError(f"beta {self.beta} must be above 0; try 2000")
        refuse_not_below_one(self, guard=0.1, prompt_dropout=0.1)

    @property
    def unit(self) -> int:
        return 2

    def batches(self, work: Work) -> Iterator[Batch]:
        if work.pairs is None or not len(work.pairs):
            raise UserError("there are no preferences to learn from; rate or compare more images")
        weights = work.pairs.even
        for step in work.steps:
            generator = work.generator(step)
            chosen = stratified(weights, work.batch_size // 2, generator)
            rows = work.pairs.rows[chosen].flatten()
            yield work.denoising_batch(
                rows, generator, prompt_dropout=self.prompt_dropout, unit=self.unit
            )

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reference = work.error(batch, "reference").reshape(-1, 2)
        error = work.error(batch).reshape(-1, 2)
        loss = dpo_loss(self._guarded(work, batch, error), reference, self.beta)
        gain = (reference - error).detach()
        scalars = {
            "error_chosen": error[:, 0].mean(),
            "error_rejected": error[:, 1].mean(),
            "margin": (gain[:, 0] - gain[:, 1]).mean(),
            "agrees": (gain[:, 0] > gain[:, 1]).float().mean(),
        }
        return loss.mean(), scalars

    def _guarded(self, work: Work, batch: Batch, error: Tensor) -> Tensor:
        """The same errors, with a smaller gradient of the rejected image's."""
        if not self.guard:
            return error
        target = work.policy.target(batch["latents"], batch["noise"], batch["t"])
        off = (work.prediction(batch).detach().float() - target.float()).unflatten(0, (-1, 2))
        scale = guard_scale(off[:, 0], off[:, 1], self.guard)
        held = scale * error[:, 1] + (1 - scale) * error[:, 1].detach()
        return torch.stack([error[:, 0], held], dim=1)
