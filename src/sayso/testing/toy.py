# ruff: noqa: ARG002 the toy ignores some arguments of the surface it implements
"""A toy: diffusion of points in the plane, seconds to train, with a known solution."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sayso.aligners import Work
from sayso.base.types import Sampler, Size
from sayso.data.pairs import Pairs
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import PARTS, Cond, Kind, Policy
from sayso.rewards import Reward

FIRST = 0.99
"""Where drawing begins: at t = 1 alpha is 0, and eps says nothing of the image."""


class ToyPolicy(Policy):
    """Diffusion of points in the plane, latents [b, 2, 1, 1].

    Noise follows x_t = cos(πt/2) x + sin(πt/2) noise. A text's condition is its number.
    """

    def __init__(self, width: int = 64, seed: int = 0, kind: Kind = "eps") -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
            )  # fmt: skip
        self.kind = kind
        self.device = torch.device("cpu")
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        weights: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        parts: Sequence[str] = PARTS,
    ) -> "ToyPolicy":
        raise NotImplementedError("a toy is made, not loaded")

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        raise NotImplementedError("a toy is made, not loaded")

    def release(self, part: str) -> None:
        pass

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        return (2, 1, 1)

    def check_prompts(self, texts: Sequence[str]) -> None:
        pass

    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        return {"number": torch.tensor([[float(text or -1)] for text in texts])}

    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return images[:, :2, :1, :1] * 4 - 2

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return torch.cat([latents, latents[:, :1]], dim=1).clamp(-2, 2) / 4 + 0.5

    def alpha_sigma(
        self, t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        angle = t * math.pi / 2
        return angle.cos(), angle.sin()

    def grid(self, sampler: Sampler) -> Float[Tensor, " n"]:
        return torch.linspace(FIRST, 0, sampler.num_inference_steps + 1)

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        inputs = (noisy.flatten(1), t[:, None], *(x[:, None] for x in self.alpha_sigma(t)))
        values = self.network(torch.cat([*inputs, cond["number"]], dim=1))
        return values[:, :, None, None] * self.frozen

    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        return self.rollout(cond, uncond, seeds, sampler).latents

    def save_weights(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.network.state_dict(), folder / "toy.safetensors")

    def load_weights(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.network.load_state_dict(load_file(folder / "toy.safetensors"))


class ToyReward(Reward):
    """Bright is good: the mean of red and green, which are the two coordinates of a point."""

    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        return images[:, :2].mean(dim=(1, 2, 3))


def toy_work(policy: ToyPolicy | None = None, **changes: Any) -> Work:
    """All that an aligner may need, of everything a little; `changes` are fields of `Work`."""
    rows = toy_rows()
    good = [i for i in rows.own.tolist() if rows.label[i] == 1]
    bad = [i for i in rows.own.tolist() if rows.label[i] == 0]
    pairs = torch.tensor([(g, b) for g in good for b in bad if (g - b) % 2])
    given: dict[str, Any] = {
        "policy": policy or ToyPolicy(),
        "data": rows,
        "batch_size": 8,
        "max_steps": 4,
        "seed": 1,
        "pairs": Pairs(pairs, torch.linspace(0.5, 1, len(pairs)), pairs[:, 0] % 3),
        "prompts": ("0", "1", "2"),
        "reward": ToyReward(),
        "sampler": Sampler(num_inference_steps=10, guidance_scale=1.0),
    }
    return Work(**given | changes)


def toy_rows(n_own: int = 24, n_pretraining: int = 12, seed: int = 0) -> TrainingRows:
    """Points of three prompts, each with labels (a third good, a third bad, the rest none), and
    rewards in (0, 1).
    """
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(n_own + n_pretraining, 2, 1, 1, generator=rng)
    labels = [(1.0, 0.0, float("nan"))[i % 3] for i in range(n_own)]
    rewards = torch.rand(n_own, generator=rng).mul(0.9).add(0.05).tolist()
    texts = [str(i // 3 % 3) for i in range(n_own)]
    pretraining = (points[n_own:], ["0"] * n_pretraining)
    return make_rows(ToyPolicy(), (points[:n_own], texts), labels, rewards, pretraining)
