# ruff: noqa: ARG002 the toy ignores some arguments of the surface it implements
"""Contract checks for plug-ins, yours too: each raises AssertionError that says what is broken."""

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sayso.aligners import NEEDS, Aligner, Batch, Context
from sayso.base.types import Sample, Sampler
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import Cond, Policy, take
from sayso.judges import Judge, Verdict
from sayso.rewards import Reward
from sayso.study.study import Study


class ToyPolicy(Policy):
    """Diffusion of points in the plane, latents [b, 2, 1, 1]: seconds to train, known answers.

    Noise follows x_t = cos(πt/2) x + sin(πt/2) noise; the network predicts the noise. A text's
    condition is its number.
    """

    def __init__(self, width: int = 64, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network: nn.Module = nn.Sequential(
                nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
            )  # fmt: skip
        self.device = torch.device("cpu")
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    @classmethod
    def load(cls, path: Path, device: torch.device, weights: Path | None = None) -> "ToyPolicy":
        raise NotImplementedError("a toy is made, not loaded")

    def latent_shape(self, image_size_px: int) -> tuple[int, int, int]:
        return (2, 1, 1)

    def check_prompts(self, texts: Sequence[str]) -> None:
        pass

    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        return {"number": torch.tensor([[float(text or -1)] for text in texts])}

    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return images[:, :2, :1, :1] * 2 - 1

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return torch.cat([latents, latents[:, :1]], dim=1).clamp(-1, 1) / 2 + 0.5

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        angle = (t * math.pi / 2)[:, None, None, None]
        return angle.cos() * latents + angle.sin() * noise

    def target(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        return noise

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        angle = (t * math.pi / 2)[:, None]
        inputs = (noisy.flatten(1), t[:, None], angle.cos(), angle.sin(), cond["number"])
        return self.network(torch.cat(inputs, dim=1))[:, :, None, None] * self.frozen

    @torch.no_grad()
    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        """Deterministic DDIM, without guidance."""
        noises = [torch.randn(2, 1, 1, generator=torch.Generator().manual_seed(s)) for s in seeds]
        x, b = torch.stack(noises), len(seeds)
        times = torch.linspace(0.99, 0, sampler.num_inference_steps + 1).tolist()
        for now, then in pairwise(times):
            eps = self.predict(x, torch.full((b,), now), cond)
            clean = (x - math.sin(now * math.pi / 2) * eps) / math.cos(now * math.pi / 2)
            x = self.add_noise(clean, eps, torch.full((b,), then))
        return x

    def add_lora(self, rank: int, seed: int) -> None:
        raise NotImplementedError("a toy has no adapters")

    def save_weights(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.network.state_dict(), folder / "toy.safetensors")

    def load_weights(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.network.load_state_dict(load_file(folder / "toy.safetensors"))


def toy_rows(n_own: int = 24, n_pretraining: int = 12, seed: int = 0) -> TrainingRows:
    """Points with marks (a third good, a third bad, the rest none) and rewards in (0, 1)."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(n_own + n_pretraining, 2, 1, 1, generator=rng)
    marks = [(1.0, 0.0, float("nan"))[i % 3] for i in range(n_own)]
    rewards = torch.rand(n_own, generator=rng).mul(0.9).add(0.05).tolist()
    texts = [str(i % 3) for i in range(n_own)]
    natural = (points[n_own:], ["0"] * n_pretraining)
    return make_rows(ToyPolicy(), (points[:n_own], texts), marks, rewards, natural)


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
