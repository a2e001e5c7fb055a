"""Muon for weight matrices and kernels, AdamW for the rest: several times fewer steps on CPUs."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(update: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """Pull all singular values towards 1 by five Newton–Schulz steps.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    tall = update.shape[0] > update.shape[1]
    x = update.mT if tall else update
    x = (x / (x.norm() + 1e-7)).bfloat16()  # rough is enough, and twice as fast
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per weight; kernels are flattened to [out, in × height × width]."""

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        buffer = state.setdefault("momentum", torch.zeros_like(p))
        buffer.mul_(group["momentum"]).add_(p.grad)
        nesterov = (p.grad + group["momentum"] * buffer).reshape(len(p), -1)
        rows, cols = nesterov.shape
        p.mul_(1 - group["lr"] * group["weight_decay"])
        scale = max(1.0, rows / cols) ** 0.5
        p.add_(orthogonalised(nesterov).view_as(p), alpha=-group["lr"] * scale)


class Pair:
    """Muon and AdamW as one optimizer whose learning rates move together."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float) -> None:
        matrices: list[Tensor] = [
            p for name, p in model.named_parameters() if _is_hidden_matrix(name, p)
        ]
        ids = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in ids and p.requires_grad]
        self.model = model
        self.rates = (muon_lr, adam_lr)
        self.muon = Muon(matrices, muon_lr)
        self.adam = torch.optim.AdamW(
            others, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def step(self, factor: float, clip_norm: float = 1.0) -> None:
        """Update all weights with both learning rates times `factor`, and clear the gradients."""
        nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of both."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adam.load_state_dict(state_dict["adam"])


def _is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Not embeddings, and nothing with three rows or columns or fewer (colours, biases)."""
    return p.ndim >= 2 and min(p.shape[:2]) > 3 and "embedding.weight" not in name
