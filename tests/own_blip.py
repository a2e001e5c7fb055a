"""ImageReward written out in its authors' names, tiny: a ViT, BERT with cross-attention, an MLP."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.16717362830052426, 1.0333394966054072


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v by heads; q, k and v are [b, n, heads · d]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -1e4)
    return (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)


def parts(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = parts(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = parts(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, dim=2)
        x = x + self.attn["proj"](attention(q, k, v, 2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Vit(nn.Module):
    def __init__(self, width: int, side: int = 32, patch: int = 16) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.patch_embed = parts(proj=nn.Conv2d(3, width, patch, patch))
        self.blocks = nn.ModuleList(_Block(width, 36) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Attention(nn.Module):
    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        names = {"query": width, "key": seen, "value": seen}
        self.self = nn.ModuleDict({k: nn.Linear(n, width) for k, n in names.items()})
        self.output = parts(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, 1e-12))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.self["query"](x), self.self["key"](seen), self.self["value"](seen)
        return self.output["LayerNorm"](self.output["dense"](attention(q, k, v, 2, mask)) + x)


class _Layer(nn.Module):
    def __init__(self, width: int, seen: int, inner: int = 30) -> None:
        super().__init__()
        self.attention, self.crossattention = _Attention(width, width), _Attention(width, seen)
        self.intermediate = parts(dense=nn.Linear(width, inner))
        self.output = parts(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width, 1e-12))

    def forward(self, x: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), seen, None)
        y = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](y) + x)


class _Bert(nn.Module):
    def __init__(self, vocabulary: int, width: int, seen: int) -> None:
        super().__init__()
        self.embeddings = parts(
            word_embeddings=nn.Embedding(vocabulary, width),
            position_embeddings=nn.Embedding(40, width),
            LayerNorm=nn.LayerNorm(width, 1e-12),
        )
        self.encoder = parts(layer=nn.ModuleList(_Layer(width, seen) for _ in range(2)))

    def forward(self, tokens: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        words, places, norm = self.embeddings.values()
        x = norm(words(tokens) + places(torch.arange(tokens.shape[1])))
        for layer in self.encoder["layer"]:
            x = layer(x, mask, seen)
        return x


class AuthorsImageReward(nn.Module):
    """Random weights, norms included; two projections are of the training before."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        seen, width = 24, 20
        self.blip = parts(
            visual_encoder=_Vit(seen),
            text_encoder=_Bert(vocabulary, width, seen),
            vision_proj=nn.Linear(seen, 6),
            text_proj=nn.Linear(width, 6),
        )
        layers = nn.Sequential(
            nn.Linear(width, 12), nn.Dropout(0.2), nn.Linear(12, 8), nn.Dropout(0.2),
            nn.Linear(8, 6), nn.Dropout(0.1), nn.Linear(6, 4), nn.Linear(4, 1),
        )  # fmt: skip
        self.mlp = parts(layers=layers)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.1, 0.4)
        self.eval()

    def score(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        seen = self.blip["visual_encoder"](pixels)
        read = self.blip["text_encoder"](tokens, mask.bool(), seen)
        return (self.mlp["layers"](read[:, 0])[:, 0] - MEAN) / STD
