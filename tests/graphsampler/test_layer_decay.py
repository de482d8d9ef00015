"""The method's learning rates by layer: off, it trains bit by bit as with one rate; on, lower blocks are moved less, and added parts more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vitgs.data import open_data
from vitgs.errors import UsageError
from vitgs.graphsampler.model import SYSTEM
from vitgs.spec import System, all_trainable
from vitgs.train.loop import train
from vitgs.train.recipe import Recipe


def build(**knobs: object) -> nn.Module:
    torch.manual_seed(0)
    return SYSTEM.build("test", open_data("digits:moment", "train").clip, style="digits", **knobs)


def trained(system: System, folder: Path, steps: int = 3, **knobs: object) -> nn.Module:
    model, recipe = build(**knobs), Recipe(steps=steps, batch=4, evaluations=0)
    sources = [open_data("digits:moment", split) for split in ("train", "val")]
    train(model, system, sources[0], sources[1], recipe, rule="none", run_values={}, seed=0, folder=folder, name="m")
    return model


def test_off_groups_and_weights_are_those_without_it(tmp_path: Path) -> None:
    model = build(added_lr=1.0)
    for ours, plain in zip(SYSTEM.parameter_groups(model), all_trainable(model), strict=True):
        assert list(map(id, ours["params"])) == list(map(id, plain["params"]))
        assert ours.get("weight_decay") == plain.get("weight_decay") and ours["lr_scale"] == 1.0
    ours_weights = trained(SYSTEM, tmp_path, added_lr=1.0).state_dict()
    plain_weights = trained(replace(SYSTEM, parameter_groups=all_trainable), tmp_path).state_dict()
    assert all(torch.equal(ours_weights[name], plain_weights[name]) for name in plain_weights)


def test_on_lower_blocks_are_moved_less(tmp_path: Path) -> None:
    start = dict(build().named_parameters())
    moved = {}
    for decay in (1.0, 0.1):
        end = dict(trained(SYSTEM, tmp_path, layer_decay=decay).named_parameters())
        moved[decay] = {name: float((end[name] - start[name]).detach().abs().mean()) for name in start}
    model = build(layer_decay=0.1, added_lr=1.0)
    scales = {id(p): group["lr_scale"] for group in SYSTEM.parameter_groups(model) for p in group["params"]}
    scale = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert scale["head.weight"] == scale["vit.norm.weight"] == 1.0
    assert scale["vit.embed.position"] < scale["vit.blocks.0.attention.qkv.weight"] < 1.0
    for name in ("vit.embed.position", "vit.blocks.0.attention.qkv.weight"):
        # AdamW's step hardly depends on the size of the gradient, so the movement follows the rate.
        assert moved[0.1][name] < 2 * scale[name] * moved[1.0][name], name


def test_added_parts_are_moved_more_and_the_vit_is_not(tmp_path: Path) -> None:
    """In the first step AdamW moves every weight by its rate, whatever the gradient is."""
    start = dict(build().named_parameters())
    moved = {}
    for added in (1.0, 4.0):
        end = dict(trained(SYSTEM, tmp_path, steps=1, added_lr=added).named_parameters())
        moved[added] = {name: float((end[name] - start[name]).detach().abs().mean()) for name in start}
    for name in ("graph.layers.0.qkv.weight", "memory.value.weight", "time.table", "head.weight"):
        assert moved[4.0][name] == pytest.approx(4 * moved[1.0][name], rel=0.05), name
    assert moved[4.0]["vit.blocks.0.attention.qkv.weight"] == moved[1.0]["vit.blocks.0.attention.qkv.weight"] > 0


def test_it_goes_with_a_frozen_vit() -> None:
    model = build(layer_decay=0.75, added_lr=2.0, frozen=True)
    groups = SYSTEM.parameter_groups(model)
    assert {group["lr_scale"] for group in groups} == {2.0}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_its_range() -> None:
    with pytest.raises(UsageError, match=r"layer_decay must be between 0\.1 and 1"):
        SYSTEM.check({"layer_decay": 1.1})
    assert SYSTEM.check({"layer_decay": 0.8})["layer_decay"] == 0.8
