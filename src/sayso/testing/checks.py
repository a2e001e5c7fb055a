"""Contract checks for plug-ins, yours too: each raises AssertionError that says what is broken."""

import copy
import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.aligners import NEEDS, Aligner, Batch, Work
from sayso.base.types import Sample, Sampler, Size
from sayso.families import Cond, Policy, take
from sayso.judges import Judge, Verdict
from sayso.rewards import Reward
from sayso.study.study import Study
from sayso.testing.toy import ToyPolicy, toy_work


def check_aligner(kind: type[Aligner], **options: object) -> None:
    """Check an aligner with these options on a toy.

    Its runs repeat and resume; two processes make what one makes; its batches have the right size
    and carry all their chance; cutting a batch changes neither loss nor gradient; gradients reach
    trainable weights only.
    """
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} must be a dataclass"
    aligner = kind(**options)
    assert aligner.required() <= aligner.needs <= NEEDS, f"{kind.__name__} needs unknown things"
    period = aligner.period(8)
    steps, later = max(4, 2 * period), max(2, period)

    def batches_from(start: int) -> list[Batch]:
        work = toy_work(_trained_a_little(), max_steps=steps, start_step=start)
        return list(aligner.batches(work))

    batches = batches_from(0)
    assert len(batches) == steps, f"{len(batches)} batches for {steps} steps"
    assert all(len(batch) == 8 for batch in batches), "a batch must have batch_size rows"
    _assert_same(batches, batches_from(0), "the same seed must repeat")
    _assert_same(batches[later:], batches_from(later), "resuming must continue the batches")
    together = _of_two_processes(aligner, toy_work(_trained_a_little(), max_steps=steps))
    _assert_same(batches, together, "two processes must make what one does")
    _check_cutting(aligner, batches[0])


def _assert_same(a: list[Batch], b: list[Batch], message: str) -> None:
    assert len(a) == len(b), message
    for one, other in zip(a, b, strict=True):
        assert one.tensors.keys() == other.tensors.keys(), message
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, other[name], msg=f"{message}: {name}")


def _of_two_processes(aligner: Aligner, work: Work) -> list[Batch]:
    """The batches that two processes make together, in threads that meet where they gather."""
    meeting, shared = threading.Barrier(2, timeout=60), dict[int, Tensor]()

    def batches(rank: int) -> list[Batch]:
        def gather(tensor: Tensor) -> Tensor:
            shared[rank] = tensor
            meeting.wait()
            assert shared[0].shape == shared[1].shape, "gather needs the same shape of all"
            whole = torch.cat([shared[0], shared[1]])
            meeting.wait()
            return whole

        alone = dataclasses.replace(
            work, rank=rank, world=2, gather=gather, policy=copy.deepcopy(work.policy)
        )
        return list(aligner.batches(alone))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(batches, (0, 1))
    return [
        Batch({name: torch.cat([tensor, other[name]]) for name, tensor in one.tensors.items()})
        for one, other in zip(first, second, strict=True)
    ]


def _check_cutting(aligner: Aligner, batch: Batch) -> None:
    whole, parts = _trained_a_little(), _trained_a_little()
    loss, scalars = aligner.loss(toy_work(whole), batch)
    assert loss.ndim == 0, "loss must be one number"
    assert loss.isfinite(), "loss must be finite"
    assert all(value.ndim == 0 for value in scalars.values()), "logged scalars must be scalars"
    loss.backward()
    work, unit = toy_work(parts), aligner.unit
    cut = [aligner.loss(work, batch.rows(slice(i, i + unit)))[0] for i in range(0, 8, unit)]
    (sum(cut, torch.zeros(())) * unit / len(batch)).backward()
    for one, other in zip(whole.trainable().values(), parts.trainable().values(), strict=True):
        assert one.grad is not None, "the gradient must reach every trainable weight"
        assert other.grad is not None, "the gradient must reach every trainable weight"
        # differences of nearly equal errors round differently
        apart = (one.grad - other.grad).abs().max()
        assert apart <= 1e-3 * one.grad.abs().max() + 1e-8, "cutting a batch changed the gradient"
    assert whole.frozen.grad is None, "a frozen weight got a gradient"


def _trained_a_little() -> ToyPolicy:
    """A policy that is no longer its reference, nor its older self."""
    policy, rng = ToyPolicy(), torch.Generator().manual_seed(2)
    policy.keep_reference()
    policy.remember("old")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(1e-4 * torch.randn(parameter.shape, generator=rng))
    return policy


def check_family(kind: type[Policy], path: Path, size: Size, prompt: str = "a") -> None:
    """Check a family on a folder that it loads.

    Sampling repeats and a row depends on its own seed only; errors have a row each; t = 0 is the
    image; predictions point the way in which images are drawn; saving and loading gives the same
    predictions; only the network gets gradients.
    """
    policy = kind.load(path, torch.device("cpu"))
    assert policy.pipelines, f"{kind.__name__}.pipelines is empty: nothing would find it"
    cond = policy.encode_prompts([prompt, prompt])
    assert all(len(value) == 2 for value in cond.values()), "conditions must be batch-first"
    _check_sampling(policy, cond, size)
    _check_sign(policy, prompt, size)
    latents, noise = torch.randn(2, 2, *policy.latent_shape(size)).unbind(0)
    start = policy.add_noise(latents, noise, torch.zeros(2))
    assert (start - latents).abs().mean() < 0.1, "t = 0 must be the image, nearly"
    t = torch.tensor([0.2, 0.8])
    error = policy.denoising_error(latents, cond, t, noise)
    assert error.shape == (2,), "denoising_error must have one number per row"
    error.sum().backward()
    idle = [name for name, p in policy.trainable().items() if p.grad is None]
    assert not idle, f"{len(idle)} trainable weights get no gradient, such as {idle[:1]}"
    images = policy.decode(latents.requires_grad_())
    assert images.shape == (2, 3, size.height, size.width), "decode gave another size"
    assert policy.encode_images(images.detach()).shape == latents.shape, "encode gave another size"
    _check_weights(policy, kind, path, (start, t, cond))


def _check_sampling(policy: Policy, cond: Cond, size: Size) -> None:
    sampler = Sampler(3, 2.0, 0.0, size)
    uncond = policy.encode_prompts([""])
    both = policy.sample(cond, uncond, [1, 2], sampler)
    torch.testing.assert_close(both, policy.sample(cond, uncond, [1, 2], sampler), rtol=0, atol=0)
    second = policy.sample(take(cond, slice(1, 2)), uncond, [2], sampler)
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def _check_sign(policy: Policy, prompt: str, size: Size, n: int = 16) -> None:
    """Half way to noise, a model errs less on what it draws than one that predicts nothing.

    With the wrong sign it errs more. The noise (eps) that a network predicts before it is trained
    has nothing to do with what it draws, so that there is nothing to see.
    """
    if policy.kind == "eps":
        return
    cond, uncond = policy.encode_prompts([prompt] * n), policy.encode_prompts([""])
    sampler = Sampler(4, policy.no_guidance, 0.0, size)
    latents = policy.sample(cond, uncond, range(n), sampler)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(n))
    t = torch.full((n,), 0.5)
    error = policy.denoising_error(latents, cond, t, noise).mean()
    nothing = policy.target(latents, noise, t).square().mean()
    assert error < nothing, f"error {error:.3f} on what it draws, {nothing:.3f} for no prediction"


def _check_weights(
    policy: Policy, kind: type[Policy], path: Path, inputs: tuple[Tensor, Tensor, Cond]
) -> None:
    with torch.no_grad(), TemporaryDirectory() as folder:
        for parameter in policy.trainable().values():
            parameter.mul_(1.01)
        policy.save_weights(Path(folder))
        assert not list(Path(folder).rglob("*.bin")), "weights must be safetensors"
        again = kind.load(path, policy.device, Path(folder))
        ours, theirs = policy.predict(*inputs), again.predict(*inputs)
    torch.testing.assert_close(ours, theirs, msg="save → load changed the predictions")


def check_reward(reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> None:
    """Check a prepared reward: a finite score per image, in range, each on its own, repeatable."""
    scores = reward.score(images, prompts)
    assert scores.shape == (len(prompts),), "score must give one number per image"
    assert scores.isfinite().all(), "scores must be finite"
    low, high = reward.range
    assert ((scores >= low) & (scores <= high)).all(), f"scores left the range {low} … {high}"
    torch.testing.assert_close(scores, reward.score(images, prompts), msg="scores must repeat")
    rows = [slice(i, i + 1) for i in range(len(images))]
    alone = torch.cat([reward.score(images[row], prompts[row]) for row in rows])
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-4)
    if reward.differentiable:
        pixels = images.clone().requires_grad_()
        reward.score(pixels, prompts).sum().backward()
        assert pixels.grad is not None, "a differentiable reward must pass gradients to the images"
        assert pixels.grad.abs().sum() > 0, "the gradient to the images is 0"


def check_judge(judge: Judge, study: Study, samples: Sequence[Sample]) -> None:
    """Check a prepared judge on stored samples whose prompts it understands.

    It says who judged; there is a verdict or None for each sample, certainty is in [0, 1], verdicts
    repeat, and no verdict depends on the other samples.
    """
    prompts = {prompt.id: prompt for prompt in study.prompts()}
    own = [prompts[sample.prompt_id] for sample in samples]
    assert judge.title, "title must say who judged"
    for prompt in own:
        assert judge.understands(prompt) is True, f"understands({prompt.text!r}) must be True here"
    verdicts = judge.judge_samples(study, samples, own)
    assert len(verdicts) == len(samples), f"{len(verdicts)} verdicts on {len(samples)} samples"
    for verdict in (v for v in verdicts if v is not None):
        assert isinstance(verdict.true, bool), f"true is {verdict.true!r}; it must be a bool"
        assert 0 <= verdict.certainty <= 1, f"certainty {verdict.certainty} is not in [0, 1]"
        assert isinstance(verdict.why, str), f"why is {verdict.why!r}; it must be text"
    again = judge.judge_samples(study, samples, own)
    assert _truths(again) == _truths(verdicts), "verdicts must repeat"
    alone = [judge.judge_samples(study, [s], [p])[0] for s, p in zip(samples, own, strict=True)]
    assert _truths(alone) == _truths(verdicts), "a verdict depended on the other samples"


def _truths(verdicts: Sequence[Verdict | None]) -> list[bool | None]:
    return [verdict.true if verdict else None for verdict in verdicts]
