"""Utility as marginal contribution, checked: the model on any given kept set, leave-one-out, and the scores that utility is held against.

Theory: co-selection is max I(Y; X_S) - lambda |S|, so the score of a pair should rank pairs by what the answer loses without them. The set functions
here know no model: a set is a tuple of indices into T*N, a set function takes several and gives a number for each.
`theory_graph`, `theory_rivals` and `theory_sets` hold the other two checks. Legend as in the package, and R sets, C classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from vitgs.backbone.block import Block
from vitgs.backbone.tokens import Tokens, gather, without_prefix
from vitgs.errors import UsageError
from vitgs.graphsampler import encode as encoding
from vitgs.graphsampler.losses import sparsity_loss
from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.select import choose
from vitgs.reduction.selection import check_budget
from vitgs.reduction.utility import log_utility

Set = tuple[int, ...]
SetFunction = Callable[[Sequence[Set]], Tensor]

FEWEST_RANKED = 3
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A batch of clips as the model looks at them before it chooses. `tokens`: all patches, with their log utility as bias where the model uses it as
    one; `utility_BTN`: utility logits; `index_BS`: the model's own choice at `budget`, as at test time."""

    tokens: Tokens
    utility_BTN: Tensor
    index_BS: Tensor
    budget: float

    def kept(self, row_R: Tensor, index_RS: Tensor) -> Tokens:
        """The tokens at `index_RS` of the clips `row_R`, in time order."""
        expanded = Tokens(
            x_BND=self.tokens.x_BND[row_R],
            position_BN3=self.tokens.position_BN3[row_R],
            bias_BN=None if self.tokens.bias_BN is None else self.tokens.bias_BN[row_R],
        )
        return gather(expanded, index_RS.sort(dim=1).values)

    def own(self) -> Tokens:
        """The tokens that the model itself keeps."""
        return self.kept(torch.arange(len(self.index_BS)), self.index_BS)

    def without_bias(self) -> Scene:
        """The same choice, with no token's utility known to attention and pooling."""
        return replace(self, tokens=replace(self.tokens, bias_BN=None))


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Kept tokens behind the ViT. `encoded`: class token first where there is one; `nodes`: without it; `appearance_BSD`: patches, for edges."""

    encoded: Tokens
    nodes: Tokens
    appearance_BSD: Tensor


def check_model(model: GraphSampler) -> None:
    """Refuses what these checks can't be made on."""
    model.check_plain("theory")
    if model.utility is None:
        raise UsageError("theory checks a learned utility", given="a model that scores nothing", remedy="train with utility=learned")


@torch.no_grad()
def look(model: GraphSampler, clip_BTCHW: Tensor, budget: float) -> Scene:
    """All patches, their utility and the choice of a model in evaluation mode."""
    check_model(model)
    seen = model._look(clip_BTCHW)
    assert seen is not None and model.utility is not None
    utility_BTN = model.utility(seen, model.frames)
    share = check_budget(budget)
    index_BS = choose(utility_BTN, select=model.select, decision=model.decision, budget=share, noise=0.0, fixed=True)
    patches = seen if model.glance == "patch" else model.vit.patches(clip_BTCHW)
    bias_BN = log_utility(utility_BTN.flatten(1)) if model.biased else None
    tokens = Tokens(x_BND=patches.x_BND, position_BN3=patches.position_BN3, bias_BN=bias_BN)
    return Scene(tokens=tokens, utility_BTN=utility_BTN, index_BS=index_BS, budget=share)


def encode(model: GraphSampler, kept: Tokens) -> Passage:
    """Kept tokens through time embedding and ViT."""
    encoded = _through_vit(model, kept)
    return Passage(encoded=encoded, nodes=without_prefix(encoded), appearance_BSD=model.appearance(kept.x_BND))


def _through_vit(model: GraphSampler, kept: Tokens, run: encoding.Run | None = None) -> Tokens:
    """All tokens together, or a frame at a time, whatever number a frame has: these checks take single tokens away."""
    timed = kept if model.time is None else model.time(kept)
    return encoding.encode(model.vit, timed, 1 if model.attention == "joint" else None, model.frames, run)


@torch.no_grad()
def logits_of(model: GraphSampler, scene: Scene, row_R: Tensor, index_RS: Tensor) -> Tensor:
    """Logits `(R, C)` of the model on given pairs: row r sees the pairs `index_RS[r]` of clip `row_R[r]` and no others.

    What the model does behind its choice, with the choice given. The scorer has seen the whole clip all the same, so utilities stay as they are.
    """
    passage = encode(model, scene.kept(row_R, index_RS))
    nodes, final = passage.nodes, None
    if model.graph is not None:
        edges = model._edges(nodes, passage.appearance_BSD, scene.budget)
        nodes = nodes.with_x(model.graph(nodes.x_BND, edges, nodes.bias_BN))
    if model.bank is not None:
        nodes = nodes.with_x(model.bank(nodes.x_BND, nodes.position_BN3[..., 0].long(), model.frames, nodes.bias_BN))
    if model.memory is not None:
        x, final = model.memory(nodes.x_BND, nodes.position_BN3[..., 0].long(), model.frames, nodes.bias_BN)
        nodes = nodes.with_x(x)
    logits: Tensor = model.head(model._read(passage.encoded, passage.nodes, nodes))
    if final is not None and model.memory_head is not None:
        logits = logits + model.memory_head(final)
    return logits


def log_probability(model: GraphSampler, scene: Scene, row: int) -> Callable[[Sequence[Set]], Tensor]:
    """For clip `row`: sets -> log probabilities `(R, C)`; sets of one size are run together. A set must hold at least one pair."""

    def of(sets: Sequence[Set]) -> Tensor:
        places = defaultdict(list)
        for place, pairs in enumerate(sets):
            places[len(pairs)].append(place)
        found = torch.empty(len(sets), model.head.out_features)
        for same in places.values():
            for start in range(0, len(same), _ROWS_AT_ONCE):
                part = same[start : start + _ROWS_AT_ONCE]
                index = torch.tensor([sets[place] for place in part])
                found[part] = logits_of(model, scene, torch.full((len(part),), row), index).log_softmax(dim=1)
        return found

    return of


def cross_entropy(model: GraphSampler, scene: Scene, row: int, label: int) -> SetFunction:
    """The cross-entropy of clip `row` in nats, no label smoothing, as a set function."""
    of = log_probability(model, scene, row)
    return lambda sets: -of(sets)[:, label]


def leave_one_out(loss: SetFunction, kept: Set) -> Tensor:
    """How much the loss rises when one member is left out, `(S,)`."""
    values = loss([kept, *(tuple(other for other in kept if other != gone) for gone in kept)])
    return values[1:] - values[0]


def leave_frame_out(loss: SetFunction, kept: Set, tokens: int) -> tuple[list[int], Tensor]:
    """The frames with kept tokens, and how much the loss rises when all those of a frame are left out; none when one frame holds all."""
    frames = sorted({pair // tokens for pair in kept})
    if len(frames) < 2:
        return [], torch.empty(0)
    values = loss([kept, *(tuple(pair for pair in kept if pair // tokens != frame) for frame in frames)])
    return frames, values[1:] - values[0]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, ties by mean rank; NaN where it isn't defined: under three values, or all of one side equal."""
    if len(a) < FEWEST_RANKED or len(a) != len(b):
        return math.nan
    x, y = (torch.from_numpy(rankdata(side.double().numpy())) for side in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else math.nan


@torch.no_grad()
def attention_received(model: GraphSampler, kept: Tokens) -> Tensor:
    """Mean attention that each kept token gets in the ViT's last block, over queries (class tokens included; those of other frames give none, a frame
    at a time) and heads, `(B, S)`; the bias of utility is part of that attention where the model uses it."""
    got: list[Tensor] = []

    def all_but_last(tokens: Tokens, steps: Sequence[encoding.Step]) -> Tokens:
        for step in steps[:-1]:
            tokens = step(tokens)
        got.append(_last_attention(model, tokens))
        return tokens

    _through_vit(model, kept, all_but_last)
    return got[0]


def _last_attention(model: GraphSampler, tokens: Tokens) -> Tensor:
    """What each patch among the tokens before the last block gets of the attention there, `(B, S)`."""
    last = model.vit.blocks[-1]
    assert isinstance(last, Block)
    q, k, _ = last.attention.project(last.norm1(tokens.x_BND))
    logit_BhSS = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    bias_BS = tokens.key_bias_BN()
    if bias_BS is not None:
        logit_BhSS = logit_BhSS + bias_BS[:, None, None, :]
    if model.attention == "frame":
        classes = torch.arange(tokens.prefix, device=q.device).expand(len(q), -1)
        frame_BS = torch.cat([classes, tokens.position_BN3[:, tokens.prefix :, 0].long()], dim=1)
        logit_BhSS = logit_BhSS.masked_fill((frame_BS.unsqueeze(2) != frame_BS.unsqueeze(1)).unsqueeze(1), -torch.inf)
    return F.softmax(logit_BhSS, dim=-1).mean(dim=(1, 2))[:, tokens.prefix :]


def expected_kept(utility_BTN: Tensor) -> Tensor:
    """The expected kept fraction of each clip, `(B,)`: what the sparsity regulariser prices."""
    return torch.stack([sparsity_loss(one_1TN) for one_1TN in utility_BTN.split(1)])  # type: ignore[no-untyped-call]


def wanted(utility_BTN: Tensor) -> Tensor:
    """The share of pairs whose utility is above one half, `(B,)`: what a threshold instead of a budget would keep."""
    return (utility_BTN > 0).float().mean(dim=(1, 2))
