"""Learning rates by layer: literal scales, every trained parameter once, and nothing of a frozen part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitgs.backbone.layerwise import layerwise
from vitgs.backbone.sizes import style
from vitgs.backbone.vit import Vit
from vitgs.record import Clip, Size

CLIP = Clip(frames=1, height=32, width=32, classes=3)


class Small(nn.Module):
    """A ViT of two blocks, CLIP's norm in front, between a scorer and a head that aren't of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = nn.Linear(8, 1)
        self.vit = Vit(Size(name="two", width=8, depth=2, heads=2), style("clip"), CLIP)
        self.head = nn.Linear(8, 3)


def _scales(model: nn.Module, decay: float, added: float = 1.0) -> dict[str, float]:
    scale = {id(p): group["lr_scale"] for group in layerwise(model, decay, added) for p in group["params"]}
    return {name: scale[id(p)] for name, p in model.named_parameters() if id(p) in scale}


def test_literal_scales() -> None:
    scales = _scales(Small(), 0.5)
    for part, wanted in {
        "scorer.": 1.0, "vit.embed.": 0.125, "vit.pre_norm.": 0.125, "vit.blocks.0.": 0.25, "vit.blocks.1.": 0.5, "vit.norm.": 1.0, "head.": 1.0,
    }.items():  # fmt: skip
        assert {scale for name, scale in scales.items() if name.startswith(part)} == {wanted}, part
    assert scales.keys() == dict(Small().named_parameters()).keys()


def test_what_is_added_has_a_scale_of_its_own() -> None:
    scales = _scales(Small(), 1.0, added=4.0)
    assert {name: scale for name, scale in scales.items() if not name.startswith("vit.")} == dict.fromkeys(
        ("scorer.weight", "scorer.bias", "head.weight", "head.bias"), 4.0
    )
    assert {scale for name, scale in scales.items() if name.startswith("vit.")} == {1.0}


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Small()
    groups = layerwise(model, 0.5)
    assert [group["lr_scale"] for group in groups] == [1.0, 0.125, 0.25, 0.5] * 2
    assert all((p.dim() > 1) == ("weight_decay" not in group) for group in groups for p in group["params"])
    assert {group["weight_decay"] for group in groups[4:]} == {0.0}
    assert len([p for group in groups for p in group["params"]]) == len(list(model.parameters()))


def test_without_decay_there_are_two_groups_in_the_model_s_order() -> None:
    model = Small()
    matrices, vectors = layerwise(model, 1.0)
    for group, wanted in ((matrices, [p for p in model.parameters() if p.dim() > 1]), (vectors, [p for p in model.parameters() if p.dim() <= 1])):
        assert list(map(id, group["params"])) == list(map(id, wanted))
        assert group["lr_scale"] == 1.0


def test_frozen_parts_are_left_out() -> None:
    model = Small()
    model.vit.requires_grad_(False)
    assert _scales(model, 0.5) == {"scorer.weight": 1.0, "scorer.bias": 1.0, "head.weight": 1.0, "head.bias": 1.0}


def test_a_step_moves_lower_layers_less() -> None:
    """By plain gradient descent and a gradient of 1 everywhere, each parameter moves by its scale."""
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = [{"params": group["params"], "lr": 0.1 * group["lr_scale"]} for group in layerwise(model, 0.5)]
    torch.autograd.backward(torch.stack([p.sum() for p in model.parameters()]).sum())
    torch.optim.SGD(groups).step()
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in model.named_parameters()}
    assert moved["vit.embed.position"] == pytest.approx(0.0125, rel=1e-3)
    assert moved["vit.blocks.0.norm1.bias"] == pytest.approx(0.025, rel=1e-3)
    assert moved["vit.blocks.1.norm1.bias"] == pytest.approx(0.05, rel=1e-3)
    assert moved["head.bias"] == pytest.approx(0.1, rel=1e-3)
