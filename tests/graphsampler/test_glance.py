"""The cheap look: what it costs, and when it equals the whole one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitgs.backbone import sizes
from vitgs.backbone.block import Block
from vitgs.backbone.vit import Vit
from vitgs.errors import UsageError
from vitgs.graphsampler.glance import AppliedBefore, check_glance, half_patches, half_patches_through
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.stream import Streamer
from vitgs.spec import Clip

CLIP = Clip(frames=3, height=32, width=48, classes=5)


def test_it_equals_the_patch_embedding_where_neighbouring_pixels_are_equal() -> None:
    torch.manual_seed(0)
    embed = Vit(sizes.size("test"), sizes.style("digits"), CLIP).embed
    small = torch.randn(2, 3, 3, 16, 24)
    clip = small.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    whole, half = embed(clip), half_patches(embed, clip)
    torch.testing.assert_close(half.x_BND, whole.x_BND, atol=1e-5, rtol=1e-5)
    assert torch.equal(half.position_BN3, whole.position_BN3)
    noisy = clip + torch.randn_like(clip)
    assert (half_patches(embed, noisy).x_BND - embed(noisy).x_BND).abs().max() > 0.1


def test_it_costs_a_quarter() -> None:
    embed = Vit(sizes.size("test"), sizes.style("digits"), CLIP).embed.requires_grad_(False)
    counts = []
    for look in (embed, lambda clip: half_patches(embed, clip)):
        with FlopCounterMode(display=False) as counter:
            look(torch.randn(1, *CLIP.shape))
        counts.append(counter.get_total_flops())
    assert counts[0] == 4 * counts[1]


@pytest.mark.parametrize("style", ["digits", "clip"])
def test_a_layer_behind_it_is_folded_into_its_filter(style: str) -> None:
    torch.manual_seed(0)
    embed = Vit(sizes.size("test"), replace(sizes.style(style), patch=4), CLIP).embed
    if embed.patch.bias is not None:
        torch.nn.init.normal_(embed.patch.bias)
    layer, clip = torch.nn.Linear(sizes.size("test").width, 6), torch.randn(2, *CLIP.shape)
    plain, folded = half_patches(embed, clip), half_patches_through(layer, embed, clip)
    torch.testing.assert_close(folded.x_BND, layer(plain.x_BND), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        read = half_patches_through(layer, embed, clip)
    torch.testing.assert_close(read.x_BND, folded.x_BND, atol=1e-5, rtol=1e-5)
    weights = (embed.patch.weight, embed.position, layer.weight, layer.bias)
    ours, theirs = (torch.autograd.grad(x.square().mean(), weights) for x in (folded.x_BND, layer(plain.x_BND)))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_utility_is_the_same_whether_folded_or_not() -> None:
    torch.manual_seed(0)
    folded: Any = SYSTEM.build("test", replace(CLIP, width=32), "digits").eval()
    whole: Any = SYSTEM.build("test", replace(CLIP, width=32), "digits", diversity=0.1).eval()
    whole.load_state_dict(folded.state_dict())
    clip = torch.randn(2, 3, 3, 32, 32)
    ours, theirs = (model.utility(model._look(clip), 3) for model in (folded, whole))
    assert isinstance(folded.utility.down, AppliedBefore) and not isinstance(whole.utility.down, AppliedBefore)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_odd_patch_is_refused() -> None:
    style = replace(sizes.style("digits"), patch=7)
    with pytest.raises(UsageError, match=r"even patch.*glance=patch"):
        SYSTEM.build("test", replace(CLIP, height=28, width=28), style)
    check_glance("patch", 7)


@torch.no_grad()
def test_what_is_not_kept_is_not_embedded() -> None:
    """With a choice that looks at nothing, pixels outside it may be anything."""
    torch.manual_seed(0)
    clip = replace(CLIP, frames=8, width=32)
    model = SYSTEM.build("test", clip, "digits", select="uniform", utility="none", budget=0.25).eval()
    video = torch.randn(1, *clip.shape)
    spoilt = torch.full_like(video, torch.nan)
    spoilt[:, [1, 6]] = video[:, [1, 6]]
    assert torch.equal(model(video), model(spoilt))


@pytest.mark.parametrize("readout", ["mean", "attention"])
@pytest.mark.parametrize("style", ["digits", "clip"])
@torch.no_grad()
def test_behind_a_block_with_all_tokens_it_is_the_plain_model(style: str, readout: str) -> None:
    """A frame at a time, without bias and with budget 1, a block that the glance has run is as good as one that the ViT runs."""
    settings = {"attention": "frame", "decision": "dense", "utility": "none", "budget": 1.0, "layers": 0, "memory": 0, "readout": readout}
    small = replace(sizes.style(style), patch=4)
    models = []
    for glance in ("patch", "block"):
        torch.manual_seed(0)
        models.append(SYSTEM.build("test", CLIP, small, glance=glance, **settings).eval())
    clip = torch.randn(2, *CLIP.shape)
    torch.testing.assert_close(models[0](clip), models[1](clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "knobs", [{}, {"readout": "mean"}, {"place": "between"}, {"attention": "joint", "relaxation": "lagrange"}, {"diversity": 0.5}], ids=str
)
def test_behind_a_block_dropped_tokens_go_no_further(knobs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, replace(sizes.style("digits"), patch=8), glance="block", **knobs)
    assert isinstance(model, GraphSampler) and model.utility is not None
    clip, seen = torch.randn(2, *CLIP.shape), list[int]()
    second = model.vit.blocks[1]
    assert isinstance(second, Block)
    second.mlp.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    model.eval()(clip, budget=0.25)
    model.train()(clip, budget=0.25).sum().backward()
    kept, classes = 3 * 4 * 6 // 4, 0 if "readout" in knobs else 1 if "attention" in knobs else 3
    assert seen[0] == kept + classes
    gradient = model.utility.token.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_behind_a_block_there_is_no_merging_and_no_stream() -> None:
    with pytest.raises(UsageError, match="merging needs"):
        SYSTEM.build("test", CLIP, "digits", glance="block", merge="tome")
    model = SYSTEM.build("test", CLIP, "digits", glance="block")
    assert isinstance(model, GraphSampler)
    with pytest.raises(UsageError, match="a glance before the blocks"):
        Streamer(model, 2)
