"""Images drawn by the policy between its updates, their rewards, and what these say of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners._batch import Batch
from sayso.aligners._work import Work, stratified
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.data.conditions import HeldConditions
from sayso.data.rows import TrainingRows
from sayso.families import LEAST_STD, Cond, Noise, Policy, join, move, take
from sayso.rewards import Reward


def group_advantages(
    rewards: Float[Tensor, " n"], group_size: int, longest: float, *, within: bool = False
) -> Float[Tensor, " n"]:
    """How much better each image is than the others of its prompt, in standard deviations of all.

    The mean is of the group, so that prompts that are easy for all do not count; the standard
    deviation is of all groups, for that of a group whose images are nearly alike would blow
    differences up that mean nothing. A group whose images are all alike says nothing.

    Args:
        rewards: of groups of images of one prompt each, one group after the other.
        group_size: images of a group.
        longest: advantages are cut at ± this.
        within: divide by the standard deviation of each group instead.
    """
    groups = rewards.reshape(-1, group_size)
    centred = (groups - groups.mean(1, keepdim=True)).flatten()
    spread = groups.std(1).repeat_interleave(group_size) if within else rewards.std()
    return (centred / spread.clamp(min=1e-6)).clamp(-longest, longest)


class Plan(NamedTuple):
    """n images to draw, in groups of a prompt: the same in every process.

    `chosen` says which of the prompts of the work are drawn for, `texts` are these, and their
    conditions the rows of `cond`; `prompt` says which of them an image is drawn for. `uncond` has
    one row.
    """

    chosen: Int[Tensor, " p"]
    texts: list[str]
    prompt: Int[Tensor, " n"]
    seeds: list[int]
    cond: Cond
    uncond: Cond
    starts: list[int] | None = None

    def texts_of(self, rows: slice) -> list[str]:
        """The text of each of some images."""
        numbers: list[int] = self.prompt[rows].tolist()
        return [self.texts[i] for i in numbers]


def planned(work: Work, step: int, images: int, group_size: int, sampler: Sampler) -> Plan:
    """Groups of images of randomly chosen prompts; these and seeds come from the step's generator.

    Args:
        images: how many, a multiple of the processes.
    """
    generator = work.generator(step, "rollout")
    chosen = stratified(torch.ones(len(work.prompts)), images // group_size, generator)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    seeds: list[int] = torch.randint(2**31, (images,), generator=generator).tolist()
    numbers: list[int] = chosen.tolist()
    texts = [work.prompts[i] for i in numbers]
    prompt = torch.arange(len(texts)).repeat_interleave(group_size)
    with torch.no_grad():
        cond, uncond = (
            work.policy.encode_prompts(some) for some in (texts, [sampler.negative_prompt])
        )
    return Plan(chosen, texts, prompt, seeds, cond, uncond)


class Images(NamedTuple):
    """n images in groups, the same in every process, on the CPU; `plan` says of what."""

    latents: Float[Tensor, "n c h w"]
    reward: Float[Tensor, " n"]
    plan: Plan


def draw_images(
    work: Work, step: int, images: int, group_size: int, older: str | None = None
) -> Images:
    """Draw groups of images as the study draws, and reward them.

    Each process draws its share; all get all.

    Args:
        older: the older self that draws them; None = the policy as it is now.
    Raises: UserError: if a reward is not finite.
    """
    plan = planned(work, step, images, group_size, work.sampler)
    latents = draw_latents(work, plan, older)
    reward = rewarded(work, latents, plan.texts_of(work.share(images)))
    latents, reward = (work.gather(part.contiguous()).cpu() for part in (latents, reward))
    return Images(latents, reward, plan)


def draw_latents(work: Work, plan: Plan, older: str | None = None) -> Float[Tensor, "b c h w"]:
    """Final latents of this process's share of the images, drawn as the study draws, in fp32.

    Args:
        older: the older self that draws them; None = the policy as it is now.
    """
    policy = work.policy
    with torch.no_grad(), policy.old(older) if older else nullcontext():
        parts = [
            policy.sample(
                take(plan.cond, plan.prompt[rows].to(policy.device)), plan.uncond,
                plan.seeds[rows], work.sampler,
            )
            for rows in portions(work.share(len(plan.seeds)), work.micro_batch)
        ]  # fmt: skip
    return torch.cat(parts).float()


def rows_of(work: Work, plan: Plan, latents: Float[Tensor, "n c h w"]) -> TrainingRows:
    """Drawn images as rows to learn from, in the order of the plan."""
    nothing = torch.full((len(latents),), float("nan"))
    with torch.no_grad():
        cond = join([work.policy.encode_prompts([""]), plan.cond])
    return TrainingRows(
        latents=latents,
        text=plan.prompt + 1,
        label=nothing,
        reward=nothing,
        conditions=HeldConditions(move(cond, torch.device("cpu"))),
        n_own=len(latents),
        texts=["", *plan.texts],
    )


class Drawn(NamedTuple):
    """n images in groups, the same in every process, on the CPU.

    `way` has the latents at each of `times`, m of them; `log_prob[k]` is that of the step from
    `way[k]`, and `mean[k - first]`, if kept, what it added fresh noise to, where `first` is the
    first step that did. `prompt` says which row of `cond` an image was drawn for; `uncond` has one
    row.
    """

    way: Float[Tensor, "m n c h w"]
    times: Float[Tensor, " m"]
    log_prob: Float[Tensor, "k n"]
    reward: Float[Tensor, " n"]
    prompt: Int[Tensor, " n"]
    cond: Cond
    uncond: Cond
    mean: Float[Tensor, "l n c h w"] | None = None
    first: int = 0


def window_of(rollout: int, width: int, steps: int, interval: int) -> range:
    """The sampling steps of a rollout that have noise, a window that slides from the first.

    It moves on by one step every so many rollouts, and begins anew when it has been at the last
    step that may have noise, the last but one.

    Args:
        rollout: number of the rollout, from 0.
        width: steps of the window, below `steps`.
        steps: of the sampler.
        interval: rollouts after which it moves; 0 = never.
    Source: MixGRPO 2025, arXiv 2507.21802; that it begins anew is its code's.
    """
    first = rollout // interval % (steps - width) if interval else 0
    return range(first, first + width)


def draw_groups(
    work: Work, step: int, images: int, group_size: int, sampler: Sampler, form: Noise,
    noisy_steps: range | None = None, *, same_start: bool = False, means: bool = False,
) -> Drawn:  # fmt: skip
    """Draw groups of images, keep the way that each took, and reward them.

    Each process draws its share; all get all.

    Args:
        noisy_steps: see `Policy.rollout`.
        same_start: whether the images of a group start from the same noise.
        means: whether to keep what each step added fresh noise to.
    Raises: UserError: if a reward is not finite.
    """
    plan = planned(work, step, images, group_size, sampler)
    if same_start:
        plan = plan._replace(starts=[plan.seeds[i - i % group_size] for i in range(images)])
    made = [
        _drawn(work, plan, rows, sampler, form, noisy_steps)
        for rows in portions(work.share(images), work.micro_batch)
    ]
    way, log_prob, reward, *mean = (
        work.gather(torch.cat([part[i] for part in made]).contiguous()).cpu()
        for i in range(4 if means else 3)
    )
    conds = (
        move(work.policy.with_sampler(part, sampler), torch.device("cpu"))
        for part in (plan.cond, plan.uncond)
    )
    times = work.policy.grid(sampler)
    kept = mean[0].transpose(0, 1) if mean else None
    first = noisy_steps.start if noisy_steps else 0
    return Drawn(
        way.transpose(0, 1), times, log_prob.T, reward, plan.prompt, *conds, mean=kept, first=first
    )


def portions(rows: slice, size: int) -> list[slice]:
    return [slice(at, min(at + size, rows.stop)) for at in range(rows.start, rows.stop, size)]


def _drawn(
    work: Work, plan: Plan, rows: slice, sampler: Sampler, form: Noise, noisy_steps: range | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Way, log-probabilities, rewards and means of some images, a row each."""
    policy = work.policy
    rollout = policy.rollout(
        take(plan.cond, plan.prompt[rows].to(policy.device)),
        plan.uncond,
        plan.seeds[rows],
        sampler,
        form=form,
        noisy_steps=noisy_steps,
        starts=plan.starts and plan.starts[rows],
    )
    rewards = rewarded(work, rollout.latents, plan.texts_of(rows))
    way, mean = (steps.transpose(0, 1) for steps in (rollout.way, rollout.mean))
    return way, rollout.log_prob.T, rewards, mean


def reward_of(work: Work) -> Reward:
    """The reward in the loop. Raises: UserError: if there is none."""
    if work.reward is None:
        raise UserError("this aligner needs a reward in the loop; give --reward")
    return work.reward


@torch.no_grad()
def rewarded(
    work: Work, latents: Float[Tensor, "b c h w"], texts: Sequence[str]
) -> Float[Tensor, " b"]:
    """The reward of images as they would be stored, with 8 bits a channel.

    Raises: UserError: as `score`.
    """
    size, scores = work.policy.portion(work.sampler.image_size), []
    for rows in portions(slice(0, len(texts)), size):
        images = work.policy.decode(latents[rows]).mul(255).round().div(255)
        scores.append(score(work, images, texts[rows]).to(latents.device))
    return torch.cat(scores)


def score(
    work: Work, images: Float[Tensor, "b 3 H W"], texts: Sequence[str]
) -> Float[Tensor, " b"]:
    """The reward of images in the loop, with its gradient if it has one.

    Raises: UserError: if there is not one for each, or one is not finite; its text is named.
    """
    names = [f"an image generated for {text!r}" for text in texts]
    advice = "look at the reward's weights, or try a lower --learning-rate"
    return reward_of(work).checked_score(images, texts, names, advice)


def learned_steps(
    images: int, noisy_steps: range, per_image: int, generator: torch.Generator
) -> Int[Tensor, "r 2"]:
    """Rows (image, step of drawing) in random order, `per_image` different steps of each image."""
    order = torch.rand(images, len(noisy_steps), generator=generator).argsort(1)
    k = noisy_steps.start + order[:, :per_image].flatten()
    image = torch.arange(images).repeat_interleave(per_image)
    return torch.stack([image, k], dim=1)[torch.randperm(len(k), generator=generator)]


def step_weights(
    policy: Policy, times: Float[Tensor, " m"], noisy_steps: range, eta: float, form: Noise,
    *, squared: bool = False,
) -> Float[Tensor, " k"]:  # fmt: skip
    """What each noisy step counts, 1 on average, for all to make the gradient equally noisy.

    The gradient of log p is noise · c / std times that of the prediction, where the step's mean
    moves by c with the prediction; the weight is std / |c|. Without it most of the gradient's noise
    is that of late steps, whose std is small, where the model predicts v or a velocity. That of
    −distance², which is 2 std² · log p, is 2 · noise · c · std, and the weight 1 / (std · |c|).

    Args:
        squared: whether the likelihood is exp(−distance²) and not the density.
    """
    first, end = noisy_steps.start, noisy_steps.stop
    t, s = (x.to(policy.device) for x in (times[first:end], times[first + 1 : end + 1]))
    nothing = torch.zeros(len(t), 1, 1, 1, device=policy.device)
    # the mean is linear in noisy latents and prediction
    slope, std = policy.transition(nothing, nothing + 1, t, s, eta, form)
    loudness = slope.flatten().abs() * std
    if not squared:
        loudness = loudness / std.clamp(min=LEAST_STD).square()
    weights = 1 / loudness
    return (weights / weights.mean()).cpu()


def step_batch(
    drawn: Drawn, image: Int[Tensor, " b"], k: Int[Tensor, " b"], scale: float | None
) -> Batch:
    """Rows of which each is the k-th step of drawing an image, with guidance of that scale."""
    uncond, tensors = None, dict[str, Tensor]()
    if scale is not None:
        uncond = take(drawn.uncond, torch.zeros_like(image))
        tensors["guidance"] = torch.full((len(image),), scale)
    if drawn.mean is not None:
        tensors["mean"] = drawn.mean[k - drawn.first, image]
    return Batch.of(
        take(drawn.cond, drawn.prompt[image]),
        uncond,
        noisy=drawn.way[k, image],
        next=drawn.way[k + 1, image],
        t=drawn.times[k],
        s=drawn.times[k + 1],
        log_prob=drawn.log_prob[k, image],
        reward=drawn.reward[image],
        **tensors,
    )
