"""The recurrent cells that turn the memory's states from frame to frame: a gated one and a plain one, as parts that hold no weights.

A cell gets products that are computed for all frames at once, U s of the state as it goes, and says which state follows. A frame without nodes
leaves the state as it is, to the last bit.

* GRU (Cho 2014, in the form of `torch.nn.GRUCell`): r = sigmoid(W_r m + U_r s), z = sigmoid(W_z m + U_z s), n = tanh(W_n m + r * U_n s),
  s(t) = (1 - z) n + z s(t-).
* RNN (Elman 1990, `torch.nn.RNNCell`): s(t) = tanh(W m + U s(t-) + b).

Suffixes beside those of the package: W the width of a state, X the products of a cell, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Far enough for the sigmoid to be 1 in every precision.
SHUT = 1e4

# What a cell needs of one frame, made ready for all frames at once.
Ready = tuple[Tensor, Tensor]


class Cell(Protocol):
    """`products`: how many products of a message and of a state, each as wide as a state, a step needs. `fused`: torch's own, of whole sequences."""

    products: int
    fused: Callable[..., tuple[Tensor, Tensor]]

    def ready(self, incoming_BTMX: Tensor, held_BT: Tensor) -> list[Ready]:
        """For each frame what its step needs of the messages' products, and of whether it has nodes."""

    def step(self, frame: Ready, hidden_BMX: Tensor, state_BMW: Tensor) -> Tensor:
        """The states `(B, M, W)` after a frame; `hidden_BMX`: the products of those before it."""

    def opened(self, incoming_BTMX: Tensor, hidden_BTMX: Tensor) -> Tensor:
        """How far each frame with nodes lets its news in, 0 to 1, `(B, T, M)`: the mean over the state."""


class Gru:
    """The products are those of r, z and n, in this order."""

    products = 3
    fused = staticmethod(torch.gru)

    def ready(self, incoming_BTMX: Tensor, held_BT: Tensor) -> list[Ready]:
        width = incoming_BTMX.shape[-1] // 3
        # The update gate of a frame without nodes is shut: sigmoid(large) is 1.
        shut_BT11 = torch.where(held_BT, 0.0, SHUT).to(incoming_BTMX.dtype)[:, :, None, None]
        gates_TBMX = (incoming_BTMX[..., : 2 * width] + shut_BT11).unbind(1)
        return list(zip(gates_TBMX, incoming_BTMX[..., 2 * width :].unbind(1), strict=True))

    def step(self, frame: Ready, hidden_BMX: Tensor, state_BMW: Tensor) -> Tensor:
        gates_BMX, new_BMW = frame
        width = state_BMW.shape[-1]
        reset_BMW, keep_BMW = torch.sigmoid(gates_BMX + hidden_BMX[..., : 2 * width]).chunk(2, dim=-1)
        proposed_BMW = torch.tanh(torch.addcmul(new_BMW, reset_BMW, hidden_BMX[..., 2 * width :]))
        # Under autocast the gates are in a half precision; the state, which adds up over time, stays in that of its weights.
        return torch.lerp(proposed_BMW.to(state_BMW.dtype), state_BMW, keep_BMW.to(state_BMW.dtype))

    def opened(self, incoming_BTMX: Tensor, hidden_BTMX: Tensor) -> Tensor:
        return 1 - torch.sigmoid(incoming_BTMX + hidden_BTMX).chunk(3, dim=-1)[1].mean(dim=-1)


class Rnn:
    """The one product is that of the next state."""

    products = 1
    fused = staticmethod(torch.rnn_tanh)

    def ready(self, incoming_BTMX: Tensor, held_BT: Tensor) -> list[Ready]:
        return list(zip(incoming_BTMX.unbind(1), held_BT[:, :, None, None].unbind(1), strict=True))

    def step(self, frame: Ready, hidden_BMX: Tensor, state_BMW: Tensor) -> Tensor:
        incoming_BMX, held_B11 = frame
        return torch.where(held_B11, torch.tanh(incoming_BMX + hidden_BMX).to(state_BMW.dtype), state_BMW)

    def opened(self, incoming_BTMX: Tensor, hidden_BTMX: Tensor) -> Tensor:
        """All the way, always: nothing gates it."""
        return torch.ones_like(incoming_BTMX[..., 0])


CELLS: Mapping[str, Cell] = {"gru": Gru(), "rnn": Rnn()}


def run_cell(cell: Cell, hidden: Callable[[Tensor], Tensor], incoming_BTMX: Tensor, held_BT: Tensor, state_BMW: Tensor) -> Tensor:
    """The states after each frame `(B, T, M, W)`, in time order from `state_BMW`; `hidden` gives the products of a state."""
    states = []
    for frame in cell.ready(incoming_BTMX, held_BT):
        state_BMW = cell.step(frame, hidden(state_BMW), state_BMW)
        states.append(state_BMW)
    return torch.stack(states, dim=1)


def run_whole(cell: Cell, weights: Sequence[Tensor], news_BTMW: Tensor, held_BT: Tensor, state_BMW: Tensor) -> Tensor:
    """The same by the cell's fused form, where values may be read. `news_BTMW`: what the messages' products are made of; `weights`: of news and
    state, then their biases.

    A clip's frames with nodes are put in front, so that the sequence has no others; each frame then has the state that so many of them left behind.
    """
    passed_BT = held_BT.cumsum(dim=1)
    least, most = (int(count) for count in passed_BT[:, -1].aminmax())
    if least < held_BT.shape[1]:
        order_BT = (~held_BT).int().argsort(dim=1, stable=True)[:, :most]
        news_BTMW = news_BTMW.gather(1, order_BT[:, :, None, None].expand(-1, -1, *news_BTMW.shape[2:]))
    start_1NW, each_NTW = state_BMW.flatten(0, 1).unsqueeze(0), news_BTMW.transpose(1, 2).flatten(0, 1)
    states_NTW = cell.fused(each_NTW, start_1NW, list(weights), True, 1, 0.0, False, False, True)[0] if most else each_NTW
    states_BTMW = torch.unflatten(states_NTW, 0, state_BMW.shape[:2]).transpose(1, 2)
    if least == held_BT.shape[1]:
        return states_BTMW
    states_BTMW = torch.cat([state_BMW.unsqueeze(1), states_BTMW], dim=1)
    return states_BTMW.gather(1, passed_BT[:, :, None, None].expand(-1, -1, *state_BMW.shape[1:]))
