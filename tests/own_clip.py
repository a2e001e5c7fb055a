"""A CLIP written out in open_clip's names, tiny: joined projections, x @ proj, black edges."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)}
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class _Transformer(nn.Module):
    def __init__(self, layers: int, *sizes: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(*sizes) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Visual(nn.Module):
    def __init__(self, width: int, side: int, patch: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(2, width, 2, 40)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(tokens)[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """Two towers of random weights, norms included."""

    def __init__(self, vocabulary: int, side: int = 16, most_tokens: int = 20) -> None:
        super().__init__()
        width, out = 16, 12
        self.side = side
        self.visual = _Visual(24, side, 8, out)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(most_tokens, width))
        self.transformer = _Transformer(1, width, 2, 28)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, out))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.1, 0.4)
        self.eval()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens padded with 0 behind the end token, the one with the highest number."""
        n = tokens.shape[1]
        mask = torch.full((n, n), float("-inf")).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:n]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection

    def score(self, images: list[Image.Image], tokens: Tensor) -> Tensor:
        seen = self.visual(torch.stack([self.preprocessed(image) for image in images]))
        both = F.normalize(seen, dim=1), F.normalize(self.encode_text(tokens), dim=1)
        return (both[0] * both[1]).sum(1)

    def preprocessed(self, image: Image.Image) -> Tensor:
        pixels: Any = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        height, width = pixels.shape[-2:]
        scale = self.side / max(height, width)
        size = round(height * scale), round(width * scale)
        if scale != 1:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        square = torch.zeros(3, self.side, self.side)
        top, left = (self.side - size[0]) // 2, (self.side - size[1]) // 2
        square[:, top : top + size[0], left : left + size[1]] = pixels[0]
        return (square - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
