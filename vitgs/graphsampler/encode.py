"""The ViT over what is kept: all together, or frame by frame, whether each frame keeps as many tokens as the others or a number of its own.

Frames of one length are rows of a batch. Where lengths differ, tokens stay packed and attention alone keeps frames apart (`packed_attention`), with
the same weights. A class token then stands for each frame, and counts for as much as the tokens that it saw weigh in the clip, by utility and size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.block import Block
from vitgs.backbone.packed_attention import pack, packed_block
from vitgs.backbone.runs import Attend, cached_tokens, may_read
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, split_frames, with_prefix, without_prefix
from vitgs.backbone.vit import Vit

Step = Callable[[Tokens], Tokens]
# Takes the tokens that entered and the blocks still to run, does something between the blocks besides, and applies the final norm itself. None: one
# block after the other.
Run = Callable[[Tokens, Sequence[Step]], Tokens]


def log_mass(nodes: Tokens, seers: int) -> Tensor:
    """The log of what the nodes weigh, utility times size, that each of `seers` class tokens saw, `(B, M)`: equal runs of nodes in order, or all."""
    bias_BS = nodes.key_bias_BN()
    bias_BS = torch.zeros_like(nodes.x_BND[..., 0]) if bias_BS is None else bias_BS
    return torch.unflatten(bias_BS, 1, (seers, -1)).logsumexp(dim=2)


def encode(vit: Vit, kept: Tokens, alike: int | None, frames: int, run: Run | None = None, done: int = 0) -> Tokens:
    """The encoded tokens: `(B, S, D)`, or a row each, `(B*M, K, D)`, class token first.

    `alike`: the kept frames M, which have as many tokens as each other; 1 for all tokens together; None where numbers differ. `done`: how many blocks
    the tokens have behind them; class tokens join in front of the next.
    """
    if alike is not None:
        kept = kept if alike == 1 else split_frames(kept, alike)
        tokens, steps = _entered(vit, kept) if done else vit.enter(kept), [*vit.blocks][done:]
        return _in_parts(vit, steps, tokens) if run is None else run(tokens, steps)
    with stage("backbone"):
        segment_BS = frame_BS = kept.position_BN3[..., 0].long()
        tokens = kept
        if vit.has_class_token:
            tokens = _with_class_tokens(kept, vit.pre_norm(vit.embed.class_token) if done else vit.embed.class_token, frames)
            segment_BS = torch.cat([torch.arange(frames, device=frame_BS.device).expand(len(frame_BS), -1), frame_BS], dim=1)
        packing = pack(tokens, segment_BS, vit.embed.count + vit.has_class_token)
        tokens = tokens if done else tokens.with_x(vit.pre_norm(tokens.x_BND))
    blocks = [block for block in vit.blocks[done:] if isinstance(block, Block)]
    if run is None:
        encoded = packing.within(partial(_frames_apart, vit, blocks), tokens)
    else:
        encoded = run(tokens, [partial(packing.within, partial(packed_block, block)) for block in blocks])
    return _one_class_token(encoded, frame_BS) if encoded.prefix else encoded


def _entered(vit: Vit, kept: Tokens) -> Tokens:
    """What `Vit.enter` makes of tokens that have its norm behind them already."""
    with stage("backbone"):
        return with_prefix(kept, vit.pre_norm(vit.embed.class_token)) if vit.has_class_token else kept


def _through(vit: Vit, steps: Sequence[Step], tokens: Tokens) -> Tokens:
    with stage("backbone"):
        for step in steps:
            tokens = step(tokens)
        return tokens.with_x(vit.norm(tokens.x_BND))


def _frames_apart(vit: Vit, blocks: Sequence[Block], attend: Attend, tokens: Tokens) -> Tokens:
    return _through(vit, [partial(packed_block, block, attend) for block in blocks], tokens)


def _in_parts(vit: Vit, steps: Sequence[Step], tokens: Tokens) -> Tokens:
    """All rows through the ViT, on a CPU as many at once as its cache holds."""
    at_once = max(1, cached_tokens(tokens.x_BND.shape[2]) // tokens.count)
    if not may_read(tokens.x_BND) or len(tokens.x_BND) <= at_once:
        return _through(vit, steps, tokens)
    pieces = {name: torch.split(value, at_once) for name, value in vars(tokens).items() if isinstance(value, Tensor)}
    parts = [replace(tokens, **dict(zip(pieces, values, strict=True))) for values in zip(*pieces.values(), strict=True)]
    return tokens.with_x(torch.cat([_through(vit, steps, part).x_BND for part in parts]))


def _with_class_tokens(kept: Tokens, class_token_11D: Tensor, frames: int) -> Tokens:
    """A class token for each frame in front of all tokens, without bias and in no place.

    Sizes and a mask aren't carried over: kept tokens stand for one patch each and are all real here.
    """
    batch, width = len(kept.x_BND), kept.x_BND.shape[2]
    return Tokens(
        x_BND=torch.cat([class_token_11D.expand(batch, frames, width).to(kept.x_BND.dtype), kept.x_BND], dim=1),
        position_BN3=F.pad(kept.position_BN3, (0, 0, frames, 0), value=-1.0),
        prefix=frames,
        bias_BN=None if kept.bias_BN is None else F.pad(kept.bias_BN, (frames, 0)),
    )


def _one_class_token(encoded: Tokens, frame_BS: Tensor) -> Tokens:
    """The mean of the frames' class tokens in the place of all, each weighted by its frame's share of what the kept tokens weigh."""
    nodes = without_prefix(encoded)
    weight_BS = nodes.weight_BN()
    weight_BS = torch.full_like(nodes.x_BND[..., 0], 1 / nodes.count) if weight_BS is None else weight_BS
    share_BT = weight_BS.new_zeros(len(weight_BS), encoded.prefix).scatter_add(1, frame_BS, weight_BS)
    mean_B1D = share_BT.unsqueeze(1).to(encoded.x_BND.dtype) @ encoded.x_BND[:, : encoded.prefix]
    return with_prefix(nodes, mean_B1D)
