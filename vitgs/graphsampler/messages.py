"""One round of messages over the edges of the graph, as a pure function, in the form that is fastest where it runs.

Three forms give the same: rows of neighbours copied block by block, anywhere; where nodes are few, and something is learned or a CPU's cache holds
all of it, products of all pairs, of which only edges are read; else, in inference on a CPU, bags of rows that are weighed where they lie, which is
how values are weighed there in either form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitgs.backbone.runs import may_read
from vitgs.graphsampler.bags import flat_rows, weigh_heads
from vitgs.graphsampler.edges import Edges, block_rows

# Most pairs of nodes, of all clips and heads, up to which their products pay in inference, too: measured, see DECISIONS.md.
FEW_PAIRS = 400_000


def pass_messages(said_BAX: Tensor, edges: Edges, logit_BSEh: Tensor, query_BSD: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each node hears `(B, S, D)`, and where from: its neighbours' relative features averaged for each head, `(B, S, h * 6)`.

    a_ij = softmax_j(q_i . k_j / sqrt(d) + e_ij); heard_i = sum_j a_ij v_j; from_i = sum_j a_ij rel_ij. `said_BAX` holds the keys and values of all
    nodes side by side, or with no `query_BSD` the values alone, and then edges weigh e_ij.
    """
    (batch, count, _, heads), (others, width) = logit_BSEh.shape, said_BAX.shape[1:]
    small = may_read(said_BAX) and batch * heads * count * others <= FEW_PAIRS
    if (torch.is_grad_enabled() or small) and pairs_take_less(said_BAX, logit_BSEh):
        return _by_pairs(said_BAX, edges, logit_BSEh, query_BSD)
    said_NX, node_SE = said_BAX.reshape(-1, width), flat_rows(edges.node_BSE, others).flatten(0, 1)
    logit_SEh, relative_SER = logit_BSEh.flatten(0, 1), edges.relative_BSER.flatten(0, 1)
    query_Shd = None if query_BSD is None else torch.unflatten(query_BSD.flatten(0, 1), -1, (heads, -1))
    form = _by_bags if may_read(said_BAX) else _by_blocks
    message, source = form(said_NX, node_SE, logit_SEh, relative_SER, query_Shd)
    return torch.unflatten(message, 0, (batch, count)), torch.unflatten(source, 0, (batch, count))


def pairs_take_less(said_BAX: Tensor, logit_BSEh: Tensor) -> bool:
    """Whether a node's pairs with all others, one a head for what they score and one for what they weigh, are fewer elements than what its
    neighbours say. Where that is so, pairs were 1.5 to 3 times as fast, learning included: see DECISIONS.md.
    """
    (places, heads), (others, width) = logit_BSEh.shape[2:], said_BAX.shape[1:]
    return 2 * heads * others <= places * width


def _by_blocks(said_NX: Tensor, node_SE: Tensor, logit_SEh: Tensor, relative_SER: Tensor, query_Shd: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of all clips' nodes, by blocks that a cache holds."""
    (count, places, heads), width, heard = logit_SEh.shape, said_NX.shape[1], []
    rows = block_rows(places * width, said_NX.device)
    for first in range(0, count, rows):
        block = slice(first, first + rows)
        said_SEX = said_NX.index_select(0, node_SE[block].flatten()).view(-1, places, width)
        score_SEh, value_SEX = logit_SEh[block], said_SEX
        if query_Shd is not None:
            key_SEX, value_SEX = said_SEX.chunk(2, dim=2)
            scaled_S1hd = (query_Shd[block] * query_Shd.shape[2] ** -0.5).unsqueeze(1)
            score_SEh = score_SEh + (torch.unflatten(key_SEX, 2, (heads, -1)) * scaled_S1hd).sum(dim=3)
        weight_SEh = score_SEh.softmax(dim=1)
        message_SD = (torch.unflatten(value_SEX, 2, (heads, -1)) * weight_SEh.unsqueeze(3)).sum(dim=1).flatten(1)
        heard.append((message_SD, (weight_SEh.transpose(1, 2) @ relative_SER[block]).flatten(1)))
    message, source = heard[0] if len(heard) == 1 else (torch.cat(part) for part in zip(*heard, strict=True))
    return message, source


def _by_pairs(said_BAX: Tensor, edges: Edges, logit_BSEh: Tensor, query_BSD: Tensor | None) -> tuple[Tensor, Tensor]:
    """By matrix products over all pairs: for few nodes more multiply-adds, but no copies of neighbours, whose gradients would be scattered back."""
    batch, count, _, heads = logit_BSEh.shape
    node_BhSE = edges.node_BSE.unsqueeze(1).expand(-1, heads, -1, -1)
    score_BSEh, value_BAD = logit_BSEh, said_BAX
    if query_BSD is not None:
        key_BAD, value_BAD = said_BAX.chunk(2, dim=2)
        query_BhSd = heads_apart(query_BSD, heads)
        pairs_BhSA = (query_BhSd * query_BhSd.shape[3] ** -0.5) @ heads_apart(key_BAD, heads).transpose(2, 3)
        score_BSEh = pairs_BhSA.gather(3, node_BhSE).permute(0, 2, 3, 1) + score_BSEh
    weight_BSEh = score_BSEh.softmax(dim=2)
    source_BSX = (weight_BSEh.transpose(2, 3) @ edges.relative_BSER).flatten(2)
    # A place that no neighbour fills weighs nothing, whichever node it names.
    if may_read(said_BAX):
        row_NE = flat_rows(edges.node_BSE, said_BAX.shape[1]).flatten(0, 1)
        message_ND = weigh_heads(value_BAD.flatten(0, 1), row_NE, weight_BSEh.flatten(0, 1))
        return torch.unflatten(message_ND, 0, (batch, count)), source_BSX
    weight_BhSA = weight_BSEh.new_zeros(batch, heads, count, said_BAX.shape[1]).scatter_add(3, node_BhSE, weight_BSEh.permute(0, 3, 1, 2))
    return (weight_BhSA @ heads_apart(value_BAD, heads)).transpose(1, 2).flatten(2), source_BSX


def heads_apart(value_BSD: Tensor, heads: int) -> Tensor:
    """Equal parts of the last dimension as heads, `(B, h, S, d)`."""
    return torch.unflatten(value_BSD, 2, (heads, -1)).transpose(1, 2)


def _by_bags(said_NX: Tensor, node_SE: Tensor, logit_SEh: Tensor, relative_SER: Tensor, query_Shd: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of all clips' nodes where nothing is learned: values are weighed where they lie, and only keys are copied, block by block."""
    score_SEh, value_NX = logit_SEh, said_NX
    if query_Shd is not None:
        key_NX, value_NX = (part.contiguous() for part in said_NX.chunk(2, dim=1))
        scaled_S1hd, rows = (query_Shd * query_Shd.shape[2] ** -0.5).unsqueeze(1), block_rows(2 * node_SE.shape[1] * key_NX.shape[1], key_NX.device)
        products = []
        for node, scaled in zip(torch.split(node_SE, rows), torch.split(scaled_S1hd, rows), strict=True):
            key_SEhd = key_NX.index_select(0, node.flatten()).view(*node.shape, *scaled.shape[2:])
            products.append(key_SEhd.mul_(scaled).sum(dim=3))
        score_SEh = torch.cat(products).add_(score_SEh)
    weight_SEh = score_SEh.softmax(dim=1)
    return weigh_heads(value_NX, node_SE, weight_SEh), (weight_SEh.transpose(1, 2) @ relative_SER).flatten(1)
