"""Video without end in constant memory: chunk after chunk, each with a budget of its own, and what time needs carried along.

    streamer = Streamer(model, chunk_frames=4, budget=0.25)
    state = None
    for chunk_BTCHW in video:
        state, logits_BC = streamer.step(state, chunk_BTCHW)  # the answer so far

What a chunk computes, and what it carries on; `onepass.whole` computes the same of a whole clip at once:

* **Selection is causal**: utility sees the chunk and, for motion and the light policy, the two frames before it (carried); of a chunk's pairs the
  budget keeps `kept_count`, by the model's own knobs.
* **The ViT** runs over the chunk's kept tokens, joint within the chunk or a frame at a time. The time table has an entry for each frame of the clips
  that the model was trained on: a chunk has the entries of its frames while there are such, and from then on the last ones, as the end of a clip.
  So frames within a chunk stay told apart and in order, whatever came before.
* **The graph**: nodes hear those of their chunk and of the `past_chunks` before it, which are not updated again; positions are relative. Left out,
  `past_chunks` is as many as hold the model's `window`, which counts in frames; for a window of the whole clip, as many as hold a clip.
* **The bank** goes on from the carried entries, **memory** from the carried states, the **readout** from carried sums. Class tokens are averaged,
  each weighted by what the tokens that it saw weigh.

One chunk as long as the clip is the model itself, when the model's window is 0 or covers the clip: then no node is out of another's sight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitgs.backbone.batch import check_clip
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, gather, rows, without_prefix
from vitgs.errors import UsageError
from vitgs.graphsampler.bank import Entries
from vitgs.graphsampler.causal import Pooled, blank_memory, causal_edges, joined, listen, pool, pool_nodes, remember
from vitgs.graphsampler.encode import encode, log_mass
from vitgs.graphsampler.graph import GraphLayer
from vitgs.graphsampler.memory import Memory
from vitgs.graphsampler.model import TEMPORAL_EDGES, GraphSampler
from vitgs.graphsampler.select import choose, frames_alike
from vitgs.reduction.selection import check_budget
from vitgs.reduction.utility import log_utility

# Frames before a chunk on which its utilities depend: the light policy looks a frame back, and that frame's motion one further.
GLANCE_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class ChunkGrid:
    """How a video is cut and thinned. `past_chunks`: how many chunks before its own a node hears."""

    chunk_frames: int
    budget: float
    past_chunks: int


def grid_of(model: GraphSampler, chunk_frames: int, budget: float | None, past_chunks: int | None) -> ChunkGrid:
    """The grid with what was left out filled in from the model (its budget, its window); an error in one line for one that can't be."""
    model.check_plain("streaming")
    share = model.budget if budget is None else check_budget(budget)
    if chunk_frames < 1:
        raise UsageError("a chunk has at least one frame", given=chunk_frames, remedy="set the chunk's frames to 1 or more")
    if model.time is not None and chunk_frames > model.frames:
        rule = "a chunk is at most as long as the clips that the model was trained on, because its time table ends there"
        raise UsageError(rule, given=f"{chunk_frames} frames, trained on {model.frames}", remedy=f"set the chunk's frames to {model.frames} or less")
    pairs = chunk_frames * model.tokens
    if model.select != "none" and share * pairs + 1e-9 < 1:
        remedy = f"set the budget to {math.ceil(1e5 / pairs) / 1e5:g} or more, or the chunk's frames higher"
        raise UsageError("a budget must keep at least one token of a chunk", given=f"{share:g} of {pairs} tokens", remedy=remedy)
    if past_chunks is not None and past_chunks < 0:
        raise UsageError("a node hears 0 or more earlier chunks", given=past_chunks, remedy="set past_chunks to 0 or more, or leave it out")
    reach = -(-(model.window or model.frames) // chunk_frames)
    return ChunkGrid(chunk_frames=chunk_frames, budget=share, past_chunks=reach if past_chunks is None else past_chunks)


@dataclass(frozen=True, kw_only=True)
class Past:
    """The nodes of one earlier chunk. `position_BP3`: t counted from the first frame that is still to come; `said_LBPX`: by round."""

    position_BP3: Tensor
    appearance_BPD: Tensor
    bias_BP: Tensor | None
    said_LBPX: Tensor


@dataclass(frozen=True, kw_only=True)
class State:
    """All that is carried from chunk to chunk; its size is constant once `past` is full.

    `frames`: seen so far; `glance_BND`: what utility saw in the last frames; `past`: of the last chunks, oldest first; `bank`: what the bank holds;
    `pooled`: readout so far, of class tokens where there are some; `changed`: what graph, bank and memory added to the nodes, pooled, where class
    tokens are to hear of it.
    """

    frames: int
    glance_BND: Tensor | None
    past: tuple[Past, ...]
    bank: Entries | None
    memory: Memory | None
    pooled: Pooled
    changed: Pooled | None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors that are carried."""
        return _bytes(self)


class Streamer:
    """Runs a model over a video chunk by chunk, without gradients. `budget`: kept fraction of a chunk's (frame, token) pairs."""

    def __init__(self, model: GraphSampler, chunk_frames: int, budget: float | None = None, *, past_chunks: int | None = None) -> None:
        self.model, self.grid = model, grid_of(model, chunk_frames, budget, past_chunks)

    @torch.no_grad()
    def step(self, state: State | None, clip_BTCHW: Tensor) -> tuple[State, Tensor]:
        """The state after one more chunk, and the answer so far, logits `(B, classes)`. None is the start; the last chunk may be shorter."""
        self._check(state, clip_BTCHW)
        model, batch, frames = self.model, len(clip_BTCHW), clip_BTCHW.shape[1]
        seen = 0 if state is None else state.frames
        with stage("select"):
            kept, glance_BND = self._keep(state, clip_BTCHW)
        encoded = self._encode(self._timed(kept, seen, frames), frames)
        before = model._together(without_prefix(encoded), batch)
        nodes, bank, memory = before, None, None
        past: tuple[Past, ...] = ()
        if model.graph is not None:
            with stage("graph"):
                nodes, past = self._hear(state, before, self.model.appearance(kept.x_BND), frames)
        if model.bank is not None:
            with stage("memory"):
                x_BSD, bank = model.bank.go_on(nodes, frames, None if state is None else state.bank)
                nodes = nodes.with_x(x_BSD)
        if model.memory is not None:
            with stage("memory"):
                earlier = None if state is None else state.memory
                x_BSD, memory = remember(model.memory, nodes, frames, earlier or blank_memory(model.memory, batch))
                nodes = nodes.with_x(x_BSD)
        with stage("head"):
            pooled, changed = self._read(state, encoded, before, nodes)
            answer_BD = pooled.mean_Bhd.flatten(1) if changed is None else (pooled.mean_Bhd + changed.mean_Bhd).flatten(1)
            logits_BC: Tensor = model.head(answer_BD.to(nodes.x_BND.dtype))
            if memory is not None and model.memory_head is not None:
                logits_BC = logits_BC + model.memory_head(memory.state_BMW.flatten(1))
        state = State(frames=seen + frames, glance_BND=glance_BND, past=past, bank=bank, memory=memory, pooled=pooled, changed=changed)
        return state, logits_BC

    def _check(self, state: State | None, clip_BTCHW: Tensor) -> None:
        longest = self.grid.chunk_frames
        frames = clip_BTCHW.shape[1] if _is_clip(clip_BTCHW) else longest
        if not 1 <= frames <= longest:
            remedy = f"cut the video into chunks of {longest} frames"
            raise UsageError(f"a chunk has 1 to {longest} frames, as the streamer was told", given=frames, remedy=remedy)
        check_clip(clip_BTCHW, (frames, *self.model.shape[1:]))
        if state is not None and len(state.pooled.mean_Bhd) != len(clip_BTCHW):
            given = f"{len(clip_BTCHW)} after {len(state.pooled.mean_Bhd)}"
            raise UsageError("all chunks of a stream have the same number of videos", given=given, remedy="start a new stream with state None")

    def _keep(self, state: State | None, clip_BTCHW: Tensor) -> tuple[Tokens, Tensor | None]:
        """The chunk's chosen tokens, t counted from its first frame, and what the next chunk's utility needs of it."""
        model, batch, frames = self.model, len(clip_BTCHW), clip_BTCHW.shape[1]
        looked, utility_BTN, glance_BND = model._look(clip_BTCHW), None, None
        if model.utility is not None and looked is not None:
            carried = None if state is None else state.glance_BND
            sight_BND = looked.x_BND if carried is None else torch.cat([carried, looked.x_BND], dim=1)
            span = sight_BND.shape[1] // model.tokens
            position_BN3 = model.vit.embed.positions(batch, span, sight_BND)
            utility_BTN = model.utility(Tokens(x_BND=sight_BND, position_BN3=position_BN3), span)[:, -frames:]
            glance_BND = sight_BND[:, -GLANCE_FRAMES * model.tokens :].clone()
        scored_BTN = clip_BTCHW.new_zeros(batch, frames, model.tokens) if utility_BTN is None else utility_BTN
        index_BS = choose(scored_BTN, select=model.select, decision=model.decision, budget=self.grid.budget, noise=0.0, fixed=True)
        every = index_BS.shape[1] == frames * model.tokens
        if looked is None or model.glance == "half":
            kept = model.vit.patches(clip_BTCHW) if every else model.vit.embed.some(clip_BTCHW, index_BS)
        else:
            kept = looked if every else gather(looked, index_BS)
        if utility_BTN is not None and model.biased:
            kept = replace(kept, bias_BN=log_utility(rows(utility_BTN.flatten(1), index_BS)))
        return kept, glance_BND

    def _timed(self, kept: Tokens, seen: int, frames: int) -> Tokens:
        """With the time table's vectors for frames `seen` and on, or the last ones where there are no such."""
        if self.model.time is None:
            return kept
        first = min(seen, self.model.frames - frames)
        later = replace(kept, position_BN3=kept.position_BN3 + kept.position_BN3.new_tensor((first, 0, 0)))
        return kept.with_x(self.model.time(later).x_BND)

    def _encode(self, kept: Tokens, frames: int) -> Tokens:
        model = self.model
        alike = frames_alike(model.attention, model.select, model.decision, self.grid.budget, frames, model.tokens)
        return encode(model.vit, kept, alike, frames)

    def _hear(self, state: State | None, nodes: Tokens, appearance_BSD: Tensor, frames: int) -> tuple[Tokens, tuple[Past, ...]]:
        """The chunk's nodes after all rounds, and the past of the next chunk."""
        model = self.model
        past: tuple[Past, ...] = () if state is None else state.past
        assert model.graph is not None
        heard_BAD = torch.cat([*(p.appearance_BPD for p in past), appearance_BSD], dim=1)
        position_BA3 = torch.cat([*(p.position_BP3 for p in past), nodes.position_BN3], dim=1)
        edges = causal_edges(heard_BAD, position_BA3, nodes.count, k=model.k, temporal=TEMPORAL_EDGES)
        bias_BA = None
        if nodes.bias_BN is not None:
            bias_BA = torch.cat([*(p.bias_BP for p in past if p.bias_BP is not None), nodes.bias_BN], dim=1)
        x_BSD, said = nodes.x_BND, []
        for i, (layer, logit_BSEh) in enumerate(zip(model.graph.layers, model.graph.logits(edges, bias_BA), strict=True)):
            assert isinstance(layer, GraphLayer)
            earlier_BPX = torch.cat([p.said_LBPX[i] for p in past], dim=1) if past else None
            x_BSD, said_BSX = listen(layer, x_BSD, earlier_BPX, edges, logit_BSEh)
            said.append(said_BSX)
        now = Past(position_BP3=nodes.position_BN3, appearance_BPD=appearance_BSD, bias_BP=nodes.bias_BN, said_LBPX=torch.stack(said))
        ago = now.position_BP3.new_tensor((frames, 0, 0))
        kept_past = (*past, now)[max(0, len(past) + 1 - self.grid.past_chunks) :]
        return nodes.with_x(x_BSD), tuple(replace(p, position_BP3=p.position_BP3 - ago) for p in kept_past)

    def _read(self, state: State | None, encoded: Tokens, before: Tokens, nodes: Tokens) -> tuple[Pooled, Pooled | None]:
        """The pooled nodes so far; class tokens are pooled apart from what graph, bank and memory changed."""
        readout, pooled, changed = self.model.readout, None if state is None else state.pooled, None if state is None else state.changed
        if encoded.prefix == 0:
            return joined(pooled, pool_nodes(readout, nodes)), None
        token_BMD = torch.unflatten(readout(encoded), 0, (len(nodes.x_BND), -1))
        pooled = joined(pooled, pool(token_BMD, log_mass(nodes, token_BMD.shape[1]).unsqueeze(2)))
        if nodes is before:
            return pooled, None
        return pooled, joined(changed, pool_nodes(readout, nodes.with_x(nodes.x_BND - before.x_BND)))


@torch.no_grad()
def stream(model: GraphSampler, clip_BTCHW: Tensor, chunk_frames: int, budget: float | None = None, *, past_chunks: int | None = None) -> Tensor:
    """The logits `(B, classes)` after the last chunk of a clip `(B, T, C, H, W)` of any length."""
    streamer, state = Streamer(model, chunk_frames, budget, past_chunks=past_chunks), None
    if not _is_clip(clip_BTCHW):
        check_clip(clip_BTCHW, model.shape)
    for chunk_BTCHW in torch.split(clip_BTCHW, chunk_frames, dim=1):
        state, logits_BC = streamer.step(state, chunk_BTCHW)
    return logits_BC


class Streamed(nn.Module):
    """A model that answers after streaming over the clip, for what evaluates or measures modules."""

    def __init__(self, model: GraphSampler, chunk_frames: int, *, past_chunks: int | None = None) -> None:
        super().__init__()
        self.model, self.chunk_frames, self.past_chunks = model, chunk_frames, past_chunks

    def forward(self, clip_BTCHW: Tensor, budget: float | None = None) -> Tensor:
        """Logits `(B, classes)`."""
        return stream(self.model, clip_BTCHW, self.chunk_frames, budget, past_chunks=self.past_chunks)


def _is_clip(value: object) -> bool:
    """Whether it has frames to count: a tensor of five dimensions. Anything else is for `check_clip` to refuse."""
    return isinstance(value, Tensor) and value.dim() == 5


def _bytes(value: Any) -> int:
    """Bytes of all tensors in dataclasses and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return sum(_bytes(getattr(value, f.name)) for f in fields(value)) if hasattr(value, "__dataclass_fields__") else 0
