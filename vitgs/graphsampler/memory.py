"""A memory bank after Temporal Graph Networks (Rossi 2020, section 3): slots updated in time order by messages from the nodes of each frame.

Equations: message m_s(t) = sum_i softmax_i(w_s.h_i + log u_i) V h_i over the nodes i of frame t, with an encoding of the time since the last update;
state s(t) = GRU(m_s(t), s(t-)); a frame without nodes leaves the state as it is. Nodes read the state of their own time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Far enough for the sigmoid to be 1 in every precision.
SHUT = 1e4


def pool_by_frame(value_BSD: Tensor, logit_BSM: Tensor, frame_BS: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """For each frame and slot the softmax-weighted mean over that frame's nodes: `(B, T, M, D)`, and which frames have nodes `(B, T)`.

    Linear in the number of nodes: a segment softmax by scattered sums, each frame and slot from its own highest logit, so that a frame far below the
    rest of the clip is weighed as it would be alone.
    """
    batch, _, slots = logit_BSM.shape
    frame_BSM = frame_BS.unsqueeze(-1).expand(-1, -1, slots)
    lowest_BTM = logit_BSM.new_full((batch, frames, slots), torch.finfo(logit_BSM.dtype).min)
    peak_BTM = lowest_BTM.scatter_reduce(1, frame_BSM, logit_BSM.detach(), "amax")
    weight_BSM = (logit_BSM - peak_BTM.gather(1, frame_BSM)).exp()
    weighted_BSX = (weight_BSM.unsqueeze(-1) * value_BSD.unsqueeze(2)).flatten(2)
    packed_BSY = torch.cat([weighted_BSX, weight_BSM, torch.ones_like(weight_BSM[..., :1])], dim=2)
    index_BSY = frame_BS.unsqueeze(-1).expand(-1, -1, packed_BSY.shape[2])
    total_BTY = packed_BSY.new_zeros(batch, frames, packed_BSY.shape[2]).scatter_add(1, index_BSY, packed_BSY)
    width = value_BSD.shape[2]
    top, weight, held = torch.split(total_BTY, [slots * width, slots, 1], dim=2)
    # The best node of a frame weighs 1, so only a frame without nodes is below that.
    return torch.unflatten(top, 2, (slots, width)) / weight.unsqueeze(-1).clamp_min(1.0), held.squeeze(-1) > 0


class MemoryBank(nn.Module):
    """`slots` states of width `memory_width`; a GRU cell shared by all slots."""

    def __init__(self, width: int, memory_width: int, slots: int, *, eps: float) -> None:
        super().__init__()
        self.slots, self.width = slots, memory_width
        self.norm = nn.LayerNorm(width, eps=eps)
        self.write = nn.Linear(width, slots)
        self.value = nn.Linear(width, memory_width)
        self.slot = nn.Parameter(torch.randn(slots, memory_width) * 0.5)
        self.gap = nn.Linear(2, memory_width)
        self.input = nn.Linear(memory_width, 3 * memory_width)
        self.hidden = nn.Linear(memory_width, 3 * memory_width)
        self.read = nn.Linear(memory_width, width)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, x_BSD: Tensor, frame_BS: Tensor, frames: int, bias_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nodes enriched by the state of their time `(B, S, D)`, and the final state `(B, M * memory_width)`."""
        h_BSD = self.norm(x_BSD)
        logit_BSM = self.write(h_BSD)
        biased = logit_BSM if bias_BS is None else logit_BSM + bias_BS.unsqueeze(-1)
        message_BTMW, held_BT = pool_by_frame(self.value(h_BSD), biased, frame_BS, frames)
        states_BTMW = self.update(message_BTMW, held_BT)
        address_BSM = logit_BSM.softmax(dim=-1)
        index = frame_BS[:, :, None].expand(-1, -1, self.slots * self.width)
        own_BSMW = torch.unflatten(states_BTMW.flatten(2).gather(1, index), 2, (self.slots, self.width))
        read_BSW = (address_BSM.unsqueeze(2) @ own_BSMW).squeeze(2)
        return x_BSD + self.read(read_BSW), states_BTMW[:, -1].flatten(1)

    def update(self, message_BTMW: Tensor, held_BT: Tensor) -> Tensor:
        """The states after each frame, `(B, T, M, W)`: a GRU (Cho 2014) in time order that only frames with nodes turn."""
        batch = held_BT.shape[0]
        gap_BT2 = gap_features(_since_last(held_BT), message_BTMW.dtype)
        incoming = self.input(message_BTMW + self.slot + self.gap(gap_BT2).unsqueeze(2))
        # The update gate of a frame without nodes is shut: sigmoid(large) is 1, and the state stays as it is to the last bit.
        shut_BT11 = torch.where(held_BT, 0.0, SHUT).to(incoming.dtype)[:, :, None, None]
        gates_TBMX = (incoming[..., : 2 * self.width] + shut_BT11).unbind(1)
        new_TBMW = incoming[..., 2 * self.width :].unbind(1)
        state = self.slot.expand(batch, -1, -1)
        states = []
        for gates, new in zip(gates_TBMX, new_TBMW, strict=True):
            hidden = self.hidden(state)
            reset, keep = torch.sigmoid(gates + hidden[..., : 2 * self.width]).chunk(2, dim=-1)
            proposed = torch.tanh(torch.addcmul(new, reset, hidden[..., 2 * self.width :]))
            # Under autocast the gates are in a half precision; the state, which adds up over time, stays in that of its weights.
            state = torch.lerp(proposed.to(state.dtype), state, keep.to(state.dtype))
            states.append(state)
        return torch.stack(states, dim=1)


def gap_features(since_B_: Tensor, dtype: torch.dtype) -> Tensor:
    """What the memory is told of the frames since its last update: log(1 + frames), and whether any was left out; one more dimension of 2."""
    return torch.stack([since_B_.log1p(), (since_B_ > 1).to(since_B_.dtype)], dim=-1).to(dtype)


def _since_last(held_BT: Tensor) -> Tensor:
    """Frames since the last frame with nodes, as a float, counted from before the clip."""
    index = torch.arange(1, held_BT.shape[1] + 1, device=held_BT.device)
    last = torch.where(held_BT, index, 0).cummax(dim=1).values
    before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1)
    return (index - before).float()
