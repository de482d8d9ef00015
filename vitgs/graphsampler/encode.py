"""The ViT over what is kept: all together, or frame by frame, whether each frame keeps as many tokens as the others or a number of its own.

Frames of one length are rows of a batch. Where lengths differ, tokens stay packed and attention alone keeps frames apart (`packed_attention`), with
the same weights. A class token then stands for each frame; those of frames that kept nothing see only themselves and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.block import Block
from vitgs.backbone.packed_attention import pack, packed_block
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, split_frames, with_prefix, without_prefix
from vitgs.backbone.vit import Vit

Step = Callable[[Tokens], Tokens]
# Takes the tokens that entered and the blocks still to run, does something between the blocks besides, and applies the final norm itself. None: one
# block after the other.
Run = Callable[[Tokens, Sequence[Step]], Tokens]


def held(frame_BS: Tensor, frames: int) -> Tensor:
    """1 for each frame with a token, else 0, `(B, T)`."""
    ones_BS = torch.ones(frame_BS.shape, device=frame_BS.device)
    return torch.zeros(len(frame_BS), frames, device=frame_BS.device).scatter(1, frame_BS, ones_BS)


def encode(vit: Vit, kept: Tokens, alike: int | None, frames: int, run: Run | None = None, done: int = 0) -> Tokens:
    """The encoded tokens: `(B, S, D)`, or a row each, `(B*M, K, D)`, class token first.

    `alike`: the kept frames M, which have as many tokens as each other; 1 for all tokens together; None where numbers differ. `done`: how many blocks
    the tokens have behind them; class tokens join in front of the next.
    """
    if alike is not None:
        kept = kept if alike == 1 else split_frames(kept, alike)
        tokens, steps = _entered(vit, kept) if done else vit.enter(kept), [*vit.blocks][done:]
        return vit.run(tokens, steps) if run is None else run(tokens, steps)
    with stage("backbone"):
        segment_BS = frame_BS = kept.position_BN3[..., 0].long()
        tokens = kept
        if vit.has_class_token:
            tokens = _with_class_tokens(kept, vit.pre_norm(vit.embed.class_token) if done else vit.embed.class_token, frames)
            segment_BS = torch.cat([torch.arange(frames, device=frame_BS.device).expand(len(frame_BS), -1), frame_BS], dim=1)
        packing = pack(tokens, segment_BS, vit.embed.count + vit.has_class_token)
        tokens = tokens if done else tokens.with_x(vit.pre_norm(tokens.x_BND))
    steps = [partial(packed_block, block, packing) for block in vit.blocks[done:] if isinstance(block, Block)]
    encoded = _through(vit, tokens, steps) if run is None else run(tokens, steps)
    return _one_class_token(encoded, held(frame_BS, frames)) if encoded.prefix else encoded


def _entered(vit: Vit, kept: Tokens) -> Tokens:
    """What `Vit.enter` makes of tokens that have its norm behind them already."""
    with stage("backbone"):
        return with_prefix(kept, vit.pre_norm(vit.embed.class_token)) if vit.has_class_token else kept


def _through(vit: Vit, tokens: Tokens, steps: Sequence[Step]) -> Tokens:
    with stage("backbone"):
        for step in steps:
            tokens = step(tokens)
        return tokens.with_x(vit.norm(tokens.x_BND))


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


def _one_class_token(encoded: Tokens, held_BT: Tensor) -> Tokens:
    """The mean of the class tokens of frames with tokens, in the place of all."""
    share_BT1 = (held_BT / held_BT.sum(dim=1, keepdim=True)).unsqueeze(-1).to(encoded.x_BND.dtype)
    mean_B1D = (encoded.x_BND[:, : encoded.prefix] * share_BT1).sum(dim=1, keepdim=True)
    return with_prefix(without_prefix(encoded), mean_B1D)
