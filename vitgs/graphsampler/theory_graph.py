"""The graph against full attention, checked: who hears whom after L rounds, and how far that is from attention over all nodes.

Definitions. Each round l and head h of a trained graph has logits z_ij = q_i.k_j / sqrt(d) + beta cos_ij + MLP(rel_ij) + log u_j, which exist for
every pair of nodes. **Full** attention A is their softmax over all nodes; the **limit** is their softmax over all nodes of other frames and the node
itself, which is all that the graph may ever reach; the **graph** P(k) is their softmax over the edges of `build_edges`, so k = all in one window is
the limit. Features are those of the model's own pass. L rounds are the product of the head means, last round on the left; rounds beyond the model's
own begin again at its first. **Plain** logits are q_i.k_j / sqrt(d) + log u_j alone, which Linformer, Performer and Nystrom can approximate too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.tokens import Tokens
from vitgs.graphsampler.edges import Edges, build_edges, neighbours
from vitgs.graphsampler.explain import layer_weights
from vitgs.graphsampler.graph import Graph, GraphLayer
from vitgs.graphsampler.messages import heads_apart
from vitgs.graphsampler.model import TEMPORAL_EDGES, GraphSampler
from vitgs.graphsampler.relative import relative_features
from vitgs.graphsampler.theory import Scene, encode


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The nodes of some clips and, for each of the graph's l rounds, `full_lBhSS`: attention over all nodes by the graph's own logits; `plain_lBhSS`:
    the same by the plain ones, from `query_lBhSd`, `key_lBhSd` and the log utility `bias_BS`; None where messages are weighted without queries."""

    nodes: Tokens
    appearance_BSD: Tensor
    frames: int
    bias_BS: Tensor
    full_lBhSS: Tensor
    plain_lBhSS: Tensor | None
    query_lBhSd: Tensor | None
    key_lBhSd: Tensor | None


@torch.no_grad()
def rounds(model: GraphSampler, scene: Scene) -> Rounds | None:
    """The attention of a model's graph over its own kept tokens; None for a model without a graph."""
    if model.graph is None:
        return None
    passage = encode(model, scene.own())
    nodes, appearance = passage.nodes, passage.appearance_BSD
    own = model._edges(nodes, appearance, scene.budget)
    every = every_edge(appearance, nodes.position_BN3)
    full, plain, queries, keys = [], [], [], []
    x = nodes.x_BND
    bias_BS = nodes.x_BND.new_zeros(nodes.x_BND.shape[:2]) if nodes.bias_BN is None else nodes.bias_BN
    logits = zip(model.graph.logits(own, nodes.bias_BN), model.graph.logits(every, nodes.bias_BN), strict=True)
    for layer, (own_BSEh, every_BSSh) in zip(model.graph.layers, logits, strict=True):
        assert isinstance(layer, GraphLayer)
        full.append(layer_weights(layer, x, every, every_BSSh).permute(0, 3, 1, 2))
        if layer.message == "attention":
            query, key = _query_and_key(layer, x)
            queries.append(query)
            keys.append(key)
            plain.append(softmax_attention(query, key, bias_BS))
        x = layer(x, own, own_BSEh)
    return Rounds(
        nodes=nodes,
        appearance_BSD=appearance,
        frames=model.frames,
        bias_BS=bias_BS,
        full_lBhSS=torch.stack(full),
        plain_lBhSS=torch.stack(plain) if plain else None,
        query_lBhSd=torch.stack(queries) if queries else None,
        key_lBhSd=torch.stack(keys) if keys else None,
    )


def every_edge(appearance_BSD: Tensor, position_BS3: Tensor) -> Edges:
    """Each node as a neighbour of each, those of its own frame too, with what `build_edges` says of an edge."""
    batch, count = appearance_BSD.shape[:2]
    unit = F.normalize(appearance_BSD - appearance_BSD.mean(dim=1, keepdim=True), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(1.0)
    node = torch.arange(count).expand(batch, count, count)
    return Edges(
        node_BSE=node,
        valid_BSE=torch.ones_like(node, dtype=torch.bool),
        similarity_BSE=similarity,
        relative_BSER=relative_features(position_BS3, neighbours(position_BS3, node)),
    )


def _query_and_key(layer: GraphLayer, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and keys of a round, `(B, h, S, d)`."""
    query, key, _ = layer.qkv(layer.norm1(x_BSD)).split(layer.graph_width, dim=-1)
    return heads_apart(query, layer.heads), heads_apart(key, layer.heads)


def softmax_attention(q_BhSd: Tensor, k_BhSd: Tensor, bias_BS: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias on keys), `(B, h, S, S)`."""
    logit_BhSS = q_BhSd @ k_BhSd.transpose(-1, -2) * q_BhSd.shape[-1] ** -0.5 + bias_BS[:, None, None, :]
    return F.softmax(logit_BhSS, dim=-1)


# Who may be heard, as `(B, S, S)` masks, True for an edge


def graph_mask(appearance_BSD: Tensor, position_BS3: Tensor, frames: int, *, k: int | None, window: int) -> Tensor:
    """The edges of `build_edges`; k None: all that a window holds. `window` in chunks, as many as frames, to either side; 0: the whole clip."""
    count = appearance_BSD.shape[1]
    edges = build_edges(appearance_BSD, position_BS3, k=count if k is None else k, temporal=TEMPORAL_EDGES, chunk=-(-count // frames), window=window)
    return mask_of(edges)


def mask_of(edges: Edges) -> Tensor:
    """Edges as a matrix."""
    batch, count = edges.node_BSE.shape[:2]
    times_BSS = torch.zeros(batch, count, count).scatter_add_(2, edges.node_BSE, edges.valid_BSE.float())
    return times_BSS > 0


def random_mask(position_BS3: Tensor, size_BS: Tensor, generator: torch.Generator) -> Tensor:
    """The node itself and `size_BS - 1` nodes of other frames at random: the control for choosing neighbours."""
    noise_BSS = torch.rand(*size_BS.shape, size_BS.shape[1], generator=generator)
    return _largest(noise_BSS, _open(position_BS3), size_BS)


def heaviest_mask(weight_BSS: Tensor, position_BS3: Tensor, size_BS: Tensor) -> Tensor:
    """The node itself and the `size_BS - 1` nodes of other frames that full attention weighs most: the best that so many edges can do."""
    return _largest(weight_BSS, _open(position_BS3), size_BS)


def _open(position_BS3: Tensor) -> Tensor:
    return position_BS3[:, :, None, 0] != position_BS3[:, None, :, 0]


def _largest(value_BSS: Tensor, open_BSS: Tensor, size_BS: Tensor) -> Tensor:
    one_SS = torch.eye(value_BSS.shape[-1], dtype=torch.bool)
    value_BSS = value_BSS.masked_fill(~open_BSS, -torch.inf).masked_fill(one_SS, torch.inf)
    rank_BSS = value_BSS.argsort(dim=-1, descending=True).argsort(dim=-1)
    return (rank_BSS < size_BS.unsqueeze(-1)) & (open_BSS | one_SS)


def restricted(full_BhSS: Tensor, mask_BSS: Tensor) -> Tensor:
    """Attention over the edges alone: what the softmax of the same logits over them gives; rows sum to 1."""
    kept = full_BhSS.double() * mask_BSS.unsqueeze(-3)
    return (kept / kept.sum(dim=-1, keepdim=True)).to(full_BhSS.dtype)


def product(round_lSS: Tensor, count: int) -> Tensor:
    """`count` rounds one after the other, `P_count ... P_1`; beyond those given it begins again with the first. `(l, ..., S, S)` -> `(..., S, S)`."""
    out = round_lSS[0]
    for i in range(1, count):
        out = round_lSS[i % len(round_lSS)] @ out
    return out


def distances(found_SS: Tensor, exact_SS: Tensor) -> tuple[Tensor, Tensor]:
    """Frobenius and spectral norm of the difference, each over that of the exact matrix; leading axes stay."""
    gap = (found_SS - exact_SS).double()
    exact = exact_SS.double()
    frobenius = torch.linalg.matrix_norm(gap) / torch.linalg.matrix_norm(exact)
    return frobenius, _spectral(gap) / _spectral(exact)


def _spectral(matrix_SS: Tensor) -> Tensor:
    """The largest singular value, from the symmetric product: several times faster than a decomposition of the matrix."""
    largest: Tensor = torch.linalg.eigvalsh(matrix_SS.transpose(-1, -2) @ matrix_SS)[..., -1]
    return largest.clamp_min(0).sqrt()


# Wall-clock and MACs against frames and tokens a frame


def message_passing(graph: Graph, frames: int, tokens: int, *, k: int, window: int, seed: int = 0) -> Callable[[], Tensor]:
    """A call that builds the edges over `frames` x `tokens` nodes with random features and runs all rounds, for one clip."""
    generator = torch.Generator().manual_seed(seed)
    layer = graph.layers[0]
    assert isinstance(layer, GraphLayer)
    width = layer.qkv.in_features
    x = torch.randn(1, frames * tokens, width, generator=generator)
    side = max(1, round(tokens**0.5))
    place = torch.arange(frames * tokens)
    position = torch.stack([place // tokens, place % tokens // side, place % tokens % side], dim=-1).float().unsqueeze(0)

    def call() -> Tensor:
        with torch.no_grad():
            edges = build_edges(x, position, k=k, temporal=TEMPORAL_EDGES, chunk=tokens, window=window)
            out: Tensor = graph(x, edges, None)
            return out

    return call


def full_attention(graph: Graph, frames: int, tokens: int, *, seed: int = 0) -> Callable[[], Tensor]:
    """The same rounds over the same nodes with fused attention over all of them in place of edges; messages must be weighted by attention."""
    generator = torch.Generator().manual_seed(seed)
    first = graph.layers[0]
    assert isinstance(first, GraphLayer)
    nodes = torch.randn(1, frames * tokens, first.qkv.in_features, generator=generator)

    def call() -> Tensor:
        x = nodes
        with torch.no_grad():
            for layer in graph.layers:
                assert isinstance(layer, GraphLayer)
                split = layer.qkv(layer.norm1(x)).split(layer.graph_width, dim=-1)
                q, k, v = (heads_apart(side, layer.heads) for side in split)
                x = x + layer.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                x = x + layer.feed(layer.norm2(x))
            return x

    return call
