"""The bias on keys, in values and in gradients, against plain softmax attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitgs.backbone.attention import Attention, attend
from vitgs.backbone.tokens import Tokens


def plain(q: Tensor, k: Tensor, v: Tensor, bias_BM: Tensor) -> Tensor:
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5 + bias_BM[:, None, None]
    return torch.einsum("bhnm,bhmd->bnhd", logits.softmax(dim=-1), v).flatten(2)


def heads(count: int = 6) -> Tensor:
    return torch.randn(2, 3, count, 8, requires_grad=True)


def test_bias_equals_softmax_with_bias() -> None:
    q, k, v = heads(5), heads(), heads()
    bias = torch.randn(2, 6, requires_grad=True)
    ours, expected = attend(q, k, v, bias), plain(q, k, v, bias)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    weight = torch.randn_like(expected)
    got = torch.autograd.grad((ours * weight).sum(), [q, k, v, bias])
    wanted = torch.autograd.grad((expected * weight).sum(), [q, k, v, bias])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_no_bias_is_a_bias_of_zero() -> None:
    q, k, v = heads(), heads(), heads()
    torch.testing.assert_close(attend(q, k, v), attend(q, k, v, torch.zeros(2, 6)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_keys_are_not_seen(dtype: torch.dtype) -> None:
    """Attention over masked tokens equals attention over the real ones alone, with finite gradients."""
    torch.manual_seed(3)
    layer = Attention(24, 3).to(dtype)
    x = torch.randn(2, 6, 24, dtype=dtype, requires_grad=True)
    real = torch.tensor([True, False, True, True, False, True])
    mask = real.expand(2, -1)
    position = torch.zeros(2, 6, 3)
    out = layer(Tokens(x_BND=x, position_BN3=position, mask_BN=mask))
    kept = layer(Tokens(x_BND=x[:, real], position_BN3=position[:, real]))
    torch.testing.assert_close(out[:, real], kept, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    (gradient,) = torch.autograd.grad(out[:, real].float().square().sum(), [x])
    assert gradient.isfinite().all()
    assert gradient[:, ~real].abs().max() == 0


def test_masked_keys_with_utility_and_size() -> None:
    """Mask, log utility and log size together: the bias must stay finite enough for the softmax."""
    layer = Attention(24, 3)
    x = torch.randn(2, 6, 24, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False, True]).expand(2, -1)
    bias = torch.randn(2, 6).sigmoid().log().requires_grad_()
    size = torch.arange(1.0, 7.0).expand(2, -1)
    tokens = Tokens(x_BND=x, position_BN3=torch.zeros(2, 6, 3), mask_BN=mask, bias_BN=bias, size_BN=size)
    real = mask[0]
    fewer = Tokens(x_BND=x[:, real], position_BN3=torch.zeros(2, 4, 3), bias_BN=bias[:, real], size_BN=size[:, real])
    torch.testing.assert_close(layer(tokens)[:, real], layer(fewer), rtol=0, atol=1e-5)
    for gradient in torch.autograd.grad(layer(tokens)[:, real].square().sum(), [x, bias]):
        assert gradient.isfinite().all()


def test_a_token_of_size_two_counts_as_two() -> None:
    """Proportional attention: one token of size 2 is seen as the same token twice."""
    layer = Attention(24, 3)
    x = torch.randn(1, 4, 24)
    twice = torch.cat([x, x[:, :1]], dim=1)
    sized = Tokens(x_BND=x, position_BN3=torch.zeros(1, 4, 3), size_BN=torch.tensor([[2.0, 1, 1, 1]]))
    torch.testing.assert_close(layer(sized), layer(Tokens(x_BND=twice, position_BN3=torch.zeros(1, 5, 3)))[:, :4], rtol=0, atol=1e-5)
