"""Policy gradient on the steps of drawing: DDPO, with advantages within groups of a prompt."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sayso.aligners import Batch, Work
from sayso.aligners._limits import refuse_idle, refuse_not_positive
from sayso.aligners._online import Online
from sayso.aligners._policy_loss import (
    clipped_policy_loss,
    trusted_policy_loss,
    was_clipped,
    went_far,
)
from sayso.aligners._rollouts import (
    draw_groups,
    group_advantages,
    learned_steps,
    step_batch,
    step_weights,
    window_of,
)
from sayso.base.errors import UserError
from sayso.base.records import check_choices
from sayso.base.types import Sampler
from sayso.families import (
    LEAST_STD,
    VARIANCE_PRESERVING,
    Noise,
    log_prob,
    step_divergence,
)

Weighting = Literal["noise", "equal"]
Trust = Literal["clip", "dppo"]
Likelihood = Literal["gaussian", "squared"]
Scale = Literal["all", "group"]


@dataclass(frozen=True)
class GroupPolicy(Online):
    """Generate images, score them, and make the steps that led to a prompt's better images more
    likely.

    Source: Black et al. 2023, arXiv 2305.13301 (DDPO); advantages in groups: arXiv 2505.05470;
        noise in some of the steps: arXiv 2507.21802; steps weighted by noise: arXiv 2508.04324;
        the divergence to the start: arXiv 2305.16381 (DPOK); trust by divergence: arXiv 2606.11025.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"reward", "rollouts", "reference"})
    defaults: ClassVar[Mapping[str, float]] = {"learning_rate": 1e-4}

    steps_per_image: int = 3
    """Sampling steps of each image to learn from, chosen at random for each image among those with
    noise. The last step never has noise."""
    window: float = 0.5
    """Share of the sampling steps, from the first, that have fresh noise and are learned from; the
    others have none. Late steps change an image little and make the gradient noisy."""
    window_interval: int = 0
    """Rollouts after which the window moves on by one sampling step, and from the end back to the
    first, as in MixGRPO; 0 = it stays at the first steps."""
    weighting: Weighting = "noise"
    """Weight of each sampling step: noise, so that all make the gradient equally noisy, though late
    ones have little noise themselves; or equal, as in DDPO and Flow-GRPO."""
    trust: Trust = "clip"
    """What ends a step's learning from a rollout: clip, when it became more or less likely by the
    clip range; or dppo, when it moved by the divergence limit, in the direction asked for."""
    clip_range: float = 1e-4
    """How much more or less likely a step may become until the next rollout. It applies to the mean
    log-probability over the latents."""
    divergence_limit: float = 1e-5
    """With trust dppo: KL divergence from the step that was drawn, averaged over the latents."""
    step_kl: float = 0.0
    """Weight of the KL divergence of each step from the frozen start's, averaged over the latents;
    0 = off."""
    likelihood: Likelihood = "gaussian"
    """Of what the ratio is: gaussian, the step's density; or squared, exp(-distance²) from its
    mean, as in CPS."""
    scale: Scale = "all"
    """Advantages are in standard deviations of all rewards of a rollout, or of those of each
    group, which magnifies differences in groups that are nearly alike."""
    same_start: bool = False
    """Let the images of a group start from the same noise, as in DanceGRPO."""
    eta: float = 1.0
    """Strength of the fresh noise in a sampling step, above 0: without noise, nothing new is
    tried. At most 1 with ancestral and cps."""
    noise: Noise = "ancestral"
    """How eta becomes noise: ancestral, as in DDPM and DDIM; cps; or flow_grpo or dance as in these
    papers, for flow models only."""

    def __post_init__(self) -> None:
        check_choices(self)
        super().__post_init__()
        if not 0 < self.window <= 1:
            raise UserError(f"window {self.window} is not in (0, 1]; try 0.5")
        if self.window_interval < 0:
            raise UserError(f"window_interval {self.window_interval} must be at least 0; try 25")
        refuse_not_positive(self, "clip_range", "divergence_limit", "eta")
        if self.eta > 1 and self.noise in VARIANCE_PRESERVING:
            raise UserError(
                f"eta {self.eta} is more noise than a step of noise {self.noise} can have; give 1 "
                "or less"
            )
        if not 0 <= self.step_kl < float("inf"):
            raise UserError(f"step_kl {self.step_kl} must be at least 0; try 0.01")
        idle = "divergence_limit" if self.trust == "clip" else "clip_range"
        refuse_idle(self, f"with --trust {self.trust}", idle)

    @property
    def draws_times(self) -> bool:
        return False

    def required(self) -> frozenset[str]:
        return self.needs if self.step_kl else self.needs - {"reference"}

    @property
    def rows_per_image(self) -> tuple[str, int]:
        return "steps_per_image", self.steps_per_image

    def batches(self, work: Work) -> Iterator[Batch]:
        period, sampler = self.period(work.batch_size), replace(work.sampler, eta=self.eta)
        width, steps = self._check(work, sampler)
        for start in work.steps[::period]:
            noisy_steps = window_of(start // period, width, steps, self.window_interval)
            weight = self._weights(work, sampler, noisy_steps)
            drawn = draw_groups(
                work, start, self.images, self.group_size, sampler, self.noise, noisy_steps,
                same_start=self.same_start, means=self.trust == "dppo",
            )  # fmt: skip
            advantage = group_advantages(
                drawn.reward, self.group_size, self.advantage_clip, within=self.scale == "group"
            )
            rows = learned_steps(
                self.images, noisy_steps, self.steps_per_image, work.generator(start, "steps")
            )
            for whole in rows.split(work.batch_size)[: work.max_steps - start]:
                image, k = whole[work.share(work.batch_size)].unbind(1)
                yield step_batch(drawn, image, k, work.policy.guidance(sampler)).plus(
                    advantage=advantage[image], weight=weight[k - noisy_steps.start]
                )

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mean, std = self._step(work, batch, "policy")
        gained = log_prob(batch["next"], mean, std) - batch["log_prob"]
        if self.likelihood == "squared":
            gained = gained * 2 * std.clamp(min=LEAST_STD).square()
        ratio, advantage, told = gained.exp(), batch["advantage"], dict[str, Tensor]()
        if self.trust == "clip":
            loss = clipped_policy_loss(ratio, advantage, self.clip_range)
            stopped = was_clipped(ratio.detach(), advantage, self.clip_range)
        else:
            moved = step_divergence(mean.detach(), batch["mean"], std)
            loss = trusted_policy_loss(ratio, advantage, moved, self.divergence_limit)
            stopped = went_far(ratio.detach(), advantage, moved, self.divergence_limit)
            told["divergence"] = moved.mean()
        loss = batch["weight"] * loss
        if self.step_kl:
            apart = step_divergence(mean, self._step(work, batch, "reference")[0], std)
            loss = loss + self.step_kl * apart
            told["step_kl"] = apart.mean()
        return loss.mean(), {
            "reward": batch["reward"].mean(),
            "ratio": ratio.detach().mean(),
            "clipped": stopped.float().mean(),
            **told,
        }

    def _step(self, work: Work, batch: Batch, model: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a model's steps."""
        prediction, times = work.prediction(batch, model), (batch["t"], batch["s"])
        return work.policy.transition(batch["noisy"], prediction, *times, self.eta, self.noise)

    def _weights(self, work: Work, sampler: Sampler, noisy_steps: range) -> Tensor:
        """What each noisy step counts."""
        if self.weighting == "equal":
            return torch.ones(len(noisy_steps))
        times = work.policy.grid(sampler)
        squared = self.likelihood == "squared"
        return step_weights(work.policy, times, noisy_steps, self.eta, self.noise, squared=squared)

    def _check(self, work: Work, sampler: Sampler) -> tuple[int, int]:
        """How many steps have noise, and how many there are.

        Raises: UserError: if they are too few to learn from, or do not suit the other options.
        """
        steps = len(work.policy.grid(sampler)) - 1
        # the last one has none, however wide the window
        noisy = min(math.ceil(self.window * steps), steps - 1)
        if self.steps_per_image > noisy:
            wider = ", or a wider --window" if noisy < steps - 1 else ""
            raise UserError(
                f"steps_per_image {self.steps_per_image}: of the {steps} sampling steps, {noisy} "
                f"have noise; give --steps-per-image {noisy} or fewer{wider}"
                if noisy
                else f"the study samples in {steps} step, without noise; grpo needs 2 or more"
            )
        if self.noise not in VARIANCE_PRESERVING and work.policy.kind != "velocity":
            raise UserError(
                f"noise {self.noise} is for flow models, and {work.policy.name} is not one; "
                f"choose {' or '.join(VARIANCE_PRESERVING)}"
            )
        if self.window_interval and noisy == steps - 1:
            raise UserError(
                f"window_interval {self.window_interval} would have no effect, because the window "
                f"has all {noisy} steps that can have noise; give a smaller --window, or omit it"
            )
        return noisy, steps
