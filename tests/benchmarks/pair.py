"""What a comparison with a public implementation is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One system of ours and its reference with the same weights; both map `(B, *shape)`, clips or tokens, to the same."""

    system: str
    reference: str
    shape: tuple[int, ...]
    ours: nn.Module
    theirs: Callable[[Tensor], Tensor]
