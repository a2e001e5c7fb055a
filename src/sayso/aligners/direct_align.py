"""Direct alignment: up the gradient of a reward, through one recovered image or the last steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, stratified
from sayso.aligners._limits import refuse_idle
from sayso.aligners._rollouts import (
    draw_latents,
    planned,
    portions,
    reward_of,
    rows_of,
    score,
)
from sayso.base.errors import UserError
from sayso.base.records import check_choices
from sayso.families import take
from sayso.rewards import Reward

Source = Literal["samples", "rollouts"]


def reward_gradient(
    work: Work, latents: Float[Tensor, "b c h w"], texts: Sequence[str], limit: float | None
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
    """The reward of images, and the way in which their latents would have more of it.

    Images are decoded and scored a few at a time, and what the gradient needs of the decoder is let
    go at once: only `latents` need be kept for the network's own.

    Args:
        limit: an image with a reward above has no gradient; None = none has.
    Raises: UserError: if there is not one reward for each image, one is not finite, or no gradient
        passes through it.
    """
    size = work.policy.portion(work.sampler.image_size)
    found, ways = list[Tensor](), list[Tensor]()
    for rows in portions(slice(0, len(texts)), size):
        part = latents[rows].detach().requires_grad_()
        rewards = score(work, work.policy.decode(part), texts[rows]).to(part.device)
        limited = rewards if limit is None else rewards.clamp(max=limit)
        found.append(rewards.detach())
        ways.append(_gradient(limited, part, reward_of(work)))
    return torch.cat(found), torch.cat(ways)


def _gradient(rewards: Float[Tensor, " b"], latents: Tensor, reward: Reward) -> Tensor:
    """Raises: UserError: if no gradient passes from the reward to the latents."""
    way = None
    if rewards.requires_grad:
        (way,) = torch.autograd.grad(rewards.sum(), latents, allow_unused=True)
    if way is None:
        raise UserError(
            f"reward {type(reward).__name__} says that it is differentiable, but no gradient "
            "passes from its score to the images; mend its score, or choose another --reward"
        )
    return way


def ascent_loss(
    latents: Float[Tensor, "b c h w"], reward: Float[Tensor, " b"], way: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """−reward, whose gradient to the latents is −way.

    Args:
        latents: of the images, with a gradient to the network.
        reward, way: see `reward_gradient`.
    """
    along = (latents * way).flatten(1).sum(1)
    return -reward - (along - along.detach())


@dataclass(frozen=True)
class DirectAlign(Aligner):
    """Raise a differentiable reward of images that the model recovers from known noise in one step,
    or draws to the end.

    Source: Shen et al. 2025, arXiv 2509.06942 (Direct-Align, without its control words); the last
        steps: Clark et al. 2023, arXiv 2309.17400 (DRaFT).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"reward", "gradient", "rollouts"})
    defaults: ClassVar[Mapping[str, float]] = {"learning_rate": 1e-5}

    source: Source = "samples"
    """Whose images are noised: samples, those of the study; or rollouts, drawn for each update."""
    stride: float = 0.2
    """How much of the way from the noisy image to the clean one the model goes, above 0; the known
    noise is taken off the rest. 1 = all of it."""
    most_noise: float = 0.8
    """Images are noised to times from 0 up to this, at most 1. Near 1 the gradient is large and
    says little."""
    last_steps: int = 0
    """With rollouts: back through so many last sampling steps, with guidance, as in DRaFT, in place
    of a recovered image; 0 = off."""
    reward_limit: float | None = None
    """An image whose reward is above this is left alone; default: none is."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, advice in {"stride": 0.2, "most_noise": 0.8}.items():
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)} is not in (0, 1]; try {advice}")
        if self.last_steps < 0:
            raise UserError(f"last_steps {self.last_steps} must be at least 0; try 1")
        if self.last_steps and self.source == "samples":
            raise UserError(
                f"last_steps {self.last_steps} are steps of drawing; give --source rollouts too"
            )
        if self.last_steps:
            refuse_idle(self, f"with --last-steps {self.last_steps}", "stride", "most_noise")

    @property
    def draws_times(self) -> bool:
        return not self.last_steps

    def required(self) -> frozenset[str]:
        return self.needs if self.source == "rollouts" else self.needs - {"rollouts"}

    def check_shares(self, own: int, rows: int, processes: int) -> None:
        if self.source == "samples" or not own % processes:
            return
        below = own // processes * processes
        fitting = [str(count) for count in (below, below + processes) if 0 < count < rows]
        advice = (
            f"give a --pretraining-fraction that leaves {' or '.join(fitting)} of the {rows} rows "
            "to them, or start another number of processes"
            if fitting
            else "give a larger --batch-size, or start fewer processes"
        )
        raise UserError(
            f"{processes} processes cannot share {own} images of an update evenly; {advice}"
        )

    def batches(self, work: Work) -> Iterator[Batch]:
        for step in work.steps:
            if self.last_steps:
                yield self._before_the_last_steps(work, step)
            elif self.source == "rollouts":
                plan = planned(work, step, work.batch_size, 1, work.sampler)
                latents = work.gather(draw_latents(work, plan)).cpu()
                drawn = replace(work, data=rows_of(work, plan, latents))
                yield self._noised(drawn, step, plan.chosen[plan.prompt])
            else:
                yield self._noised(work, step, work.data.text[: work.data.n_own])

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = "noisy" in batch
        latents = self._drawn_to_the_end(work, batch) if drawn else self._recovered(work, batch)
        known = work.data.texts if self.source == "samples" else work.prompts
        numbers: list[int] = batch["text"].tolist()
        texts = [known[i] for i in numbers]
        reward, way = reward_gradient(work, latents, texts, self.reward_limit)
        told = {"reward": reward.mean()}
        if self.reward_limit is not None:
            told["at_limit"] = (reward > self.reward_limit).float().mean()
        if not drawn:
            told |= {"error": work.error(batch).mean(), "norm": work.norm(batch)}
        return ascent_loss(latents, reward, way).mean(), told

    def _noised(self, work: Work, step: int, text: Int[Tensor, " n"]) -> Batch:
        """Rows of images with noise, at times up to `most_noise`; `text` is the number of each."""
        generator, alone = work.generator(step), replace(work, n_pretraining=0)
        rows = stratified(torch.ones(len(text)), work.batch_size, generator)
        # in no order, for neighbours are of one prompt
        rows = rows[torch.randperm(len(rows), generator=generator)]
        batch = alone.denoising_batch(rows, generator, text=text[rows])
        return Batch({**batch.tensors, "t": batch["t"] * self.most_noise})

    def _recovered(self, work: Work, batch: Batch) -> Float[Tensor, "b c h w"]:
        """The images again, from what the model predicts and the noise that is known."""
        policy, noise, t = work.policy, batch["noise"], batch["t"]
        noisy = policy.add_noise(batch["latents"], noise, t)
        return policy.recovered(noisy, work.prediction(batch), noise, t, t * (1 - self.stride))

    def _before_the_last_steps(self, work: Work, step: int) -> Batch:
        """Rows of images that lack the last steps of drawing."""
        policy, sampler = work.policy, replace(work.sampler, eta=0.0)
        times = policy.grid(sampler)
        steps = len(times) - 1 - self.last_steps
        if steps < 0:
            raise UserError(
                f"last_steps {self.last_steps} are more than the {len(times) - 1} of the study's "
                "sampler; give fewer"
            )
        plan = planned(work, step, work.batch_size, 1, sampler)
        mine, device = work.share(work.batch_size), policy.device
        parts = [
            policy.rollout(
                take(plan.cond, plan.prompt[rows].to(device)), plan.uncond, plan.seeds[rows],
                sampler, steps=steps,
            ).latents
            for rows in portions(mine, work.micro_batch)
        ]  # fmt: skip
        which, scale = plan.prompt[mine].to(device), policy.guidance(sampler)
        cond, uncond = (policy.with_sampler(c, sampler) for c in (plan.cond, plan.uncond))
        guided = {} if scale is None else {"guidance": torch.full((len(which),), scale)}
        return Batch.of(
            take(cond, which), take(uncond, torch.zeros_like(which)) if guided else None,
            noisy=torch.cat(parts), t=times[steps].expand(len(which)),
            text=plan.chosen[plan.prompt[mine]], **guided,
        )  # fmt: skip

    def _drawn_to_the_end(self, work: Work, batch: Batch) -> Float[Tensor, "b c h w"]:
        """The images, drawn through the last steps, all with a gradient."""
        policy, sampler = work.policy, work.sampler
        x, times = batch["noisy"], policy.grid(sampler)[-self.last_steps - 1 :].to(policy.device)
        for k in range(self.last_steps):
            t, s = (time.expand(len(x)) for time in times[k : k + 2])
            # the first is the one that other terms of the loss share
            prediction = (
                policy.under(sampler, x, t, batch.cond, batch.uncond)
                if k
                else work.prediction(batch)
            )
            x, _ = policy.transition(x, prediction, t, s, 0.0)
        return x
