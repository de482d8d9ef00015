"""The image ViT against timm's on the same random weights: every style, every weight random, so that a part that is left out shows."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitgs import registry
from vitgs.backbone.sizes import STYLES
from vitgs.errors import UsageError
from vitgs.spec import Clip, Size

SMALL = Size(name="small", width=48, depth=3, heads=3, mlp_ratio=4.0)
# What timm's own recipes for these checkpoints set, on a small model.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "in21k": ("vit_base_patch16_224", {}),
    "deit": ("deit_base_patch16_224", {}),
    "dinov2": ("vit_base_patch14_dinov2", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 5}),
}


def small_timm(style: str, side: int) -> Any:
    """timm's model of that recipe, narrow and shallow, with all weights random."""
    name, extra = RECIPES[style]
    # timm.create_model fills the recipe's patch size, LayerScale, norms and activation in; only the size is ours.
    model = timm.create_model(
        name, **{"img_size": side, "embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 4.0, "num_classes": 5, **extra}
    ).eval()
    assert isinstance(model, VisionTransformer)
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                around = 1.0 if name == "gamma" or (isinstance(module, nn.LayerNorm) and name == "weight") else 0.0
                parameter.copy_(around + torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.3))


def video_model(style: str, side: int, **knobs: Any) -> nn.Module:
    return registry.get("vit_mean").build(SMALL, Clip(frames=1, height=side, width=side, classes=5), style, **knobs).eval()


@pytest.mark.parametrize("style", RECIPES)
@torch.no_grad()
def test_class_token_logits(style: str) -> None:
    side = 4 * STYLES[style].patch
    theirs, ours = small_timm(style, side), video_model(style, side)
    report = registry.get("vit_mean").load(ours, theirs.state_dict())
    assert report.exact
    assert report.layout.startswith("timm")
    assert theirs.blocks[0].norm1.eps == STYLES[style].eps
    assert theirs.patch_embed.patch_size == (STYLES[style].patch, STYLES[style].patch)
    image = torch.randn(2, 3, side, side)
    expected = theirs(image)
    assert expected.std() > 0.1
    assert (ours(image.unsqueeze(1)) - expected).abs().max() < 1e-5
    for name, parameter in theirs.named_parameters():
        # Each weight matters in both alike: what is dropped from one shows as a difference.
        if name in ("norm.weight", "blocks.1.ls2.gamma", "norm_pre.bias", "blocks.2.attn.qkv.bias", "pos_embed", "cls_token"):
            parameter.add_(torch.randn_like(parameter))
            assert (ours(image.unsqueeze(1)) - theirs(image)).abs().max() > 1e-3, name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_full_recipes_have_the_same_weights(name: str) -> None:
    """Not just small ones: names and shapes of whole recipes, without their numbers."""
    with torch.device("meta"):
        theirs: Any = timm.create_model(name, num_classes=5)
        style = "dinov2" if "dinov2" in name else "deit" if "deit" in name else "in21k"
        side = theirs.patch_embed.img_size[0]
        ours = registry.get("vit_mean").build("S" if "small" in name else "Ti", Clip(frames=1, height=side, width=side, classes=5), style)
    # The class token's position is folded into the token, so one row is fewer.
    extra = theirs.embed_dim
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - extra


@torch.no_grad()
def test_positions_of_another_grid_are_resized_as_timm_does() -> None:
    """DINOv2 checkpoints come with the grid of 518 px; the model may have any."""
    large = small_timm("dinov2", 14 * 9)
    small: Any = timm.create_model("vit_base_patch14_dinov2", img_size=14 * 4, embed_dim=48, depth=3, num_heads=3, num_classes=5).eval()
    resized = timm.models.vision_transformer.checkpoint_filter_fn(dict(large.state_dict()), small, antialias=True)
    small.load_state_dict(resized)
    ours = video_model("dinov2", 14 * 4)
    assert registry.get("vit_mean").load(ours, large.state_dict()).exact
    image = torch.randn(2, 3, 56, 56)
    assert (ours(image.unsqueeze(1)) - small(image)).abs().max() < 1e-5
    oblong = registry.get("vit_mean").build(SMALL, Clip(frames=1, height=28, width=70, classes=5), "dinov2").eval()
    assert registry.get("vit_mean").load(oblong, large.state_dict()).exact
    assert oblong(torch.randn(1, 1, 3, 28, 70)).isfinite().all()


@torch.no_grad()
def test_mean_readout_is_timms_average_pool() -> None:
    theirs = timm.create_model(
        "vit_base_patch16_224", img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=5, class_token=False, global_pool="avg", fc_norm=False
    ).eval()
    randomise(theirs)
    ours = video_model("in21k", 64, readout="mean")
    assert registry.get("vit_mean").load(ours, theirs.state_dict()).exact
    image = torch.randn(2, 3, 64, 64)
    assert (ours(image.unsqueeze(1)) - theirs(image)).abs().max() < 1e-5


@torch.no_grad()
def test_frames_are_averaged_as_features() -> None:
    theirs = small_timm("in21k", 32)
    ours = registry.get("vit_mean").build(SMALL, Clip(frames=3, height=32, width=32, classes=5), "in21k").eval()
    registry.get("vit_mean").load(ours, theirs.state_dict())
    clip = torch.randn(2, 3, 3, 32, 32)
    expected = torch.stack([theirs(clip[:, t]) for t in range(3)]).mean(dim=0)
    assert (ours(clip) - expected).abs().max() < 1e-5


def test_a_patch_that_does_not_divide_the_frame() -> None:
    with pytest.raises(UsageError, match=r"multiples of the patch.*use 28x28"):
        video_model("dinov2", 30)
