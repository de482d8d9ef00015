"""ToMe's cost as published, token counts per block, and proportional attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitgs import registry
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.reduction.merging import merge_counts
from vitgs.spec import Clip
from vitgs.testing import Contract

SYSTEM = registry.get("tome")


def test_published_cost() -> None:
    """DeiT-S at 224 px with r = 13: 22.05 M parameters, 2.71 GMACs (4.60 without merging)."""
    with torch.device("meta"), torch.no_grad():
        model = SYSTEM.build("S", Clip(frames=1, height=224, width=224, classes=1000), "deit").eval()
        gmacs = []
        for r in (0, 13):
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 1, 3, 224, 224), r=r)
            gmacs.append(counter.get_total_flops() / 2e9)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(22.05, rel=1e-3)
    assert gmacs == pytest.approx([4.60, 2.71], rel=0.005)


def test_counts() -> None:
    assert merge_counts(8, 4, "constant") == (8, 8, 8, 8)
    assert merge_counts(6, 4, "decreasing") == (12, 8, 4, 0)
    assert merge_counts(13, 12, "decreasing") == (26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0)
    assert merge_counts(5, 1, "decreasing") == (5,)


@pytest.mark.parametrize("wrong", [{"r": -1}, {"r": 2.5}, {"schedule": "rising"}])
def test_wrong_run_values(wrong: dict[str, Any]) -> None:
    contract = Contract(system=SYSTEM)
    with pytest.raises(UsageError):
        contract.build()(contract.input(1), **wrong)
    with pytest.raises(UsageError):
        contract.build(**wrong)


@torch.no_grad()
def test_class_token_stays_and_sizes_add_up() -> None:
    contract = Contract(system=SYSTEM)
    model = contract.build()
    seen: list[Tokens] = []
    model.get_submodule("readout").register_forward_hook(lambda module, args, out: seen.append(args[0]))
    for schedule in ("constant", "decreasing"):
        model(contract.input(), r=16, schedule=schedule)
    for tokens in seen:
        assert tokens.prefix == 1
        assert (tokens.position_BN3[:, 0] == -1).all()
        assert tokens.size_BN is not None
        assert (tokens.size_BN[:, 0] == 1).all()
        assert (tokens.size_BN[:, 1:].sum(dim=1) == 128).all()
        assert tokens.position_BN3[:, 1:].min() >= 0
        mean = (tokens.position_BN3 * tokens.size_BN.unsqueeze(-1))[:, 1:].sum(dim=1) / 128
        torch.testing.assert_close(mean, torch.tensor([3.5, 1.5, 1.5]).expand(3, -1))
    assert [tokens.count for tokens in seen] == [129 - 32, 129 - 32]


@torch.no_grad()
def test_equal_tokens_merge_without_loss() -> None:
    """Where merged tokens are equal, proportional attention makes merging exact: a clip of one grey, with no positions."""
    contract = Contract(system=SYSTEM)
    for readout in ("class", "mean", "attention"):
        model = contract.build(readout=readout)
        model.get_parameter("vit.embed.position").zero_()
        model.get_parameter("time.table").zero_()
        clip = torch.ones(1, *contract.clip.shape)
        torch.testing.assert_close(model(clip, r=28), model(clip, r=0), rtol=0, atol=1e-5)
