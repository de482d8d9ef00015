"""Multi-head self-attention over `Tokens`, always fused, with an additive bias on keys (log utility, log size)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.tokens import Tokens


class Attention(nn.Module):
    """Softmax attention (Vaswani 2017, eq. 1) with one joint projection for q, k, v. The pieces `project`, `attend` and `output` are for blocks
    that need keys (merging) or other groupings of tokens (divided attention)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each `(B, h, N, d)`."""
        batch, count, width = x_BND.shape
        qkv = self.qkv(x_BND).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q, k, v

    def forward(self, tokens: Tokens) -> Tensor:
        """The attention's output `(B, N, D)`, before any residual."""
        q, k, v = self.project(tokens.x_BND)
        branch: Tensor = self.output(attend(q, k, v, tokens.key_bias_BN()))
        return branch


def attend(q_BhNd: Tensor, k_BhMd: Tensor, v_BhMd: Tensor, bias_BM: Tensor | None = None) -> Tensor:
    """Fused attention with a bias on keys, heads merged: `(B, N, h*d)`.

    Without gradient, off CUDA, the bias is an additive mask. With a gradient, which fused kernels don't give for a mask, it rides along as one more
    channel of q (ones) and k (the bias): q.k/sqrt(d) + b = [q, 1].[k, b sqrt(d)]/sqrt(d). DECISIONS.md has the timings of both.
    """
    if bias_BM is None:
        out_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhMd, v_BhMd)
    elif not rides(q_BhNd):
        out_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhMd, v_BhMd, attn_mask=bias_BM[:, None, None, :].to(q_BhNd.dtype))
    else:
        q, k, v = with_channel(q_BhNd, k_BhMd, v_BhMd, bias_BM)
        out_BhNd = F.scaled_dot_product_attention(q, k, v, scale=q_BhNd.shape[-1] ** -0.5)[..., :-1]
    return out_BhNd.transpose(1, 2).flatten(2)


def rides(x: Tensor) -> bool:
    """Whether a bias on keys is one more channel, instead of a mask, where `x` is."""
    return torch.is_grad_enabled() or x.is_cuda


def with_channel(q_BhNd: Tensor, k_BhMd: Tensor, v_BhMd: Tensor, bias_BM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with the channel that the bias rides in: ones, bias sqrt(d), and zeros, for a scale of 1/sqrt(d)."""
    bias_BhM1 = (bias_BM / q_BhNd.shape[-1] ** -0.5)[:, None, :, None].expand(*k_BhMd.shape[:-1], 1).to(k_BhMd.dtype)
    return torch.cat([q_BhNd, torch.ones_like(q_BhNd[..., :1])], dim=-1), torch.cat([k_BhMd, bias_BhM1], dim=-1), F.pad(v_BhMd, (0, 1))
