"""The bottleneck that adapter methods put into a frozen ViT."""

from __future__ import annotations

from torch import nn

from vitgs.backbone.block import Mlp


def bottleneck(width: int, hidden: int) -> Mlp:
    """Down, GELU, up (Houlsby 2019); zero at the start, so that with a residual around it the model starts as it was."""
    adapter = Mlp(width, hidden, "gelu")
    nn.init.zeros_(adapter.fc2.weight)
    nn.init.zeros_(adapter.fc2.bias)
    return adapter
