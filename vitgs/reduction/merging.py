"""Bipartite soft matching (ToMe, Bolya 2023, section 3) as pure tensor functions: the r most similar pairs become one token each.

`merging_block` puts it between a block's attention and its MLP; `merge_counts` spreads r over blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitgs.backbone.attention import attend
from vitgs.backbone.block import Block
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError, unknown

SCHEDULES = ("constant", "decreasing")


def most_similar_pairs(metric_BND: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Alternating split into sources and destinations; the r sources that are most similar to some destination merge into it.

    Returns (kept sources, merged sources, destinations of the merged), as indices into the alternating halves; class tokens stay.
    """
    metric_BND = metric_BND.detach()
    metric = metric_BND / metric_BND.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    scores_BSE = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    if prefix:
        # Token 0 is the class token and lies among the sources: it must never merge.
        scores_BSE[:, 0] = -torch.inf
    best_BS, target_BS = scores_BSE.max(dim=-1)
    order_BS = best_BS.argsort(dim=-1, descending=True)
    merged_Br, kept_BK = order_BS[:, :r], order_BS[:, r:]
    if prefix:
        # Back in order, so that the class token stays first. Without one, the released code leaves the rest by similarity, and so do we:
        # the order decides the next block's split.
        kept_BK = kept_BK.sort(dim=1).values
    return kept_BK, merged_Br, target_BS.gather(1, merged_Br)


def mergeable(count: int, prefix: int, r: int) -> int:
    """How many of `count` tokens can be merged at once: at most half of those that aren't class tokens (ToMe, section 3)."""
    return max(0, min(r, (count - prefix) // 2))


def merge(tokens: Tokens, metric_BND: Tensor, r: int) -> Tokens:
    """`tokens` with `r` fewer: features, positions and log utility averaged by size, sizes added up."""
    r = mergeable(tokens.count, tokens.prefix, r)
    if r == 0:
        return tokens
    kept, merged, target = most_similar_pairs(metric_BND, r, tokens.prefix)
    size_BN = tokens.x_BND.new_ones(tokens.x_BND.shape[:2]) if tokens.size_BN is None else tokens.size_BN

    def fold(value_BND: Tensor) -> Tensor:
        source, destination = value_BND[:, ::2], value_BND[:, 1::2]
        width = value_BND.shape[-1]
        moved = source.gather(1, merged.unsqueeze(-1).expand(-1, -1, width))
        stay = source.gather(1, kept.unsqueeze(-1).expand(-1, -1, width))
        return torch.cat([stay, destination.scatter_add(1, target.unsqueeze(-1).expand(-1, -1, width), moved)], dim=1)

    size = fold(size_BN.unsqueeze(-1))
    x = fold(tokens.x_BND * size_BN.unsqueeze(-1)) / size
    position = fold(tokens.position_BN3 * size_BN.unsqueeze(-1)) / size
    bias = None if tokens.bias_BN is None else (fold((tokens.bias_BN * size_BN).unsqueeze(-1)) / size).squeeze(-1)
    return Tokens(x_BND=x, position_BN3=position, prefix=tokens.prefix, size_BN=size.squeeze(-1), bias_BN=bias)


def merge_counts(r: int, depth: int, schedule: str) -> tuple[int, ...]:
    """Merges of each block: r in all, or falling linearly from 2r to 0, which merges as many in all but earlier (ToMe's decreasing schedule)."""
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if r < 0 or int(r) != r:
        raise UsageError("r must be a whole number of tokens, 0 or more", given=r, remedy="set r to a number such as 8")
    if schedule == "constant" or depth == 1:
        return (int(r),) * depth
    return tuple(int(2 * r - 2 * r / (depth - 1) * i) for i in range(depth))


def merging_block(block: Block, tokens: Tokens, r: int) -> Tokens:
    """A block with r merges between attention and MLP; similarity is that of the attention keys, averaged over heads."""
    q, k, v = block.attention.project(block.norm1(tokens.x_BND))
    branch = block.attention.output(attend(q, k, v, tokens.key_bias_BN()))
    tokens = tokens.with_x(tokens.x_BND + block.scale1(branch))
    with stage("merge"):
        tokens = merge(tokens, k.mean(dim=1), r)
    return block.feed(tokens)
