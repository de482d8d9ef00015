"""Weighted sums of rows that lie in a table: of bags of them, so that where nothing is learned no row is copied to be weighed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flat_rows(row_B_: Tensor, count: int) -> Tensor:
    """Rows of each clip's table of `count` rows, as rows of all clips' tables put one behind the other; one or more dimensions beside the clips."""
    batch = len(row_B_)
    return row_B_ if batch == 1 else row_B_ + torch.arange(batch, device=row_B_.device).view(-1, *[1] * (row_B_.dim() - 1)) * count


def weigh_rows(value_NX: Tensor, row_RE: Tensor, weight_RE: Tensor) -> Tensor:
    """sum_e w_re v[row_re], `(R, X)`."""
    return F.embedding_bag(row_RE, value_NX, mode="sum", per_sample_weights=weight_RE.to(value_NX.dtype))


def weigh_heads(value_ND: Tensor, row_RE: Tensor, weight_REh: Tensor) -> Tensor:
    """The same for each of h heads, which are equal parts of a row and have weights of their own: `(R, D)`, heads side by side."""
    heads = weight_REh.shape[2]
    row_RhE = row_RE.unsqueeze(1) * heads + torch.arange(heads, device=row_RE.device).unsqueeze(1)
    each = weigh_rows(value_ND.reshape(len(value_ND) * heads, -1), row_RhE.flatten(0, 1), weight_REh.transpose(1, 2).flatten(0, 1))
    return each.view(len(row_RE), -1)


def weigh_groups(value_NX: Tensor, weight_NM: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """sum_n w_nm v_n over the rows of each group, which may lie anywhere, for each of M weights: `(groups, M, X)`. An empty group has 0."""
    slots, order_N = weight_NM.shape[1], group_N.argsort(stable=True)
    counts_G = group_N.bincount(minlength=groups)
    first_MG = counts_G.cumsum(0) - counts_G + torch.arange(slots, device=group_N.device).unsqueeze(1) * len(group_N)
    weight_MN = weight_NM[order_N].T.to(value_NX.dtype)
    sums = F.embedding_bag(order_N.repeat(slots), value_NX, first_MG.flatten(), mode="sum", per_sample_weights=weight_MN.flatten())
    return torch.unflatten(sums, 0, (slots, groups)).transpose(0, 1)
