"""TimeSformer against transformers on the same random weights, its published sizes, and its start as the image model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitgs import registry
from vitgs.backbone.sizes import size
from vitgs.spec import Clip, Size
from vitgs.testing import Contract

SYSTEM = registry.get("timesformer")
SMALL = Size(name="small", width=48, depth=3, heads=3, mlp_ratio=2.0)
CLIP = Clip(frames=4, height=32, width=48, classes=5)


def randomise(model: nn.Module) -> None:
    """All weights random, biases and norms too, so that none can hide."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.3) + float("norm" in name and name.endswith("weight")))


def reference(attention: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96,
        attention_type=attention, num_labels=5,
    )  # fmt: skip
    model = transformers.TimesformerForVideoClassification(config).eval()
    assert isinstance(model, nn.Module)
    randomise(model)
    return model


@pytest.mark.parametrize(("ours", "theirs"), [("divided", "divided_space_time"), ("joint", "joint_space_time"), ("space", "space_only")])
@torch.no_grad()
def test_parity_with_transformers(ours: str, theirs: str) -> None:
    other = reference(theirs)
    square = Clip(frames=4, height=32, width=32, classes=5)
    model = SYSTEM.build(SMALL, square, "digits", attention=ours).eval()
    report = SYSTEM.load(model, other.state_dict())
    assert report.exact
    assert report.layout == "TimeSformer, transformers"
    clip = torch.randn(2, *square.shape)
    if ours == "space":
        # Theirs returns a row per frame; frames are averaged before the last norm, as the released code does.
        base: Any = other.timesformer
        hidden = base.encoder(base.embeddings(clip))[0].unflatten(0, (2, 4)).mean(dim=1)
        head: Any = other.classifier
        expected = head(base.layernorm(hidden)[:, 0])
    else:
        expected = other(clip).logits
    assert (model(clip) - expected).abs().max() < 1e-5
    assert expected.std() > 0.1, "a test on equal logits proves nothing"


def official_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under the released checkpoints' names, in their wrapper's prefix."""
    rules = (
        (r"time_mixes\.(\d+)\.norm\.", r"blocks.\1.temporal_norm1."),
        (r"time_mixes\.(\d+)\.attention\.output\.", r"blocks.\1.temporal_attn.proj."),
        (r"time_mixes\.(\d+)\.attention\.", r"blocks.\1.temporal_attn."),
        (r"time_mixes\.(\d+)\.output\.", r"blocks.\1.temporal_fc."),
        (r"vit\.blocks\.(\d+)\.attention\.output\.", r"blocks.\1.attn.proj."),
        (r"vit\.blocks\.(\d+)\.attention\.", r"blocks.\1.attn."),
        (r"vit\.embed\.patch\.", "patch_embed.proj."),
        (r"vit\.", ""),
    )
    state = dict(state)
    token, position = state.pop("vit.embed.class_token"), state.pop("vit.embed.position")
    out = {"cls_token": token - 0.5, "pos_embed": torch.cat([torch.full_like(position[:1], 0.5), position]).unsqueeze(0)}
    if "time.table" in state:
        out["time_embed"] = state.pop("time.table").unsqueeze(0)
    for key, value in state.items():
        pattern, replacement = next((rule for rule in rules if re.match(rule[0], key)), ("", ""))
        out[re.sub(pattern, replacement, key, count=1)] = value
    return {f"model.{key}": value for key, value in out.items()}


@pytest.mark.parametrize("attention", ["divided", "joint", "space"])
@torch.no_grad()
def test_official_layout(attention: str) -> None:
    clip = Clip(frames=4, height=32, width=32, classes=5)
    model, other = (SYSTEM.build(SMALL, clip, "digits", attention=attention).eval() for _ in range(2))
    randomise(model)
    keys = official_keys(model.state_dict())
    if attention == "divided":
        assert {"model.blocks.0.temporal_attn.qkv.weight", "model.blocks.0.temporal_fc.weight", "model.head.bias"} <= keys.keys()
    report = SYSTEM.load(other, {"model_state": keys})  # type: ignore[dict-item]
    assert report.exact
    torch.testing.assert_close(other(x := torch.randn(2, *clip.shape)), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attention", "parameters_m", "gmacs"), [("divided", 121.57, 195.83), ("joint", 86.11, 179.56)])
def test_published_size(attention: str, parameters_m: float, gmacs: float) -> None:
    """The recount of the published base model at 8x224."""
    with torch.device("meta"), torch.no_grad():
        model = SYSTEM.build("B", Clip(frames=8, height=224, width=224), attention=attention)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 8, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters_m, rel=1e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=1e-4)


@torch.no_grad()
def test_divided_starts_as_the_image_model() -> None:
    """With the temporal projection at its zero start the time attention changes nothing, so frame order doesn't matter but for the time table."""
    model = SYSTEM.build(SMALL, CLIP, "digits").eval()
    model.get_parameter("time.table").zero_()
    clip = torch.randn(2, *CLIP.shape)
    torch.testing.assert_close(model(clip), model(clip.flip(1)), rtol=0, atol=1e-5)
    frozen = torch.randn(2, 1, *CLIP.shape[1:]).expand(-1, 4, -1, -1, -1)
    image = registry.get("vit_mean").build(SMALL, CLIP, "digits").eval()
    image.load_state_dict({name: value for name, value in model.state_dict().items() if name in image.state_dict()})
    torch.testing.assert_close(model(frozen), image(frozen), rtol=0, atol=1e-5)


@torch.no_grad()
def test_space_ignores_the_order_of_frames() -> None:
    contract = Contract(system=SYSTEM, size=size("test"))
    model = contract.build(attention="space")
    clip = contract.input()
    torch.testing.assert_close(model(clip), model(clip.flip(1)), rtol=0, atol=1e-5)
    divided = contract.build()
    assert (divided(clip) - divided(clip.flip(1))).abs().max() > 1e-3
