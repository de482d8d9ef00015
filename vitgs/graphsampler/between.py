"""Graph layers between the blocks of the ViT instead of behind them, so that what a node heard of other frames is worked on by later blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens
from vitgs.backbone.vit import Vit
from vitgs.graphsampler.edges import Edges
from vitgs.graphsampler.encode import Step
from vitgs.graphsampler.graph import Graph

PLACES = ("behind", "between")


def blocks_before(layers: int, depth: int) -> tuple[int, ...]:
    """How many blocks run before each of L graph layers: l depth / (L + 1) for l = 1 ... L, rounded down."""
    return tuple((layer + 1) * depth // (layers + 1) for layer in range(layers))


def run_between(vit: Vit, graph: Graph, edges: Edges, bias_BS: Tensor | None, tokens: Tokens, blocks: Sequence[Step]) -> Tokens:
    """The `blocks` of the ViT over kept tokens that entered it, `(B, S, D)` or a frame at a time `(B*M, K, D)`, with a round of messages over all S
    nodes at each place.

    h <- GraphLayer_l(h) for the nodes (equations there); class tokens have no edges and hear of it in the next block's attention. Edges, and what
    they weigh by themselves, are those of the kept tokens as they entered.
    """
    prefix, batch = tokens.prefix, edges.node_BSE.shape[0]
    logits = graph.logits(edges, bias_BS)
    places = blocks_before(len(graph.layers), len(blocks))
    for done, block in enumerate(blocks):
        for place, layer, logit_BSEh in zip(places, graph.layers, logits, strict=True):
            if place == done:
                with stage("graph"):
                    x_BSD = tokens.x_BND[:, prefix:]
                    heard_BSD = layer(x_BSD.reshape(batch, -1, x_BSD.shape[2]), edges, logit_BSEh).view_as(x_BSD)
                    tokens = tokens.with_x(torch.cat([tokens.x_BND[:, :prefix], heard_BSD], dim=1) if prefix else heard_BSD)
        with stage("backbone"):
            tokens = block(tokens)
    with stage("backbone"):
        return tokens.with_x(vit.norm(tokens.x_BND))
