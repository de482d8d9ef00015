"""Readouts against loops over tokens."""

from __future__ import annotations

import pytest
import torch

from vitgs.backbone.readout import READOUTS, AttentionReadout, build_readout
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError


def tokens(count: int = 5, prefix: int = 1) -> Tokens:
    return Tokens(
        x_BND=torch.randn(2, count + prefix, 8),
        position_BN3=torch.zeros(2, count + prefix, 3),
        prefix=prefix,
        size_BN=torch.cat([torch.ones(2, prefix), torch.randint(1, 4, (2, count)).float()], dim=1),
        bias_BN=torch.cat([torch.zeros(2, prefix), torch.randn(2, count).sigmoid().log()], dim=1),
    )


def test_class() -> None:
    given = tokens()
    assert torch.equal(build_readout("class", 8, 2)(given), given.x_BND[:, 0])


def test_mean_is_weighted_and_leaves_the_class_token_out() -> None:
    given = tokens()
    assert given.size_BN is not None
    assert given.bias_BN is not None
    out = build_readout("mean", 8, 2)(given)
    for b in range(2):
        weights = [float(given.size_BN[b, n] * given.bias_BN[b, n].exp()) for n in range(1, 6)]
        expected = sum(w * given.x_BND[b, n] for w, n in zip(weights, range(1, 6), strict=True)) / sum(weights)
        torch.testing.assert_close(out[b], expected)
    plain = Tokens(x_BND=given.x_BND, position_BN3=given.position_BN3, prefix=1)
    torch.testing.assert_close(build_readout("mean", 8, 2)(plain), given.x_BND[:, 1:].mean(dim=1))


@torch.no_grad()
def test_attention_pools_each_head_by_itself() -> None:
    readout, given = AttentionReadout(8, 2), tokens()
    bias = given.key_bias_BN()
    assert bias is not None
    out = readout(given)
    for b in range(2):
        for h in range(2):
            logits = torch.stack([readout.score(given.x_BND[b, n])[h] + bias[b, n] for n in range(1, 6)])
            expected = sum(p * given.x_BND[b, n, 4 * h : 4 * h + 4] for p, n in zip(logits.softmax(dim=0), range(1, 6), strict=True))
            torch.testing.assert_close(out[b, 4 * h : 4 * h + 4], expected)


@pytest.mark.parametrize("kind", READOUTS)
def test_masked_tokens_do_not_count(kind: str) -> None:
    readout, given = build_readout(kind, 8, 2), tokens()
    mask = torch.tensor([True, True, False, True, False, True]).expand(2, -1)
    masked = Tokens(x_BND=given.x_BND, position_BN3=given.position_BN3, prefix=1, mask_BN=mask)
    fewer = Tokens(x_BND=given.x_BND[:, mask[0]], position_BN3=given.position_BN3[:, mask[0]], prefix=1)
    torch.testing.assert_close(readout(masked), readout(fewer))


def test_unknown() -> None:
    with pytest.raises(UsageError, match=r"did you mean mean\?.*known: attention, class, mean"):
        build_readout("meen", 8, 2)
