"""`Tokens`: the frozen value that every block takes and gives. It carries where a token is, how many patches it stands for, and its log utility."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """`x_BND` float; `position_BN3` (t, y, x) in frames and patch cells, -1 for prefix tokens; the first `prefix` tokens are class tokens.

    `size_BN`: patches merged into a token, None while each stands for one. `bias_BN`: log utility added to attention logits of the
    token as a key, None for none. `mask_BN`: True where a token is real, None when all are.
    """

    x_BND: Tensor
    position_BN3: Tensor
    prefix: int = 0
    size_BN: Tensor | None = None
    bias_BN: Tensor | None = None
    mask_BN: Tensor | None = None

    @property
    def count(self) -> int:
        return self.x_BND.shape[1]

    def with_x(self, x_BND: Tensor) -> Tokens:
        """The same tokens with new features."""
        return replace(self, x_BND=x_BND)

    def key_bias_BN(self) -> Tensor | None:
        """What attention adds to the logits of each key: log utility plus log size (proportional attention, ToMe eq. 1), None for nothing."""
        parts = [p for p in (self.bias_BN, None if self.size_BN is None else self.size_BN.log()) if p is not None]
        if self.mask_BN is not None:
            parts.append(torch.where(self.mask_BN, 0.0, torch.finfo(self.x_BND.dtype).min).to(self.x_BND.dtype))
        return sum(parts[1:], parts[0]) if parts else None

    def weight_BN(self) -> Tensor | None:
        """Weights of a mean over tokens: size times utility, None when all are equal."""
        bias = self.key_bias_BN()
        return None if bias is None else bias.softmax(dim=1)


def rows(value_BN_: Tensor, index_BK: Tensor) -> Tensor:
    """`value_BN_[b, index_BK[b, k]]` for two or three dimensions: `(B, N)` or `(B, N, D)` -> `(B, K)` or `(B, K, D)`."""
    if value_BN_.dim() == 2:
        return value_BN_.gather(1, index_BK)
    return value_BN_.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, value_BN_.shape[-1]))


def _each(tokens: Tokens, change: object, *, prefix: int) -> Tokens:
    assert callable(change)
    return Tokens(
        x_BND=change(tokens.x_BND),
        position_BN3=change(tokens.position_BN3),
        prefix=prefix,
        size_BN=None if tokens.size_BN is None else change(tokens.size_BN),
        bias_BN=None if tokens.bias_BN is None else change(tokens.bias_BN),
        mask_BN=None if tokens.mask_BN is None else change(tokens.mask_BN),
    )


def gather(tokens: Tokens, index_BK: Tensor) -> Tokens:
    """The tokens at `index_BK` (no prefix among `tokens`), really fewer: later blocks compute on K tokens."""
    return _each(tokens, lambda v: rows(v, index_BK), prefix=0)


def split_frames(tokens: Tokens, frames: int) -> Tokens:
    """`(B, T*N)` -> `(B*T, N)`: each frame becomes a batch entry of its own."""
    return _each(tokens, lambda v: v.reshape(v.shape[0] * frames, v.shape[1] // frames, *v.shape[2:]), prefix=tokens.prefix)


def join_frames(tokens: Tokens, frames: int) -> Tokens:
    """`(B*T, N)` -> `(B, T*N)`, the inverse of `split_frames`; class tokens must have been taken off."""
    return _each(tokens, lambda v: v.reshape(v.shape[0] // frames, v.shape[1] * frames, *v.shape[2:]), prefix=0)


def without_prefix(tokens: Tokens) -> Tokens:
    """The tokens without their class tokens."""
    return _each(tokens, lambda v: v[:, tokens.prefix :], prefix=0)


def with_prefix(tokens: Tokens, prefix_BPD: Tensor) -> Tokens:
    """P more class tokens in front, most often one: position -1, size 1, no bias."""
    batch, more = tokens.x_BND.shape[0], prefix_BPD.shape[1]

    def front(value: Tensor | None, fill: float) -> Tensor | None:
        return None if value is None else torch.cat([value.new_full((batch, more, *value.shape[2:]), fill), value], dim=1)

    position = front(tokens.position_BN3, -1.0)
    assert position is not None
    return Tokens(
        x_BND=torch.cat([prefix_BPD.expand(batch, -1, -1).to(tokens.x_BND.dtype), tokens.x_BND], dim=1),
        position_BN3=position,
        prefix=tokens.prefix + more,
        size_BN=front(tokens.size_BN, 1.0),
        bias_BN=front(tokens.bias_BN, 0.0),
        mask_BN=front(tokens.mask_BN, True),
    )
