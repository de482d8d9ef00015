"""A memory bank after Temporal Graph Networks (Rossi 2020, section 3): slots updated in time order by messages from the nodes of each frame.

Equations: message m_s(t) = sum_i softmax_i(w_s.h_i + log u_i) V h_i over the nodes i of frame t, with an encoding of the time since the last update;
state s(t) = GRU(m_s(t), s(t-)), or another of `cells.CELLS`; a frame without nodes leaves the state as it is. Nodes read the state of their own time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitgs.backbone.runs import may_read
from vitgs.graphsampler.bags import flat_rows, weigh_groups, weigh_rows
from vitgs.graphsampler.cells import CELLS, Cell, run_cell, run_whole

# Most pairs of a node with a frame and slot, of all clips, up to which weighing all of them pays in inference on a CPU: measured, see DECISIONS.md.
FEW_PLACES = 100_000


def pool_by_frame(value_BSD: Tensor, logit_BSM: Tensor, frame_BS: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """For each frame and slot the softmax-weighted mean over that frame's nodes: `(B, T, M, D)`, and which frames have nodes `(B, T)`.

    Linear in the number of nodes: a segment softmax by scattered sums, each frame and slot from its own highest logit, so that a frame far below the
    rest of the clip is weighed as it would be alone.
    """
    batch, count, slots = logit_BSM.shape
    if may_read(value_BSD) and batch * frames * slots * count <= FEW_PLACES:
        return _pool_all(value_BSD, logit_BSM, frame_BS, frames)
    frame_BSM = frame_BS.unsqueeze(-1).expand(-1, -1, slots)
    lowest_BTM = logit_BSM.new_full((batch, frames, slots), torch.finfo(logit_BSM.dtype).min)
    peak_BTM = lowest_BTM.scatter_reduce(1, frame_BSM, logit_BSM.detach(), "amax")
    weight_BSM = (logit_BSM - peak_BTM.gather(1, frame_BSM)).exp()
    one_BS1 = torch.ones_like(weight_BSM[..., :1])
    if may_read(value_BSD):
        frame_N = flat_rows(frame_BS, frames).flatten()
        top = torch.unflatten(weigh_groups(value_BSD.flatten(0, 1), weight_BSM.flatten(0, 1), frame_N, batch * frames), 0, (batch, frames))
        weight, held = torch.split(scattered(torch.cat([weight_BSM, one_BS1], dim=2), frame_BS, frames), [slots, 1], dim=2)
    else:
        weighted_BSX = (weight_BSM.unsqueeze(-1) * value_BSD.unsqueeze(2)).flatten(2)
        total_BTX = scattered(torch.cat([weighted_BSX, weight_BSM, one_BS1], dim=2), frame_BS, frames)
        top, weight, held = torch.split(total_BTX, [weighted_BSX.shape[2], slots, 1], dim=2)
        top = torch.unflatten(top, 2, (slots, -1))
    # The best node of a frame weighs 1, so only a frame without nodes is below that.
    return top / weight.unsqueeze(-1).clamp_min(1.0), held.squeeze(-1) > 0


def _pool_all(value_BSD: Tensor, logit_BSM: Tensor, frame_BS: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """The same by one softmax over all nodes for each frame and slot, those of other frames shut: for few of them more sums, but no sorting."""
    own_BT1S = (frame_BS.unsqueeze(1) == torch.arange(frames).unsqueeze(1)).unsqueeze(2)
    score_BTMS = torch.where(own_BT1S, logit_BSM.transpose(1, 2).unsqueeze(1), torch.finfo(logit_BSM.dtype).min)
    # The product shuts frames without nodes, and nodes of no weight at all, out.
    weight_BXS = (score_BTMS.softmax(dim=3) * own_BT1S).flatten(1, 2).to(value_BSD.dtype)
    return torch.unflatten(weight_BXS @ value_BSD, 1, (frames, -1)), own_BT1S.any(dim=3).squeeze(2)


def scattered(value_BSY: Tensor, frame_BS: Tensor, frames: int) -> Tensor:
    """The sums over each frame's nodes, `(B, T, Y)`."""
    zeros_BTY = value_BSY.new_zeros(len(value_BSY), frames, value_BSY.shape[2])
    return zeros_BTY.scatter_add(1, frame_BS.unsqueeze(-1).expand(-1, -1, value_BSY.shape[2]), value_BSY)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The slots' states, and how many frames have passed since the last one with nodes (counted from before the video while there was none)."""

    state_BMW: Tensor
    since_B: Tensor


class MemoryBank(nn.Module):
    """`slots` states of width `memory_width`; one `cell` shared by all slots."""

    def __init__(self, width: int, memory_width: int, slots: int, *, eps: float, cell: Cell = CELLS["gru"]) -> None:
        super().__init__()
        self.slots, self.width, self.cell = slots, memory_width, cell
        self.norm = nn.LayerNorm(width, eps=eps)
        self.write = nn.Linear(width, slots)
        self.value = nn.Linear(width, memory_width)
        self.slot = nn.Parameter(torch.randn(slots, memory_width) * 0.5)
        self.gap = nn.Linear(2, memory_width)
        self.input = nn.Linear(memory_width, cell.products * memory_width)
        self.hidden = nn.Linear(memory_width, cell.products * memory_width)
        self.read = nn.Linear(memory_width, width)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, x_BSD: Tensor, frame_BS: Tensor, frames: int, bias_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nodes enriched by the state of their time `(B, S, D)`, and the final state `(B, M * memory_width)`."""
        logit_BSM, message_BTMW, held_BT = self.messages(x_BSD, frame_BS, frames, bias_BS)
        states_BTMW = self.update(message_BTMW, held_BT)
        return self.tell(x_BSD, frame_BS, logit_BSM, states_BTMW), states_BTMW[:, -1].flatten(1)

    def messages(self, x_BSD: Tensor, frame_BS: Tensor, frames: int, bias_BS: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes' affinities to the slots `(B, S, M)`, what each frame writes into each `(B, T, M, W)`, and which frames have nodes `(B, T)`."""
        h_BSD = self.norm(x_BSD)
        logit_BSM: Tensor = self.write(h_BSD)
        biased_BSM = logit_BSM if bias_BS is None else logit_BSM + bias_BS.unsqueeze(-1)
        return logit_BSM, *pool_by_frame(self.value(h_BSD), biased_BSM, frame_BS, frames)

    def incoming(self, message_BTMW: Tensor, held_BT: Tensor, since_B: Tensor | None) -> Tensor:
        """The cell's products of all messages at once, `(B, T, M, X)`."""
        products_BTMX: Tensor = self.input(self.news(message_BTMW, held_BT, since_B))
        return products_BTMX

    def news(self, message_BTMW: Tensor, held_BT: Tensor, since_B: Tensor | None) -> Tensor:
        """What the cell is given of each frame, `(B, T, M, W)`: its message, for which slot, and how long after the last."""
        gap_BT2 = gap_features(frames_since(held_BT, since_B), message_BTMW.dtype)
        news_BTMW: Tensor = message_BTMW + self.slot + self.gap(gap_BT2).unsqueeze(2)
        return news_BTMW

    def update(self, message_BTMW: Tensor, held_BT: Tensor, earlier: Memory | None = None) -> Tensor:
        """The states after each frame, `(B, T, M, W)`, in time order; `earlier`: what the memory goes on from, None for its start."""
        state_BMW = self.slot.expand(held_BT.shape[0], -1, -1) if earlier is None else earlier.state_BMW
        since_B = None if earlier is None else earlier.since_B
        if may_read(message_BTMW) and message_BTMW.dtype == state_BMW.dtype:
            weights = [self.input.weight, self.hidden.weight, self.input.bias, self.hidden.bias]
            return run_whole(self.cell, weights, self.news(message_BTMW, held_BT, since_B), held_BT, state_BMW)
        return run_cell(self.cell, self.hidden, self.incoming(message_BTMW, held_BT, since_B), held_BT, state_BMW)

    def tell(self, x_BSD: Tensor, frame_BS: Tensor, logit_BSM: Tensor, states_BTMW: Tensor) -> Tensor:
        """The nodes after they have read the state of their own time, `(B, S, D)`."""
        address_BSM = logit_BSM.softmax(dim=-1)
        if may_read(x_BSD):
            # What a slot says is projected once a frame and not once a node; the addresses of a node add up to 1, and so does its bias.
            said_NX, row_BSM = self.read(states_BTMW).flatten(0, 2).to(x_BSD.dtype), slot_rows(frame_BS, states_BTMW.shape[1], self.slots)
            return weigh_rows(said_NX, row_BSM.flatten(0, 1), address_BSM.flatten(0, 1)).view_as(x_BSD).add_(x_BSD)
        index = frame_BS[:, :, None].expand(-1, -1, self.slots * self.width)
        own_BSMW = torch.unflatten(states_BTMW.flatten(2).gather(1, index), 2, (self.slots, self.width))
        read_BSW = (address_BSM.unsqueeze(2) @ own_BSMW).squeeze(2)
        out_BSD: Tensor = x_BSD + self.read(read_BSW)
        return out_BSD


def slot_rows(frame_BS: Tensor, frames: int, slots: int) -> Tensor:
    """Where the slots of each node's frame lie among all clips' frames and slots put one behind the other, `(B, S, M)`."""
    return (flat_rows(frame_BS, frames) * slots).unsqueeze(2) + torch.arange(slots, device=frame_BS.device)


def gap_features(since_B_: Tensor, dtype: torch.dtype) -> Tensor:
    """What the memory is told of the frames since its last update: log(1 + frames), and whether any was left out; one more dimension of 2."""
    return torch.stack([since_B_.log1p(), (since_B_ > 1).to(since_B_.dtype)], dim=-1).to(dtype)


def frames_since(held_BT: Tensor, earlier_B: Tensor | None = None) -> Tensor:
    """Frames since the last frame with nodes, as a float; `earlier_B` of them had passed before the first, None for the start of a video."""
    index = torch.arange(1, held_BT.shape[1] + 1, device=held_BT.device)
    first_B1 = torch.zeros_like(index[:1]).expand(len(held_BT), 1) if earlier_B is None else -earlier_B.long().unsqueeze(1)
    last = torch.where(held_BT, index, first_B1).cummax(dim=1).values
    return (index - torch.cat([first_B1, last[:, :-1]], dim=1)).float()
