"""The long-term bank: what it holds against a loop over nodes, carried on as whole, its read against a loop, and a start without effect."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.graphsampler.bank import Entries, LongBank, held_before, written
from vitgs.graphsampler.losses import objective
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.measure.formula import FormulaCounter
from vitgs.spec import Batch, Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)


def video(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **knobs)
    assert isinstance(model, GraphSampler)
    return model.eval()


def shaken(bank: LongBank) -> LongBank:
    """A bank whose output is away from its start at zero."""
    nn.init.normal_(bank.output.weight)
    return bank.requires_grad_(False)


def literally(score: list[float], frame: list[int], frames: int, count: int) -> list[list[int]]:
    """The bank before each frame and at the end, node by node: write all of a frame, then evict one after the other."""
    bank: list[int] = [i for i, f in enumerate(frame) if f < 0]
    found = []
    for t in range(frames + 1):
        while len(bank) > count:
            bank.remove(min(bank, key=lambda i: (score[i], i)))
        found.append(sorted(bank, key=lambda i: (score[i], i)))
        bank += [i for i, f in enumerate(frame) if f == t]
    return found


def in_bank(score: Tensor, frame: Tensor, frames: int, count: int) -> list[list[list[int]]]:
    held = held_before(score, frame, frames, count)
    assert held.node_BTK.shape == (len(score), frames + 1, count)
    return [
        [nodes[filled].tolist() for nodes, filled in zip(*pair, strict=True)]
        for pair in zip(held.node_BTK.unbind(), held.filled_BTK.unbind(), strict=True)
    ]


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("count", [1, 3, 8, 50])
def test_what_is_held_equals_a_loop_over_nodes(frames: int, count: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        # Few scores, so many ties; few nodes, so empty frames; some before the first frame.
        score = -torch.randint(0, 4, (3, 14), generator=generator) / 4
        frame = torch.randint(-2, frames, (3, 14), generator=generator).sort(dim=1).values
        expected = [literally(s, f, frames, count) for s, f in zip(score.tolist(), frame.tolist(), strict=True)]
        assert in_bank(score, frame, frames, count) == expected


def test_the_lowest_score_is_evicted_and_of_equal_ones_the_earlier() -> None:
    score, frame = torch.tensor([[-1.0, -2, -2, -3, -1, -1]]), torch.tensor([[0, 0, 1, 1, 2, 4]])
    assert in_bank(score, frame, 5, 3) == [[[], [1, 0], [1, 2, 0], [2, 0, 4], [2, 0, 4], [0, 4, 5]]]
    assert in_bank(0 * score, frame, 5, 2)[0][-1] == [4, 5]
    rounding = torch.tensor([[-1.0, -1 - 1e-6, -1 + 1e-6, -1, -1, -1]])
    assert in_bank(rounding, frame, 5, 3)[0][-1] == [3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_masked_node_is_never_held(dtype: torch.dtype) -> None:
    score = torch.tensor([[-1.0, torch.finfo(dtype).min, -torch.inf, -9]], dtype=dtype)
    assert in_bank(score, torch.tensor([[0, 0, 1, 1]]), 2, 4) == [[[], [0], [3, 0]]]


def chunks(bank: LongBank, x: Tensor, frame: Tensor, bias: Tensor | None, cuts: list[int]) -> tuple[Tensor, list[Entries]]:
    """One video of a batch, chunk after chunk; all chunks have nodes."""
    earlier, out, seen = None, [], []
    for first, last in pairwise(cuts):
        here = (frame[0] >= first) & (frame[0] < last)
        position = nn.functional.pad((frame[:, here] - first).unsqueeze(2).float(), (0, 2))
        nodes = Tokens(x_BND=x[:, here], position_BN3=position, bias_BN=None if bias is None else bias[:, here])
        changed, earlier = bank.go_on(nodes, last - first, earlier)
        out.append(changed)
        seen.append(earlier)
    return torch.cat(out, dim=1), seen


@pytest.mark.parametrize("cuts", [[0, 9], [0, 3, 6, 9], [0, 1, 2, 5, 6, 9]])
@pytest.mark.parametrize("scored", [True, False])
def test_carried_from_chunk_to_chunk_it_is_as_whole(cuts: list[int], scored: bool) -> None:
    torch.manual_seed(0)
    bank = shaken(LongBank(8, 6, 4, eps=1e-6))
    frame = torch.tensor([[0, 0, 1, 1, 1, 3, 3, 5, 5, 5, 6, 8]])
    x, bias = torch.randn(1, 12, 8), torch.randn(1, 12).round() if scored else None
    out, seen = chunks(bank, x, frame, bias, cuts)
    torch.testing.assert_close(out, bank(x, frame, 9, bias), atol=1e-6, rtol=1e-5)
    now = bank.entries(bank.norm(x), frame, bias)
    expected = written(now, held_before(now.score_BA, frame, 9, 4), 9)
    torch.testing.assert_close(seen[-1].said_BAX, expected.said_BAX)
    assert torch.equal(seen[-1].score_BA, expected.score_BA) and torch.equal(seen[-1].frame_BA, expected.frame_BA)
    assert bool((seen[-1].frame_BA < 0).all())
    assert all(one.said_BAX.shape == (1, 4, 12) and one.score_BA.shape == one.frame_BA.shape == (1, 4) for one in seen)


@pytest.mark.parametrize("scored", [True, False])
def test_a_read_equals_a_loop_over_nodes(scored: bool) -> None:
    torch.manual_seed(0)
    bank = shaken(LongBank(8, 8, 3, eps=1e-6))
    x, frame = torch.randn(2, 7, 8), torch.tensor([[0, 0, 1, 3, 3, 4, 4], [1, 1, 1, 2, 2, 2, 4]])
    bias = torch.randn(2, 7) if scored else None
    h = bank.norm(x)
    said = bank.say(h).unflatten(2, (4, 2, 2))
    query = bank.query(h).unflatten(2, (4, 2))
    expected = x.clone()
    for b in range(2):
        score = [0.0] * 7 if bias is None else bias[b].tolist()
        held = literally(score, frame[b].tolist(), 5, 3)
        for i in range(7):
            nodes = held[int(frame[b, i])]
            if not nodes:
                continue
            gap = torch.tensor([math.log1p(float(frame[b, i] - frame[b, j])) for j in nodes])
            logit = torch.stack([(said[b, j, :, 0] * query[b, i]).sum(1) / math.sqrt(2) + score[j] for j in nodes]) + bank.gap(gap[:, None])
            weight = logit.softmax(dim=0)
            heard = torch.einsum("kh,khd->hd", weight, torch.stack([said[b, j, :, 1] for j in nodes])).flatten()
            expected[b, i] += bank.output(heard + bank.gap_value((weight * gap[:, None]).sum(dim=0)))
    out = bank(x, frame, 5, bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    first = (0, slice(0, 2)), (1, slice(0, 3))
    assert all(torch.equal(out[where], x[where]) for where in first), "an empty bank adds nothing"


def test_a_read_in_many_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bank = shaken(LongBank(8, 6, 3, eps=1e-6))
    x, frame, bias = torch.randn(2, 9, 8), torch.arange(9).expand(2, -1) // 2, torch.randn(2, 9)
    whole = bank(x, frame, 5, bias)
    monkeypatch.setattr("vitgs.graphsampler.bank.block_rows", lambda *_: 4)
    torch.testing.assert_close(bank(x, frame, 5, bias), whole)


def test_a_node_hears_nothing_of_its_own_frame_or_later() -> None:
    torch.manual_seed(0)
    bank = shaken(LongBank(8, 6, 3, eps=1e-6))
    x, frame = torch.randn(1, 6, 8), torch.tensor([[0, 0, 1, 2, 2, 3]])
    later = x.clone()
    later[:, 3:] += torch.randn(1, 3, 8)
    out, changed = bank(x, frame, 4, None), bank(later, frame, 4, None)
    assert torch.equal(out[:, :3], changed[:, :3])
    assert not torch.allclose(out[:, 5], changed[:, 5] - later[:, 5] + x[:, 5])


@pytest.mark.parametrize(
    "knobs",
    [{}, {"memory": 0, "layers": 0}, {"readout": "class", "utility": "none"}, {"merge": "tome", "attention": "joint"}, {"place": "between"}],
    ids=str,
)
def test_at_its_start_the_bank_changes_nothing(knobs: dict[str, object]) -> None:
    plain, banked = build(**knobs), build(bank=8, **knobs)
    report = banked.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys and {key.split(".")[0] for key in report.missing_keys} == {"bank"}
    with torch.no_grad():
        assert torch.equal(banked(video()), plain(video()))
        assert banked.bank is not None
        shaken(banked.bank)
        assert not torch.allclose(banked(video()), plain(video()))


def test_the_gradient_reaches_what_is_learned_and_the_utility() -> None:
    torch.manual_seed(0)
    bank = LongBank(8, 6, 3, eps=1e-6)
    nn.init.normal_(bank.output.weight)
    x, bias = torch.randn(2, 8, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    torch.autograd.backward(bank(x, torch.arange(8).expand(2, -1) // 2, 4, bias).square().sum())
    for name, parameter in [*bank.named_parameters(), ("x", x), ("bias", bias)]:
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()) and float(parameter.grad.abs().sum()) > 0, name
    model = build(bank=4).train()
    torch.autograd.backward(objective(model, Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1])), 0.0, torch.Generator()).total)
    assert model.bank is not None and float(model.bank.output.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_the_read_is_counted_and_grows_with_the_bank() -> None:
    macs = []
    for count in (4, 8):
        bank = LongBank(8, 6, count, eps=1e-6).to("meta")
        with FormulaCounter() as counter, torch.no_grad():
            bank(torch.empty(2, 12, 8, device="meta"), torch.empty(2, 12, dtype=torch.long, device="meta"), 4, None)
        assert not counter.undescribed
        macs.append(counter.macs)
    # Four more entries: keys and values of 6 numbers for 24 nodes, and the gap's MLP of 1, 16 and 3 for 8 frames.
    assert macs[1] - macs[0] == 4 * (24 * 2 * 6 + 8 * (16 + 16 * 3))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"bank": -1}, "bank must be a whole number between 0 and 4096"),
        ({"bank": 2.5}, "whole number"),
        ({"cell": "lstm"}, "cell must be one of gru, rnn"),
    ],
)
def test_what_no_bank_can_be_is_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(**knobs)
