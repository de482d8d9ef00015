"""The method as a system: glance, select, encode what is kept, connect it by a graph, remember over time, read out.

Every part can be switched off by a knob: with budget 1, `utility` none, L = 0, memory 0 and bank 0 the plain ViT comes out, joint or by frames (with
`glance` block only a frame at a time and without class tokens).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitgs.backbone.batch import check_clip
from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.layerwise import layerwise
from vitgs.backbone.readout import MeanReadout, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, gather, join_frames, rows, split_frames, without_prefix
from vitgs.backbone.vit import Vit
from vitgs.errors import UsageError
from vitgs.graphsampler.bank import LongBank
from vitgs.graphsampler.between import run_between
from vitgs.graphsampler.cells import CELLS
from vitgs.graphsampler.diversity import check_diversity, choose_diverse
from vitgs.graphsampler.edges import SEARCH_WIDTH, Edges, build_edges, search_basis
from vitgs.graphsampler.encode import Run, encode, log_mass
from vitgs.graphsampler.glance import AppliedBefore, check_glance, first_block, half_patches, half_patches_through
from vitgs.graphsampler.graph import Graph
from vitgs.graphsampler.knobs import SPACE
from vitgs.graphsampler.losses import objective
from vitgs.graphsampler.memory import MemoryBank
from vitgs.graphsampler.merge import Merging, in_time_order, run_merging, tome, vtm
from vitgs.graphsampler.relative import Grid
from vitgs.graphsampler.relaxation import Multiplier, Rule, check_relaxation, relax
from vitgs.graphsampler.select import choose, frames_alike, kept_shape, ragged
from vitgs.reduction.merging import merge_counts
from vitgs.reduction.selection import check_budget, gumbel
from vitgs.reduction.utility import Utility, log_utility
from vitgs.spec import Clip, Size, System

GRAPH_WIDTH = 128
TEMPORAL_EDGES = 2


class GraphSampler(nn.Module):
    """ViT-GraphSampler; the knobs are described in `SYSTEM.space`."""

    def __init__(
        self,
        size: Size,
        clip: Clip,
        style: Style,
        *,
        budget: float,
        k: int,
        layers: int,
        memory: int,
        cell: str,
        bank: int,
        window: int,
        message: str,
        select: str,
        decision: str,
        attention: str,
        utility: str,
        readout: str,
        noise: str,
        sparsity: float,
        consistency: float,
        frozen: bool,
        glance: str,
        relaxation: str,
        temperature: str,
        diversity: float,
        merge: str,
        r: int,
        schedule: str,
        place: str,
        layer_decay: float,
        added_lr: float,
    ) -> None:
        super().__init__()
        self.shape = clip.shape
        self.frames, self.budget, self.k, self.window = clip.frames, check_budget(budget), k, window
        self.select, self.decision, self.attention, self.noise = select, decision, attention, noise
        self.sparsity, self.consistency = sparsity, consistency
        self.layer_decay, self.added_lr = layer_decay, added_lr
        check_relaxation(relaxation, select, attention)
        self.relaxation, self.temperature = relaxation, temperature
        check_diversity(diversity, select, relaxation)
        check_parts(merge, place, utility, relaxation, glance)
        if merge != "none" and attention == "frame" and ragged(select, decision):
            given = f"merge={merge}, select={select}, decision={decision}"
            remedy = "set decision=dense and select=both, or attention=joint, or merge=none"
            raise UsageError("merging a frame at a time needs the same number of tokens in each kept frame", given=given, remedy=remedy)
        self.diversity, self.merge, self.place = diversity, merge, place
        self.merges = merge_counts(r if merge != "none" else 0, size.depth, schedule)
        self.multiplier = Multiplier() if relaxation == "lagrange" else None
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.patch = int(self.vit.embed.patch.kernel_size[0])
        check_glance(glance, self.patch)
        self.glance = glance
        self.tokens = self.vit.embed.count
        scored = utility == "learned" or select in ("both", "frame", "token")
        self.biased = utility == "learned"
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if scored else None
        self.blocks_done = int(scored and glance == "block")
        if self.utility is not None and glance == "half" and not diversity:  # diversity compares whole tokens
            self.utility.down = AppliedBefore(size.width, self.utility.down.out_features)
        # Alone, a frame is a picture, as in pretraining, and its tokens start as they were there; joint attention must tell frames apart at once.
        time_std = style.time_init_std if attention == "joint" else 0.0
        self.time = TimeEmbed(clip.frames, size.width, time_std) if attention == "joint" or layers or memory else None
        narrow = min(size.width, GRAPH_WIDTH)
        self.graph = Graph(size.width, narrow, layers, message=message, eps=style.eps) if layers else None
        basis = search_basis(size.width).to(torch.get_default_device()) if layers and size.width > SEARCH_WIDTH else None
        self.register_buffer("basis", basis, persistent=False)
        self.basis: Tensor | None
        self.memory = MemoryBank(size.width, narrow, memory, eps=style.eps, cell=CELLS[cell]) if memory else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)
        self.memory_head = nn.Linear(memory * narrow, clip.class_count, bias=False) if memory else None
        # After all else, so that the rest starts from the same random numbers with a bank as without.
        self.bank = LongBank(size.width, narrow, bank, eps=style.eps) if bank else None
        if frozen:
            self.vit.requires_grad_(False)

    def forward(self, clip_BTCHW: Tensor, budget: float | None = None) -> Tensor:
        return self.logits_and_utility(clip_BTCHW, budget)[0]

    def logits_and_utility(
        self, clip_BTCHW: Tensor, budget: float | None = None, noise: float = 0.0, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Logits `(B, classes)` and the utility of every pair `(B, T, N)`, None when nothing scores.

        `noise`: scale of the Gumbel noise on the choice. `temperature`: of a relaxation.
        """
        check_clip(clip_BTCHW, self.shape)
        share = self.budget if budget is None else check_budget(budget)
        utility: Tensor | None
        behind: Tensor | None = None
        with stage("select"):
            if self.training and self.relaxation != "bias" and math.prod(self._shape(share)) < self.frames * self.tokens:
                kept, utility, behind = self._relaxed(clip_BTCHW, share, noise, temperature)
            else:
                kept, utility = self._keep(clip_BTCHW, share, noise)
            appearance = self.appearance(kept.x_BND)
            kept = kept if self.time is None else self.time(kept)
        between = self.graph is not None and self.place == "between"
        if any(self.merges):
            encoded, before, appearance = self._encode_merging(kept, appearance, share)
        else:
            encoded = self._encode_between(kept, appearance, share) if between else self._encode(kept, share)
            before = self._together(without_prefix(encoded), clip_BTCHW.shape[0])
        if behind is not None:
            before, appearance = gather(before, behind), rows(appearance, behind)
        nodes, final = before, None
        if self.graph is not None and not between:
            with stage("graph"):
                nodes = nodes.with_x(self.graph(nodes.x_BND, self._edges(nodes, appearance, share), nodes.key_bias_BN()))
        if self.bank is not None:
            with stage("memory"):
                nodes = nodes.with_x(self.bank(nodes.x_BND, nodes.position_BN3[..., 0].long(), self.frames, nodes.key_bias_BN()))
        if self.memory is not None:
            with stage("memory"):
                x, final = self.memory(nodes.x_BND, nodes.position_BN3[..., 0].long(), self.frames, nodes.key_bias_BN())
                nodes = nodes.with_x(x)
        with stage("head"):
            logits: Tensor = self.head(self._read(encoded, before, nodes))
            if final is not None and self.memory_head is not None:
                logits = logits + self.memory_head(final)
            return logits, utility

    def check_plain(self, use: str) -> None:
        """Refuses what goes through utility, ViT, graph, bank and memory one after the other, `use`, for a model where that isn't all."""
        if any(self.merges) or self.place == "between" or self.diversity or self.blocks_done:
            given = f"merge={self.merge}, place={self.place}, diversity={self.diversity:g}, glance={self.glance}"
            rule = f"{use} needs merge=none, place=behind, diversity=0, and a glance before the blocks"
            raise UsageError(rule, given=given, remedy="train a model with these")

    def appearance(self, x_BSD: Tensor) -> Tensor:
        """What edges are drawn by, `(B, S, at most SEARCH_WIDTH)`, of embedded patches."""
        return x_BSD if self.basis is None else x_BSD.detach() @ self.basis

    def _shape(self, budget: float) -> tuple[int, int]:
        return kept_shape(self.select, self.decision, budget, self.frames, self.tokens)

    def _keep(self, clip_BTCHW: Tensor, budget: float, noise: float) -> tuple[Tokens, Tensor | None]:
        """The chosen tokens, really fewer, with their log utility as bias when the utility is on."""
        seen = self._look(clip_BTCHW)
        if self.utility is None or seen is None:
            flat = clip_BTCHW.new_zeros(clip_BTCHW.shape[0], self.frames, self.tokens)
            utility = None
        else:
            utility = flat = self.utility(seen, self.frames)
        index_BS = self._choose(flat, seen, budget, noise)
        whole = index_BS.shape[1] == self.frames * self.tokens
        if seen is None or self.glance == "half":
            kept = self.vit.patches(clip_BTCHW) if whole else self.vit.embed.some(clip_BTCHW, index_BS)
        else:
            kept = seen if whole else gather(seen, index_BS)
        if utility is not None and self.biased:
            bias = log_utility(rows(utility.flatten(1), index_BS))
            kept = Tokens(x_BND=kept.x_BND, position_BN3=kept.position_BN3, bias_BN=bias)
        return kept, utility

    def _choose(self, score_BTN: Tensor, seen: Tokens | None, budget: float, noise: float) -> Tensor:
        """The hard choice, by utility alone or with a share of coverage."""
        if not self.diversity or seen is None or math.prod(self._shape(budget)) == self.frames * self.tokens:
            return choose(score_BTN, select=self.select, decision=self.decision, budget=budget, noise=noise, fixed=not self.training)
        noisy_BTN = score_BTN.detach() + noise * gumbel(score_BTN) if noise else score_BTN.detach()
        return choose_diverse(noisy_BTN, seen.x_BND, select=self.select, decision=self.decision, budget=budget, diversity=self.diversity)

    def _relaxed(self, clip_BTCHW: Tensor, budget: float, noise: float, temperature: float) -> tuple[Tokens, Tensor, Tensor | None]:
        """What a relaxation trains on in the place of `_keep`, the utility, and which of the tokens go on behind the ViT (None: all)."""
        seen = self._look(clip_BTCHW)
        assert seen is not None and self.utility is not None
        utility_BTN = self.utility(seen, self.frames)

        def embed(index_BS: Tensor | None) -> Tokens:
            if self.glance != "half":
                return seen if index_BS is None else gather(seen, index_BS)
            return self.vit.patches(clip_BTCHW) if index_BS is None else self.vit.embed.some(clip_BTCHW, index_BS)

        rule = Rule(select=self.select, decision=self.decision, budget=budget)
        kept, behind = relax(self.relaxation, embed, utility_BTN, rule, self.multiplier, noise=noise, temperature=temperature)
        if self.biased:
            t, y, x = kept.position_BN3.long().unbind(-1)
            index_BS = t * self.tokens + y * self.vit.embed.columns + x
            bias_BS = log_utility(rows(utility_BTN.flatten(1), index_BS.expand(len(utility_BTN), -1)))
            kept = replace(kept, bias_BN=bias_BS if kept.bias_BN is None else kept.bias_BN + bias_BS)
        return kept, utility_BTN, behind

    def _look(self, clip_BTCHW: Tensor) -> Tokens | None:
        """What the utility scores; None when nothing does, and then only what is kept is ever embedded."""
        if self.utility is None:
            return None
        if self.glance == "patch":
            return self.vit.patches(clip_BTCHW)
        if self.glance == "block":
            return first_block(self.vit, clip_BTCHW)
        if isinstance(first := self.utility.down, AppliedBefore):
            return half_patches_through(first, self.vit.embed, clip_BTCHW)
        return half_patches(self.vit.embed, clip_BTCHW)

    def _encode(self, kept: Tokens, budget: float, run: Run | None = None) -> Tokens:
        """The ViT over what is kept: all together, or a frame at a time."""
        alike = frames_alike(self.attention, self.select, self.decision, budget, self.frames, self.tokens)
        return encode(self.vit, kept, alike, self.frames, run, self.blocks_done)

    def _encode_merging(self, kept: Tokens, appearance_BSD: Tensor, budget: float) -> tuple[Tokens, Tokens, Tensor]:
        """The ViT with merging between its blocks: its tokens, and the patch tokens among them with their appearance, in time order."""
        batch = kept.x_BND.shape[0]
        merging: Merging = tome if self.merge == "tome" else partial(vtm, noisy=self.training)
        if self.attention == "frame":
            frames = self._shape(budget)[0]
            kept, appearance_BSD = split_frames(kept, frames), appearance_BSD.reshape(batch * frames, -1, appearance_BSD.shape[2])
        encoded, appearance_BSD = run_merging(self.vit, kept, appearance_BSD, merging, self.merges, self.frames)
        nodes = self._together(without_prefix(encoded), batch)
        nodes, appearance_BSD = in_time_order(nodes, appearance_BSD.reshape(batch, nodes.count, -1))
        return encoded, nodes, appearance_BSD

    def _encode_between(self, kept: Tokens, appearance_BSD: Tensor, budget: float) -> Tokens:
        """The ViT with graph layers between its blocks."""
        assert self.graph is not None
        edges = self._edges(kept, appearance_BSD, budget)
        return self._encode(kept, budget, partial(run_between, self.vit, self.graph, edges, kept.bias_BN))

    def _edges(self, nodes: Tokens, appearance_BSD: Tensor, budget: float) -> Edges:
        """Edges by appearance and time, in windows of chunks as long as a frame's share of what is kept."""
        frames = self._shape(budget)[0]
        chunk = -(-nodes.count // (frames if frames > 1 else self.frames))
        embed = self.vit.embed
        grid = None if any(self.merges) else Grid(self.frames, embed.rows, embed.columns)
        return build_edges(appearance_BSD, nodes.position_BN3, k=self.k, temporal=TEMPORAL_EDGES, chunk=chunk, window=self.window, grid=grid)

    def _together(self, nodes: Tokens, batch: int) -> Tokens:
        return nodes if nodes.x_BND.shape[0] == batch else join_frames(nodes, nodes.x_BND.shape[0] // batch)

    def _read(self, encoded: Tokens, before: Tokens, nodes: Tokens) -> Tensor:
        """Pooled nodes; or class tokens, weighted by what the tokens that they saw weigh, plus the mean of what graph, bank and memory changed."""
        if encoded.prefix == 0:
            pooled: Tensor = self.readout(nodes)
            return pooled
        token_BMD: Tensor = self.readout(encoded).reshape(nodes.x_BND.shape[0], -1, nodes.x_BND.shape[2])
        if token_BMD.shape[1] == 1:
            token = token_BMD[:, 0]
        else:
            share_BM = log_mass(nodes, token_BMD.shape[1]).softmax(dim=1).to(token_BMD.dtype)
            token = torch.einsum("bm,bmd->bd", share_BM, token_BMD)
        if nodes is not before:
            token = token + MeanReadout()(nodes.with_x(nodes.x_BND - before.x_BND))
        return token


def check_parts(merge: str, place: str, utility: str, relaxation: str, glance: str) -> None:
    """Refuses parts that can't be put together."""
    if merge == "vtm" and utility == "none":
        raise UsageError("merge=vtm picks its targets by utility", given="utility=none", remedy="set utility=learned, or merge=tome")
    if merge != "none" and (place == "between" or relaxation == "lagrange" or glance == "block"):
        given = f"merge={merge}, place={place}, relaxation={relaxation}, glance={glance}"
        rule = "merging needs place=behind, and neither relaxation=lagrange nor glance=block"
        raise UsageError(rule, given=given, remedy="set merge=none, or the others so")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """What is trained: lower blocks of the ViT with the smaller learning rates of `layer_decay`, what is added to the ViT with that of `added_lr`."""
    assert isinstance(model, GraphSampler)
    return layerwise(model, model.layer_decay, model.added_lr)


SYSTEM = System(
    name="graphsampler",
    group="ours",
    paper="this project",
    construct=GraphSampler,
    objective=objective,
    parameter_groups=parameter_groups,
    paper_rule={"budget": 0.25},
    space=SPACE,
)
