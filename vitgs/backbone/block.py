"""The transformer block, `Tokens -> Tokens`: attention and MLP, each behind a LayerNorm and with a residual (Dosovitskiy 2021, eqs. 2-3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.backbone.attention import Attention
from vitgs.backbone.sizes import Style
from vitgs.backbone.tokens import Tokens
from vitgs.record import Size


class QuickGelu(nn.Module):
    """`x sigmoid(1.702 x)`, as the CLIP checkpoints were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with the style's activation between."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = QuickGelu() if activation == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


def _scale(width: int, style: Style) -> nn.Module:
    return nn.Identity() if style.layer_scale is None else LayerScale(width, style.layer_scale)


class Block(nn.Module):
    """One pre-norm block. `mix` and `feed` are its two residual branches, for blocks of other systems that put something between them."""

    def __init__(self, size: Size, style: Style) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=style.eps)
        self.attention = Attention(size.width, size.heads)
        self.scale1 = _scale(size.width, style)
        self.norm2 = nn.LayerNorm(size.width, eps=style.eps)
        self.mlp = Mlp(size.width, int(size.width * size.mlp_ratio), style.activation)
        self.scale2 = _scale(size.width, style)

    def mix(self, tokens: Tokens) -> Tokens:
        """Attention with its residual."""
        branch = self.attention(tokens.with_x(self.norm1(tokens.x_BND)))
        return tokens.with_x(tokens.x_BND + self.scale1(branch))

    def feed(self, tokens: Tokens) -> Tokens:
        """MLP with its residual."""
        return tokens.with_x(tokens.x_BND + self.scale2(self.mlp(self.norm2(tokens.x_BND))))

    def forward(self, tokens: Tokens) -> Tokens:
        return self.feed(self.mix(tokens))
