"""Contract checks for plug-ins, yours too: each raises AssertionError that says what is broken."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.aligners import NEEDS, Aligner, Batch, Context
from sayso.base.types import Sampler
from sayso.families import Cond, Policy, take
from sayso.rewards import Reward
from sayso.testing.toy import ToyPolicy, toy_rows


def check_aligner(kind: type[Aligner], **options: object) -> None:
    """Check an aligner with these options on a toy.

    Its runs repeat and resume; its batches have the right size and carry all their chance; cutting
    a batch changes neither loss nor gradient; gradients reach trainable weights only.
    """
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} must be a dataclass"
    aligner = kind(**options)
    assert aligner.required() <= aligner.needs <= NEEDS, f"{kind.__name__} needs unknown things"
    context = Context(toy_rows(), batch_size=8, max_steps=4, seed=1)
    batches = list(aligner.batches(context))
    assert len(batches) == 4, f"{len(batches)} batches for 4 steps"
    assert all(len(batch) == 8 for batch in batches), "a batch must have batch_size rows"
    _assert_same(batches, list(aligner.batches(context)), "the same seed must repeat")
    late = dataclasses.replace(context, start_step=2)
    _assert_same(batches[2:], list(aligner.batches(late)), "resuming must continue the batches")
    _check_cutting(aligner, batches[0])


def _assert_same(a: list[Batch], b: list[Batch], message: str) -> None:
    assert len(a) == len(b), message
    for one, other in zip(a, b, strict=True):
        for field in ("latents", "t", "noise", "weight"):
            assert torch.equal(getattr(one, field), getattr(other, field)), f"{message}: {field}"


def _check_cutting(aligner: Aligner, batch: Batch) -> None:
    whole, parts = ToyPolicy(), ToyPolicy()
    loss, scalars = aligner.loss(whole, batch)
    assert loss.ndim == 0, "loss must be one number"
    assert loss.isfinite(), "loss must be finite"
    assert all(value.ndim == 0 for value in scalars.values()), "logged scalars must be scalars"
    loss.backward()
    cut = [aligner.loss(parts, batch.rows(slice(i, i + 1)))[0] / len(batch) for i in range(8)]
    sum(cut, torch.zeros(())).backward()
    for one, other in zip(whole.trainable().values(), parts.trainable().values(), strict=True):
        assert one.grad is not None, "the gradient must reach every trainable weight"
        torch.testing.assert_close(one.grad, other.grad, msg="cutting a batch changed the gradient")
    assert whole.frozen.grad is None, "a frozen weight got a gradient"


def check_family(kind: type[Policy], path: Path, image_size_px: int, prompt: str = "a") -> None:
    """Check a family on a folder that it loads.

    Sampling repeats and a row depends on its own seed only; errors have a row each; t = 0 is the
    image; saving and loading gives the same predictions; only the network gets gradients.
    """
    policy = kind.load(path, torch.device("cpu"))
    assert policy.pipelines, f"{kind.__name__}.pipelines is empty: nothing would find it"
    cond = policy.encode_prompts([prompt, prompt])
    assert all(len(value) == 2 for value in cond.values()), "conditions must be batch-first"
    _check_sampling(policy, cond, image_size_px)
    latents, noise = torch.randn(2, 2, *policy.latent_shape(image_size_px)).unbind(0)
    start = policy.add_noise(latents, noise, torch.zeros(2))
    assert (start - latents).abs().mean() < 0.1, "t = 0 must be the image, nearly"
    t = torch.tensor([0.2, 0.8])
    error = policy.denoising_error(latents, cond, t, noise)
    assert error.shape == (2,), "denoising_error must have one number per row"
    error.sum().backward()
    assert any(p.grad is not None for p in policy.trainable().values()), "no gradient at all"
    images = policy.decode(latents.requires_grad_())
    assert images.shape == (2, 3, image_size_px, image_size_px), "decode gave another size"
    assert policy.encode_images(images.detach()).shape == latents.shape, "encode gave another size"
    _check_weights(policy, kind, path, (start, t, cond))


def _check_sampling(policy: Policy, cond: Cond, image_size_px: int) -> None:
    sampler = Sampler(3, 2.0, 0.0, image_size_px)
    uncond = policy.encode_prompts([""])
    both = policy.sample(cond, uncond, [1, 2], sampler)
    torch.testing.assert_close(both, policy.sample(cond, uncond, [1, 2], sampler), rtol=0, atol=0)
    second = policy.sample(take(cond, slice(1, 2)), uncond, [2], sampler)
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-3)


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
