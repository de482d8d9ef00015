"""The memory bank against a loop over nodes and torch's own recurrent cells, and its behaviour on frames without nodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vitgs.graphsampler import memory
from vitgs.graphsampler.cells import CELLS, Rnn, run_cell, run_whole
from vitgs.graphsampler.memory import Memory, MemoryBank, frames_since, pool_by_frame


def test_pooling_by_frame_equals_a_loop_over_frames() -> None:
    torch.manual_seed(0)
    value, logit = torch.randn(2, 9, 5), torch.randn(2, 9, 3)
    frame = torch.tensor([[0, 0, 1, 3, 3, 3, 4, 4, 4], [0, 1, 1, 1, 1, 2, 2, 4, 4]])
    pooled, held = pool_by_frame(value, logit, frame, 5)
    for b in range(2):
        for t in range(5):
            here = frame[b] == t
            assert bool(held[b, t]) == bool(here.any())
            if here.any():
                expected = logit[b, here].softmax(0).T @ value[b, here]
                torch.testing.assert_close(pooled[b, t], expected, atol=1e-5, rtol=1e-5)


def test_where_nothing_is_learned_the_memory_does_the_same() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 3, eps=1e-6)
    nn.init.normal_(bank.read.weight)
    nn.init.normal_(bank.read.bias)
    # Frames without nodes, and nodes that aren't in time order.
    x, frame, bias = torch.randn(2, 9, 8), torch.tensor([[4, 0, 1, 3, 3, 0, 3, 4, 4], [0, 1, 1, 1, 1, 2, 2, 4, 4]]), torch.randn(2, 9)
    bias[1, 5:7] -= 200
    learned = bank(x, frame, 6, bias)
    with torch.no_grad():
        for got, expected in zip(bank(x, frame, 6, bias), learned, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_the_update_is_torchs_cell_that_skips_empty_frames(name: str) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6, cell=CELLS[name])
    cell = nn.GRUCell(6, 6) if name == "gru" else nn.RNNCell(6, 6)
    cell.load_state_dict({"weight_ih": bank.input.weight, "bias_ih": bank.input.bias, "weight_hh": bank.hidden.weight, "bias_hh": bank.hidden.bias})
    message = torch.randn(1, 4, 2, 6)
    held = torch.tensor([[True, False, True, True]])
    states = bank.update(message, held)
    since = frames_since(held)
    state = bank.slot.clone()
    for t in range(4):
        if held[0, t]:
            gap = torch.stack([since[0, t].log1p(), (since[0, t] > 1).float()])
            state = cell(message[0, t] + bank.slot + bank.gap(gap), state)
        torch.testing.assert_close(states[0, t], state, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gru", "rnn"])
@pytest.mark.parametrize("held", ["1111 1111", "1111 0101", "0010 1000", "0000 0000"])
def test_the_whole_sequence_at_once_equals_frame_after_frame(name: str, held: str) -> None:
    torch.manual_seed(0)
    bank, news_BTMW = MemoryBank(8, 6, 3, eps=1e-6, cell=CELLS[name]), torch.randn(2, 4, 3, 6)
    held_BT = torch.tensor([[frame == "1" for frame in clip] for clip in held.split()])
    state_BMW = torch.randn(2, 3, 6)
    weights = [bank.input.weight, bank.hidden.weight, bank.input.bias, bank.hidden.bias]
    whole = run_whole(bank.cell, weights, news_BTMW, held_BT, state_BMW)
    torch.testing.assert_close(whole, run_cell(bank.cell, bank.hidden, bank.input(news_BTMW), held_BT, state_BMW), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_weighing_all_places_equals_sorting_by_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    value, logit, frame = torch.randn(2, 9, 5), torch.randn(2, 9, 3), torch.randint(0, 4, (2, 9))
    logit[0, frame[0] == 1] = -torch.inf  # nodes of no weight at all
    logit[1, frame[1] == 2] -= 200
    few = pool_by_frame(value, logit, frame, 5)
    monkeypatch.setattr(memory, "FEW_PLACES", 0)
    for got, expected in zip(few, pool_by_frame(value, logit, frame, 5), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_plain_cell_is_torchs_rnn() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 3, eps=1e-6, cell=Rnn())
    rnn = nn.RNN(6, 6, batch_first=True)
    weights = {"weight_ih": bank.input.weight, "bias_ih": bank.input.bias, "weight_hh": bank.hidden.weight, "bias_hh": bank.hidden.bias}
    rnn.load_state_dict({f"{name}_l0": value for name, value in weights.items()})
    message, held = torch.randn(2, 5, 3, 6), torch.ones(2, 5, dtype=torch.bool)
    states = bank.update(message, held)
    given = message + bank.slot + bank.gap(torch.tensor([math.log(2), 0.0]))
    for slot in range(3):
        expected, _ = rnn(given[:, :, slot], bank.slot[slot].expand(1, 2, -1).contiguous())
        torch.testing.assert_close(states[:, :, slot], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", "rnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_frame_without_nodes_leaves_the_state_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6, cell=CELLS[name]).to(dtype)
    held = torch.tensor([[False, True, False, False]])
    states = bank.update(torch.randn(1, 4, 2, 6, dtype=dtype), held)
    assert torch.equal(states[0, 0], bank.slot) and not torch.equal(states[0, 1], bank.slot)
    assert torch.equal(states[0, 2], states[0, 1]) and torch.equal(states[0, 3], states[0, 1])
    again = bank.update(torch.randn(1, 4, 2, 6, dtype=dtype), held & False, Memory(state_BMW=states[:, 3], since_B=torch.tensor([2.0])))
    assert torch.equal(again, states[:, 3:].expand(-1, 4, -1, -1))


@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_the_gradient_reaches_the_first_frame(name: str) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6, cell=CELLS[name])
    message: Tensor = torch.randn(1, 4, 2, 6, requires_grad=True)
    torch.autograd.backward(bank.update(message, torch.ones(1, 4, dtype=torch.bool))[:, -1].sum())
    assert message.grad is not None and float(message.grad[:, 0].abs().sum()) > 1e-4
    assert bank.hidden.weight.grad is not None and float(bank.hidden.weight.grad.abs().sum()) > 0


def test_time_since_the_last_update_is_counted_over_gaps() -> None:
    assert frames_since(torch.tensor([[True, False, False, True, True]])).tolist() == [[1, 1, 2, 3, 1]]
    held = torch.tensor([[True, False, False], [False, False, True]])
    assert frames_since(held, torch.tensor([0.0, 4.0])).tolist() == [[1, 1, 2], [5, 6, 7]]


def test_the_state_of_a_time_does_not_depend_on_later_nodes() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6)
    nn.init.normal_(bank.read.weight)
    x, frame = torch.randn(1, 6, 8), torch.tensor([[0, 0, 1, 2, 2, 3]])
    later = x.clone()
    later[:, 3:] += 1
    out, _ = bank(x, frame, 4, None)
    changed, _ = bank(later, frame, 4, None)
    torch.testing.assert_close(out[:, :3], changed[:, :3])
    assert not torch.allclose(out[:, 3:], changed[:, 3:])


def test_memory_starts_without_effect_on_the_nodes() -> None:
    bank = MemoryBank(8, 6, 3, eps=1e-6)
    x = torch.randn(2, 6, 8)
    out, final = bank(x, torch.arange(6).expand(2, -1), 6, None)
    assert torch.equal(out, x) and final.shape == (2, 18)


def test_a_frame_far_below_the_rest_keeps_its_message() -> None:
    torch.manual_seed(0)
    value, logit, frame = torch.randn(1, 6, 5), torch.randn(1, 6, 2), torch.tensor([[0, 0, 1, 1, 2, 2]])
    expected, _ = pool_by_frame(value, logit, frame, 4)
    logit[:, 2:4] -= 200
    sunk = logit.clone().requires_grad_()
    pooled, held = pool_by_frame(value, sunk, frame, 4)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)
    assert held.tolist() == [[True, True, True, False]] and not pooled[:, 3].any()
    torch.autograd.backward(pooled[:, 1].sum())
    assert sunk.grad is not None and float(sunk.grad[:, 2:4].abs().max()) > 1e-3
    masked, _ = pool_by_frame(value, torch.full_like(logit, -torch.inf), frame, 4)
    assert not masked.any()
