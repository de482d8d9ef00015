"""Learning rates by layer: the lower a block of a pretrained ViT, the less it is moved, since what it knows is the most general.

What is added to the ViT may be moved more, since it knows nothing yet.

Source: ELECTRA (Clark 2020, appendix A.1) and, for image ViTs, BEiT (Bao 2022, appendix); the numbering of layers is that of BEiT's code.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vitgs.backbone.vit import Vit


def layerwise(model: nn.Module, decay: float, added: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups of what is trained in `model`, with `lr_scale = decay ** (depth + 1 - l)`, matrices first, vectors without weight decay.

    Layer l of a `Vit` in the model is 0 for its embedding and whatever stands before the blocks, and 1 to depth for the blocks; its final norm has
    scale 1, and what isn't of a `Vit` has `added`. With both 1 there is one group of matrices and one of vectors, in the model's own order.
    """
    scale = _scales(model, decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for matrices, extra in ((True, {}), (False, {"weight_decay": 0.0})):  # type: tuple[bool, dict[str, Any]]
        by_scale: dict[float, list[nn.Parameter]] = {}
        for p in trained:
            if (p.dim() > 1) == matrices:
                by_scale.setdefault(scale.get(id(p), added), []).append(p)
        groups += [{"params": params, "lr_scale": lr_scale, **extra} for lr_scale, params in by_scale.items()]
    return groups


def _scales(model: nn.Module, decay: float) -> dict[int, float]:
    """Scale of each parameter of a `Vit`, by identity."""
    found: dict[int, float] = {}
    for vit in (module for module in model.modules() if isinstance(module, Vit)):
        depth = len(vit.blocks)
        found |= {id(p): decay ** (depth + 1) for p in vit.parameters()} | {id(p): 1.0 for p in vit.norm.parameters()}
        for layer, block in enumerate(vit.blocks, start=1):
            found |= {id(p): decay ** (depth + 1 - layer) for p in block.parameters()}
    return found
