"""Performer: the public package's figures on the same weights and directions, its limit, and features as a run knob."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.baselines.ruled import chirp, ruled
from vitgs import registry
from vitgs.backbone.sizes import style
from vitgs.errors import UsageError
from vitgs.measure import cost
from vitgs.spec import Clip, Size

SYSTEM = registry.get("performer")
SMALL = Size(name="small", width=16, depth=2, heads=2, mlp_ratio=4.0)
STYLE = replace(style("digits"), eps=1e-5)
TALL, WIDE = Clip(frames=3, height=24, width=16, classes=3), Clip(frames=2, height=32, width=24, classes=3)


def package_shapes(features: int, width: int = 16, depth: int = 2, heads: int = 2) -> dict[str, tuple[int, ...]]:
    """The keys of `Performer(dim=width, depth=depth, heads=heads, dim_head=width // heads, nb_features=features)` of performer-pytorch 1.1.4."""
    return {
        f"net.layers.{layer}.{name}": shape
        for layer in range(depth)
        for name, shape in {
            **dict.fromkeys(("0.norm.weight", "0.norm.bias", "1.norm.weight", "1.norm.bias", "1.fn.fn.w2.bias"), (width,)),
            **{f"0.fn.to_{part}.weight": (width, width) for part in ("q", "k", "v", "out")},
            **{f"0.fn.to_{part}.bias": (width,) for part in ("q", "k", "v", "out")},
            "0.fn.fast_attention.projection_matrix": (features, width // heads),
            "1.fn.fn.w1.weight": (4 * width, width),
            "1.fn.fn.w1.bias": (4 * width,),
            "1.fn.fn.w2.weight": (width, 4 * width),
        }.items()
    }


@pytest.mark.parametrize(
    ("clip", "readout", "expected"),
    [
        (TALL, "class", [-1.67854, -1.16790, -1.02845]),
        (TALL, "mean", [-0.27624, 0.12072, -0.01225]),
        (WIDE, "class", [-2.11558, -1.02202, -0.30969]),
        (WIDE, "mean", [-0.37774, -0.10238, 0.34553]),
    ],
)
@torch.no_grad()
def test_figures_of_the_package(clip: Clip, readout: str, expected: list[float]) -> None:
    """The package's stack between our embedding and our head, on weights by rule; the figures are its own."""
    model = SYSTEM.build(SMALL, clip, STYLE, features=12, readout=readout).eval()
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(("vit.blocks.", "mixes."))}
    state = ruled({**package_shapes(12), **ours})
    # The package keeps the whole stack a second time under its updater of directions.
    state |= {f"proj_updater.instance.{key.removeprefix('net.')}": value for key, value in state.items() if key.startswith("net.")}
    report = SYSTEM.load(model, {**state, "proj_updater.calls_since_last_redraw": torch.tensor(7)})
    assert report.exact
    assert report.layout.startswith("Performer, package performer-pytorch")
    logits = model(chirp(1, *clip.shape))
    torch.testing.assert_close(logits, torch.tensor([expected]), rtol=0, atol=1e-4)
    assert (model(chirp(1, *clip.shape), features=6) - logits).abs().max() > 1e-3, "the figures must depend on the directions"


@torch.no_grad()
def test_directions_that_a_checkpoint_lacks_are_the_same_at_each_loading() -> None:
    states: list[Any] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = SYSTEM.build(SMALL, TALL, STYLE)
        ours = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(("vit.blocks.", "mixes."))}
        SYSTEM.load(model, ruled({**package_shapes(12), **ours}))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[0]["mixes.0.directions"].shape == (1024, 8)


def test_a_checkpoint_of_another_system_is_refused() -> None:
    model = SYSTEM.build(SMALL, TALL, STYLE)
    with pytest.raises(UsageError, match="known: vitgs, Performer, package performer-pytorch") as caught:
        SYSTEM.load(model, {"net.layers.0.0.fn.to_q.weight": torch.zeros(16, 16), "net.layers.0.0.fn.proj_k": torch.zeros(19, 5)})
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_many_features_come_near_joint_attention() -> None:
    torch.manual_seed(0)
    model = SYSTEM.build(SMALL, TALL, STYLE).eval()
    joint = registry.get("joint").build(SMALL, TALL, STYLE).eval()
    joint.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("mixes.")})
    clip = torch.randn(4, *TALL.shape)
    errors = [(model(clip, features=count) - joint(clip)).norm() / joint(clip).norm() for count in (4, 64, 1024)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@torch.no_grad()
def test_no_features_means_d_log_d() -> None:
    model = SYSTEM.build(SMALL, TALL, STYLE).eval()
    clip = torch.randn(2, *TALL.shape)
    assert torch.equal(model(clip), model(clip, features=16)), "8 ln 8 = 16.6"
    assert not torch.equal(model(clip), model(clip, features=17))


def test_cost_is_linear_in_frames_and_in_features() -> None:
    def macs(frames: int, features: int) -> int:
        with torch.device("meta"):
            model = SYSTEM.build("S", Clip(frames=frames, height=224, width=224))
            counted = cost.count(model, torch.empty(1, frames, 3, 224, 224), {"features": features})
        assert not counted.uncounted
        assert counted.macs is not None
        return counted.macs

    eight, sixteen, thirty_two = (macs(frames, 128) for frames in (8, 16, 32))
    assert thirty_two - sixteen == 2 * (sixteen - eight)
    # Each of 128 more features: two projections, a sum over values, one back, and the sum of features; 12 blocks of 6 heads of 64 channels.
    assert macs(8, 256) - eight == 12 * 6 * 128 * 1569 * (4 * 64 + 1)
