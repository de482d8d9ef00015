"""Streaming: as one pass over the same chunks, as the model where one chunk is the clip, causal, and constant in size however long the video is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.benchmarks.streaming import long_video
from vitgs.backbone.readout import AttentionReadout
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.graphsampler.causal import blank_memory, causal_edges, joined, pool_nodes, remember
from vitgs.graphsampler.cells import CELLS
from vitgs.graphsampler.edges import build_edges
from vitgs.graphsampler.memory import MemoryBank
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.onepass import whole
from vitgs.graphsampler.stream import State, Streamed, Streamer, stream
from vitgs.measure.memory import LiveBytes
from vitgs.spec import Clip

CLIP = Clip(frames=8, height=32, width=32, classes=6)
Knobs = dict[str, object]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(**knobs: object) -> GraphSampler:
    """A model whose zero-initialised parts are exercised too."""
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **({"layers": 2} | knobs))
    assert isinstance(model, GraphSampler)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def video(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


SETTINGS: list[Knobs] = [
    {},
    {"layers": 1},
    {"glance": "patch", "readout": "class"},
    {"decision": "dense", "attention": "frame", "readout": "class"},
    {"decision": "dense", "attention": "frame", "readout": "mean", "window": 2},
    {"select": "frame", "message": "mean"},
    {"select": "token", "window": 0},
    {"select": "random", "utility": "none", "readout": "mean"},
    {"select": "uniform", "utility": "none", "k": 16},
    {"layers": 0, "memory": 0, "select": "none", "utility": "none", "readout": "class"},
    {"bank": 8, "cell": "rnn"},
    {"bank": 3, "memory": 0, "decision": "dense", "attention": "frame", "readout": "class"},
    {"bank": 16, "layers": 0, "utility": "none", "select": "uniform"},
    {"attention": "frame", "readout": "class"},
    {"attention": "frame", "select": "random", "utility": "none"},
]


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("frames", "chunk", "budget", "past", "batch"), [(8, 8, 0.3, None, 1), (13, 4, 0.3, 1, 3), (19, 5, 1.0, 2, 1), (7, 1, 0.1, 0, 3)]
)
def test_one_pass_over_the_same_chunks_agrees(knobs: Knobs, frames: int, chunk: int, budget: float, past: int | None, batch: int) -> None:
    model, clip = build(**knobs), video(frames, batch)
    once = whole(model, clip, chunk, budget, past_chunks=past)
    torch.testing.assert_close(stream(model, clip, chunk, budget, past_chunks=past), once, atol=1e-5, rtol=0)
    torch.testing.assert_close(Streamed(model, chunk, past_chunks=past)(clip, budget=budget), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("readout", ["class", "mean", "attention"])
def test_one_pass_agrees_with_and_without_graph_and_memory(memory: int, layers: int, readout: str) -> None:
    model = build(memory=memory, layers=layers, readout=readout)
    for frames, chunk, past in ((9, 2, 1), (11, 3, 2)):
        clip = video(frames, 2)
        torch.testing.assert_close(stream(model, clip, chunk, past_chunks=past), whole(model, clip, chunk, past_chunks=past), atol=1e-5, rtol=0)


@pytest.mark.parametrize("knobs", [*({**knobs, "window": window} for knobs in SETTINGS[:6] for window in (0, 8)), *SETTINGS[6:]], ids=str)
def test_one_chunk_as_long_as_the_clip_is_the_model(knobs: Knobs) -> None:
    model, clip = build(**knobs), video(8, 2)
    for budget in (1.0, 0.3, 0.02):
        torch.testing.assert_close(stream(model, clip, 8, budget), model(clip, budget), atol=1e-5, rtol=0)


def test_wide_appearance_streams_in_the_directions_that_it_is_compared_in() -> None:
    torch.manual_seed(0)
    model, clip = SYSTEM.build("Ti", CLIP, style="digits").eval(), video(8)
    assert isinstance(model, GraphSampler) and model.basis is not None and "basis" not in model.state_dict()
    torch.testing.assert_close(stream(model, clip, 8, 0.3), model(clip, 0.3), atol=1e-4, rtol=1e-5)
    once = whole(model, clip, 3, 0.3, past_chunks=1)
    torch.testing.assert_close(stream(model, clip, 3, 0.3, past_chunks=1), once, atol=1e-4, rtol=1e-5)
    state, _ = Streamer(model, 3, 0.3, past_chunks=1).step(None, clip[:, :3])
    assert state.past[0].appearance_BPD.shape[2] == model.basis.shape[1]


def test_what_streams_differs_from_global_selection() -> None:
    model, clip = build(), video(8)
    assert float((stream(model, clip, 4) - model(clip)).abs().max()) > 1e-3
    assert float((stream(model, clip, 2, past_chunks=1) - stream(model, clip, 2, past_chunks=2)).abs().max()) > 1e-5


def test_an_answer_does_not_depend_on_what_comes_later() -> None:
    model, clip, other = build(), video(12), video(12)
    other[:, 8:] += 1
    streamer = Streamer(model, 4)
    answers = []
    for seen in (clip, other):
        state, logits = None, []
        for chunk in torch.split(seen, 4, dim=1):
            state, answer = streamer.step(state, chunk)
            logits.append(answer)
        answers.append(logits)
    assert torch.equal(answers[0][1], answers[1][1])
    assert not torch.equal(answers[0][2], answers[1][2])


def test_the_bank_outlives_the_window_and_counts_in_the_size() -> None:
    model = build(bank=8, memory=0, window=2)
    streamer, state, plain = Streamer(model, 4), None, None
    for chunk in torch.split(video(64), 4, dim=1):
        state, _ = streamer.step(state, chunk)
        plain, _ = Streamer(build(memory=0, window=2), 4).step(plain, chunk)
    assert state is not None and state.bank is not None and plain is not None
    assert state.bank.frame_BA.shape == (1, 8) and int(state.bank.frame_BA.min()) < -8
    carried = (state.bank.said_BAX, state.bank.score_BA, state.bank.frame_BA)
    assert state.size_bytes == plain.size_bytes + sum(one.numel() * one.element_size() for one in carried)


def test_a_step_leaves_its_state_as_it_was() -> None:
    streamer, clip = Streamer(build(), 4), video(8)
    state, _ = streamer.step(None, clip[:, :4])
    first, second = (streamer.step(state, clip[:, 4:])[1] for _ in range(2))
    assert torch.equal(first, second)
    assert state.frames == 4


@pytest.mark.parametrize("knobs", [{}, {"bank": 8}], ids=str)
def test_size_and_peak_are_constant_over_a_long_video(knobs: Knobs) -> None:
    model = build(window=8, **knobs)
    streamer = Streamer(model, 4)
    clip = video(64)
    peaks, sizes, state = [], [], None
    with LiveBytes((*model.parameters(), *model.buffers(), clip)) as counter:
        for chunk in torch.split(clip, 4, dim=1):
            counter.peak_bytes = counter.live_bytes
            state, _ = streamer.step(state, chunk)
            peaks.append(counter.peak_bytes)
            sizes.append(state.size_bytes)
    assert streamer.grid.past_chunks == 2
    assert len(set(peaks[3:])) == 1 and peaks[0] < peaks[3]
    assert len(set(sizes[1:])) == 1 and sizes[0] < sizes[1]
    assert state is not None
    assert max(float(p.position_BP3.abs().max()) for p in state.past) <= 8


@pytest.mark.parametrize("knobs", [{}, {"bank": 8}, {"bank": 8, "utility": "none", "cell": "rnn"}], ids=str)
def test_a_long_video_agrees_with_one_pass(knobs: Knobs) -> None:
    model, clip = build(**knobs), video(100)
    torch.testing.assert_close(stream(model, clip, 8, 0.1), whole(model, clip, 8, 0.1), atol=1e-4, rtol=0)


def test_the_benchmark_holds_streaming_to_the_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = build(window=4), video(18)
    row = long_video("test", model, clip, 4, 0.25)
    assert row["flat"] and row["chunks"] == 5 and row["logits_difference"] < 1e-4
    assert row["one_pass_peak_live_bytes"] > max(row["peak_live_bytes_by_chunk"])
    monkeypatch.setattr("tests.benchmarks.streaming.whole", lambda *_: torch.ones(1, 6))
    with pytest.raises(SystemExit, match="must agree"):
        long_video("test", model, clip, 4, 0.25)


def far(state: State, frames: int) -> State:
    """The same state later in the video."""
    return replace(state, frames=frames)


def test_frames_beyond_the_time_table_have_its_last_entries() -> None:
    model, clip = build(), video(8)
    assert model.time is not None
    streamer = Streamer(model, 4)
    state, _ = streamer.step(None, clip[:, :4])
    second = streamer.step(state, clip[:, 4:])[1]
    model.time.table[:4] = torch.nan
    for frames in (4, 5, 100):
        assert torch.equal(streamer.step(far(state, frames), clip[:, 4:])[1], second)
    assert not bool(streamer.step(far(state, 3), clip[:, 4:])[1].isfinite().any())
    assert bool(streamer.step(far(state, 7), clip[:, 4:5])[1].isfinite().all())


def test_without_a_time_table_a_chunk_may_be_longer_than_the_clips_of_training() -> None:
    model = build(layers=0, memory=0, attention="frame", decision="dense")
    clip = video(20)
    torch.testing.assert_close(stream(model, clip, 12), whole(model, clip, 12), atol=1e-5, rtol=0)


def test_edges_into_the_past_are_the_best_by_hand() -> None:
    torch.manual_seed(0)
    past, own, k = 9, 6, 3
    count = past + own
    position = torch.stack([torch.arange(count) // 3 - 3, torch.arange(count) % 3, torch.zeros(count)], dim=-1)
    appearance = torch.randn(count, 8)
    edges = causal_edges(appearance[None], position[None], own, k=k, temporal=2)
    unit = torch.nn.functional.normalize(appearance - appearance.mean(dim=0), dim=-1)
    for row in range(own):
        node = past + row
        other = [j for j in range(count) if position[j, 0] != position[node, 0]]
        like = sorted(other, key=lambda j: -float(unit[node] @ unit[j]))[:k]
        # Of equally near nodes the later.
        near = sorted(other, key=lambda j: (float(((position[j] - position[node]) * torch.tensor([4.0, 1, 1])).square().sum()), -j))[:2]
        valid = edges.valid_BSE[0, row]
        assert edges.node_BSE[0, row, : 1 + k].tolist() == [node, *like]
        assert edges.node_BSE[0, row, 1 + k :].tolist() == near
        assert valid.tolist() == [True] * (1 + k) + [j not in like for j in near]
        torch.testing.assert_close(edges.similarity_BSE[0, row, 1 : 1 + k], unit[like] @ unit[node])
    first = causal_edges(appearance[None, past:], position[None, past:], own, k=k, temporal=2)
    own_clip = build_edges(appearance[None, past:], position[None, past:], k=k, temporal=2, chunk=own, window=0)
    assert torch.equal(first.node_BSE, own_clip.node_BSE)


def test_pictures_that_stand_still_tie_and_the_latest_is_heard() -> None:
    picture = torch.randn(2, 8)
    position = torch.stack([torch.arange(10) // 2 - 4, torch.arange(10) % 2, torch.zeros(10)], dim=-1)
    noise = torch.randn(10, 8) * 1e-7  # rounding
    edges = causal_edges((picture.repeat(5, 1) + noise)[None], position[None], 2, k=2, temporal=2)
    assert edges.node_BSE[0, :, :3].tolist() == [[8, 6, 4], [9, 7, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_in_every_precision_the_same_node_of_earlier_frames_is_the_most_similar(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    position = torch.stack([torch.arange(12) // 4 - 2, torch.arange(12) % 4, torch.zeros(12)], dim=-1)
    edges = causal_edges(torch.randn(4, 8).to(dtype).repeat(3, 1)[None], position[None], 4, k=2, temporal=2)
    assert edges.node_BSE[0, :, :3].tolist() == [[8, 4, 0], [9, 5, 1], [10, 6, 2], [11, 7, 3]]


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_memory_goes_on_where_it_was(cell: str) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6, cell=CELLS[cell])
    bank.read.weight.normal_()
    frame = torch.tensor([[0, 0, 3, 3, 4, 9], [1, 1, 1, 5, 8, 8]])
    x, bias = torch.randn(2, 6, 8), torch.randn(2, 6)
    expected, final = bank(x, frame, 12, bias)
    memory, found = blank_memory(bank, 2), torch.zeros_like(x)
    for row in range(2):
        memory = blank_memory(bank, 1)
        for first in range(0, 12, 3):
            here = (frame[row] >= first) & (frame[row] < first + 3)
            if not here.any():
                memory = replace(memory, since_B=memory.since_B + 3)
                continue
            position = torch.nn.functional.pad((frame[row, here] - first)[None, :, None].float(), (0, 2))
            nodes = Tokens(x_BND=x[row : row + 1, here], position_BN3=position, bias_BN=bias[row : row + 1, here])
            found[row, here], memory = remember(bank, nodes, 3, memory)
        torch.testing.assert_close(memory.state_BMW.flatten(1)[0], final[row], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_running_sums_are_the_readout() -> None:
    readout = AttentionReadout(8, 2)
    x, bias = torch.randn(3, 12, 8), torch.randn(3, 12) * 30
    nodes = Tokens(x_BND=x, position_BN3=torch.zeros(3, 12, 3), bias_BN=bias)
    running = None
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        some = Tokens(x_BND=x[:, part], position_BN3=nodes.position_BN3[:, part], bias_BN=bias[:, part])
        running = joined(running, pool_nodes(readout, some))
    assert running is not None
    torch.testing.assert_close(running.mean_Bhd.flatten(1), readout(nodes), atol=1e-5, rtol=1e-5)


def test_half_precision_streams_and_a_late_chunk_still_counts() -> None:
    model, clip = build(), video(12)
    rough = stream(model.to(torch.bfloat16), clip.to(torch.bfloat16), 4)
    assert rough.dtype == torch.bfloat16 and bool(rough.isfinite().all())
    ones = Tokens(x_BND=torch.ones(1, 4, 8, dtype=torch.bfloat16), position_BN3=torch.zeros(1, 4, 3))
    running = pool_nodes(torch.nn.Identity(), ones.with_x(0 * ones.x_BND))
    for _ in range(999):
        running = joined(running, pool_nodes(torch.nn.Identity(), ones))
    torch.testing.assert_close(running.mean_Bhd.mean(), torch.tensor(0.999), atol=1e-4, rtol=0)


@pytest.mark.parametrize("knobs", [{}, {"bank": 3, "layers": 0, "memory": 0}], ids=str)
def test_what_is_ranked_in_float16_is_ranked_as_in_one_pass(knobs: Knobs) -> None:
    model, clip = build(**knobs), video(4).repeat(1, 3, 1, 1, 1)
    assert model.utility is not None
    model.utility.get_parameter("token.bias").sub_(5)  # log utilities whose steps float16 has no number for
    model.to(torch.float16)
    once = whole(model, clip.half(), 4, past_chunks=2)
    torch.testing.assert_close(stream(model, clip.half(), 4, past_chunks=2), once, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"chunk_frames": 0}, "at least one frame"),
        ({"chunk_frames": 9}, "9 frames, trained on 8; set the chunk's frames to 8 or less"),
        ({"chunk_frames": 2, "budget": 0.03}, "at least one token of a chunk; given: 0.03 of 32 tokens; set the budget to 0.03125 or more"),
        ({"chunk_frames": 4, "budget": 1.5}, "a budget must be"),
        ({"chunk_frames": 4, "past_chunks": -1}, "0 or more earlier chunks"),
    ],
)
def test_a_grid_that_can_not_be_is_refused(given: dict[str, Any], says: str) -> None:
    model = build(memory=1, layers=1)
    for make in (lambda: Streamer(model, **given), lambda: stream(model, video(8), **given), lambda: whole(model, video(8), **given)):
        with pytest.raises(UsageError, match=says):
            make()


def test_chunks_that_do_not_fit_the_stream_are_refused() -> None:
    streamer = Streamer(build(), 4)
    state, _ = streamer.step(None, video(4))
    for chunk in (video(5), video(0)):
        with pytest.raises(UsageError, match="1 to 4 frames"):
            streamer.step(state, chunk)
    with pytest.raises(UsageError, match="same number of videos"):
        streamer.step(state, video(4, 2))
