"""DynamicViT: masking in training and dropping at test time agree, the ratio loss pulls the right way, and the released names load."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitgs import registry
from vitgs.backbone.sizes import size
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.spec import Batch, Clip
from vitgs.testing import Contract

MODULE: Any = registry.module_of("dynamicvit")
SYSTEM = registry.get("dynamicvit")
DEEP = replace(size("test"), depth=4)


@torch.no_grad()
def test_masked_block_is_the_block_on_kept_tokens() -> None:
    """What is kept sees only what is kept: the same numbers as the block on fewer tokens."""
    contract = Contract(system=SYSTEM)
    block = contract.build().get_submodule("vit.blocks.0")
    x = torch.randn(2, 10, 32)
    keep = torch.zeros(2, 10)
    keep[:, [0, 2, 3, 7]] = 1
    masked = MODULE.masked_block(block, Tokens(x_BND=x, position_BN3=torch.zeros(2, 10, 3)), keep)
    fewer = block(Tokens(x_BND=x[:, [0, 2, 3, 7]], position_BN3=torch.zeros(2, 4, 3)))
    torch.testing.assert_close(masked.x_BND[:, [0, 2, 3, 7]], fewer.x_BND, rtol=0, atol=1e-4)
    everything = MODULE.masked_block(block, Tokens(x_BND=x, position_BN3=torch.zeros(2, 10, 3)), torch.ones(2, 10))
    torch.testing.assert_close(everything.x_BND, block(Tokens(x_BND=x, position_BN3=torch.zeros(2, 10, 3))).x_BND, rtol=0, atol=1e-4)


@torch.no_grad()
def test_token_counts() -> None:
    """int(128 * keep^s) patch tokens and the class token behind stages at blocks 1, 2, 3 of 4."""
    model = Contract(system=SYSTEM, size=DEEP).build()
    counts: list[int] = []
    for block in model.get_submodule("vit.blocks").children():
        block.register_forward_hook(lambda module, args, out: counts.append(out.count))
    model(Contract(system=SYSTEM).input(), keep=0.7)
    assert counts == [129, 1 + 89, 1 + 62, 1 + 43]


def test_decisions_only_ever_drop() -> None:
    contract = Contract(system=SYSTEM, size=DEEP)
    model: Any = contract.build().train()
    _, decisions = model.with_decisions(contract.input(), 0.7)
    assert len(decisions) == 3
    for earlier, later in pairwise(decisions):
        assert ((later == 0) | (later == 1)).all()
        assert (later <= earlier).all()


def test_ratio_loss() -> None:
    assert MODULE.ratio_loss([torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])], 0.5).item() == 0
    assert MODULE.ratio_loss([torch.ones(2, 4)], 0.5).item() == pytest.approx(0.25)
    contract = Contract(system=SYSTEM, size=DEEP)
    model: Any = contract.build().train()
    losses = SYSTEM.objective(model, Batch(clip_BTCHW=contract.input(), label_B=torch.tensor([0, 1, 2]), run={"keep": 0.5}), 0.0, torch.Generator())
    assert losses.total.item() == pytest.approx((losses.parts["cross_entropy"] + 2 * losses.parts["ratio"]).item(), rel=1e-5)
    assert set(losses.parts) == {"cross_entropy", "ratio"}


def test_ratio_loss_alone_learns_the_ratio() -> None:
    contract = Contract(system=SYSTEM, size=DEEP)
    model: Any = contract.build(shake=0.0).train()
    clip = contract.input()
    optimiser = torch.optim.Adam(model.score_predictor.parameters(), lr=0.02)
    history = []
    for _ in range(25):
        loss = MODULE.ratio_loss(model.with_decisions(clip, 0.9)[1], 0.9)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.1 * sum(history[:5])


@pytest.mark.parametrize("keep", [0.0, 1.5, -1.0])
def test_wrong_keep(keep: float) -> None:
    contract = Contract(system=SYSTEM)
    with pytest.raises(UsageError):
        contract.build()(contract.input(1), keep=keep)


@torch.no_grad()
def test_released_names_load() -> None:
    clip = Clip(frames=1, height=32, width=32, classes=5)
    model = SYSTEM.build("test", clip, "digits")
    state = {
        "cls_token": torch.randn(1, 1, 32),
        "pos_embed": torch.randn(1, 17, 32),
        "patch_embed.proj.weight": torch.randn(32, 3, 8, 8),
        "blocks.0.attn.qkv.weight": torch.randn(96, 32),
        "score_predictor.0.in_conv.1.weight": torch.randn(32, 32),
        "score_predictor.1.out_conv.4.bias": torch.randn(2),
    }
    report = SYSTEM.load(model, {"model": state}, strict=False)  # type: ignore[dict-item]
    assert report.layout == "DynamicViT, official"
    assert not report.unexpected
    assert not report.mismatched
    assert torch.equal(model.get_parameter("score_predictor.1.out_conv.4.bias"), state["score_predictor.1.out_conv.4.bias"])


def test_published_cost() -> None:
    """DynamicViT-S/0.7 on DeiT-S: 22.8 M parameters and 2.9 G as printed in its paper."""
    with torch.device("meta"), torch.no_grad():
        model = SYSTEM.build("S", Clip(frames=1, height=224, width=224, classes=1000), "deit").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 1, 3, 224, 224), keep=0.7)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(22.77, rel=1e-3)
    assert counter.get_total_flops() / 2e9 == pytest.approx(2.98, rel=0.005)
