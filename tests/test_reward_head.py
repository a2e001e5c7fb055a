"""The head of the paper's reward and its options, each formula written out."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.rewards.clip_head import ClipHead, _Head, prompt_classification_loss


def unit(x: Tensor) -> Tensor:
    return x / (x**2).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("interaction", [False, True])
def test_head_is_what_is_written_out_by_hand(interaction: bool) -> None:
    torch.manual_seed(0)
    head = _Head(4, 6, interaction=interaction).eval()
    for mean in (head.image_mean, head.text_mean, head.cosine_mean):
        assert (mean == 0).all()
        mean.copy_(torch.randn_like(mean) / 4)
    if interaction:
        assert head.cosine_weight.item() == 1
        nn.init.constant_(head.cosine_weight, 0.7)
    images, texts = torch.randn(5, 4), torch.randn(5, 4)
    cosine = 10 * ((unit(images) * unit(texts)).sum(1, keepdim=True) - head.cosine_mean)
    a, b = (
        2 * unit(unit(x) - mean) for x, mean in ((images, head.image_mean), (texts, head.text_mean))
    )
    inputs = torch.cat([a, b], dim=1)
    if interaction:
        inputs = torch.cat([inputs, a * b, (a - b).abs(), *[cosine] * 16], dim=1)
    linear = [m for m in head.layers if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(6, inputs.shape[1]), (6, 6), (1, 6)]
    x = inputs
    for layer in linear[:2]:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    logit = x @ linear[2].weight.T + linear[2].bias + (0.7 * cosine if interaction else 0)
    torch.testing.assert_close(head(images, texts), (1 / (1 + (-logit).exp()))[:, 0])


def test_head_leaves_hidden_units_out_only_if_asked() -> None:
    drops = [m.p for m in _Head(4, 6, interaction=False, dropout=0.3).layers if hasattr(m, "p")]
    assert drops == [0.3, 0.3]
    assert [m.p for m in _Head(4, 6, interaction=False).layers if hasattr(m, "p")] == [0.0, 0.0]


def test_a_score_in_half_precision_is_finer_than_its_format() -> None:
    head = _Head(4, 6, interaction=True).to(torch.bfloat16)
    scores = head(torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16())
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_prompt_classification_is_torchs_cross_entropy(temperature: float) -> None:
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    theirs = F.cross_entropy(scores / temperature, torch.zeros(6).long(), reduction="none")
    torch.testing.assert_close(prompt_classification_loss(scores, temperature=temperature), theirs)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("hidden_width", [1], [0, -1]),
        ("joining", ["concatenation", "interaction"], ["sum"]),
        ("mixed_precision", ["auto", "no", "bf16"], ["fp16"]),
        ("prompt_classification_weight", [0.0, 5.0], [-0.1, math.inf, math.nan]),
        ("temperature", [1e-3, 2.0], [0.0, -1.0, math.inf, math.nan]),
        ("dropout", [0.0, 0.9], [-0.1, 1.0, 1.5, math.nan]),
        ("n_altered", [0, 1], [-1]),
        ("learning_rate", [1e-9, 3.0], [0.0, math.inf, math.nan]),
        ("weight_decay", [0.0, 2.0], [-0.1, math.inf, math.nan]),
        ("batch_size", [1], [0]),
        ("max_epochs", [1], [0]),
        ("patience", [1], [0]),
    ],
)
def test_every_option_has_its_range(name: str, allowed: list, refused: list) -> None:
    for value in allowed:
        ClipHead(**{name: value})
    for value in refused:
        reward = ClipHead()
        # set afterwards, where no type checker of the tests comes first
        setattr(reward, name, value)
        with pytest.raises(UserError, match=f"^{name} "):
            reward.__post_init__()
