"""A known sequence of allocations has a known peak."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.measure import memory


def _sequence() -> Tensor:
    a = torch.ones(1000)  # 4,000 bytes alive
    b = a * 2  # 8,000
    c = a.view(10, 100)  # a view makes nothing
    del a, c  # 4,000
    d = b + 1  # 8,000
    d.add_(1)  # in place makes nothing
    e = torch.cat([b, d])  # 16,000: the peak
    del b, d
    return e.sum()


def test_peak_of_a_known_sequence_is_the_same_each_time() -> None:
    with torch.no_grad():
        assert [memory.peak_live_bytes(_sequence) for _ in range(3)] == [16_000] * 3


def test_known_tensors_and_their_views_are_not_counted() -> None:
    x = torch.ones(256)
    assert memory.peak_live_bytes(lambda: x.view(16, 16), [x]) == 0
    assert memory.peak_live_bytes(lambda: x.view(16, 16) + 1, [x]) == 1024


def test_resized_storages_count_their_growth() -> None:
    def grow() -> Tensor:
        out = torch.empty(0)
        return torch.add(torch.ones(100), 1, out=out)

    assert memory.peak_live_bytes(grow) == 800


def test_what_autograd_keeps_is_alive() -> None:
    w = torch.ones(100, requires_grad=True)
    kept: list[Tensor] = []
    assert memory.peak_live_bytes(lambda: kept.append((w * 2).exp().exp().exp()), [w]) == 1200


def test_weights_are_apart_and_shared_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    assert memory.weights_bytes(model) == 512
    model[1].weight = model[0].weight
    assert memory.weights_bytes(model) == 256


def test_peaks_say_which_they_are() -> None:
    model, x = nn.Linear(16, 4), torch.ones(2, 16)
    with torch.no_grad():
        seen = memory.peaks(model, lambda: model(x), x, torch.device("cpu"))
    assert (seen.peak_live_bytes, seen.weights_bytes, seen.input_bytes) == (32, 272, 128)
    for absent in (seen.cuda_allocated_bytes, seen.cuda_reserved_bytes):
        assert absent.value is None
        assert "cpu" in absent.reason


def test_resident_growth_sees_a_large_allocation_or_says_why_not() -> None:
    growth = memory.resident_growth(lambda: torch.ones(16_000_000))
    assert growth.value is None or growth.value > 0
    assert growth.method or growth.reason
    nothing = memory.resident_growth(lambda: None)
    assert nothing.value is None or nothing.value > 0, "never 0"
