"""The largest batch and the best one, on a machine whose speed and memory are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vitgs.measure import memory
from vitgs.measure.batches import best_batch, largest_batch
from vitgs.measure.memory import Memory
from vitgs.record import Estimate

CPU = torch.device("cpu")


@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 4, 31, 32, 33, 63, 64, 200])
def test_the_largest_batch_is_found_by_bisection(fitting: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= fitting

    assert largest_batch(fits, 64) == min(fitting, 64)
    assert len(asked) == len(set(asked)) <= 13
    assert max(asked) <= 64


class Device:
    """A clock, and calls that take 1 ms and 1 ms a clip, 3 ms a clip above 8 clips; memory for `room` clips."""

    def __init__(self, room: int = 10**9) -> None:
        self.now_ns, self.room, self.sizes = 0, room, list[int]()

    def clock_ns(self) -> int:
        self.now_ns += 20
        return self.now_ns

    def call_of(self, size: int) -> Callable[[], None]:
        def call() -> None:
            if size > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(size)
            self.now_ns += 1_000_000 * (1 + size * (1 if size <= 8 else 3))

        return call


def test_the_best_batch_and_the_curve() -> None:
    device = Device()
    found = best_batch(device.call_of, lambda _: True, seconds=10.0, target=0.02, device=CPU, limit=64, clock_ns=device.clock_ns)
    assert found.batch == 8
    assert found.clips_per_s.value == pytest.approx(8000 / 9, rel=1e-3)
    assert found.clips_per_s.low is not None
    assert [point.batch for point in found.tried] == [1, 2, 4, 8, 16, 32, 64]
    assert (found.largest_batch, found.stopped, found.unstable) == (64, "the limit of 64 clips a batch", False)
    assert found.clips_per_s is not found.tried[3].clips_per_s, "timed again: the best of several is flattered"


def test_running_out_of_memory_is_a_point_of_the_curve() -> None:
    device = Device(room=20)
    found = best_batch(device.call_of, lambda _: True, seconds=10.0, target=0.02, device=CPU, limit=64, clock_ns=device.clock_ns)
    assert [(p.batch, p.clips_per_s.value is None) for p in found.tried] == [(1, False), (2, False), (4, False), (8, False), (16, False), (32, True)]
    assert found.tried[-1].clips_per_s.reason == "out of memory"
    assert "ran out at 32" in found.stopped


def test_memory_and_time_end_the_curve_and_say_so() -> None:
    device = Device()
    few = best_batch(device.call_of, lambda size: size <= 5, seconds=10.0, target=0.02, device=CPU, limit=64, clock_ns=device.clock_ns)
    assert (few.largest_batch, few.stopped, few.tried[-1].batch) == (5, "memory: 5 clips fit", 4)
    short = best_batch(device.call_of, lambda _: True, seconds=0.2, target=0.02, device=CPU, limit=64, clock_ns=device.clock_ns)
    assert short.stopped.startswith("time: a batch of 16")
    none = best_batch(device.call_of, lambda _: False, seconds=0.2, target=0.02, device=CPU, limit=64, clock_ns=device.clock_ns)
    assert (none.batch, none.clips_per_s.value) == (0, None)
    assert "not even one clip fits" in none.clips_per_s.reason


def test_a_failure_at_another_batch_ends_the_curve_and_stays_visible() -> None:
    def call_of(size: int) -> Callable[[], object]:
        return lambda: torch.ones(size, 2) + torch.ones(4, 2)

    found = best_batch(call_of, lambda _: True, seconds=0.1, target=0.5, device=CPU, limit=64)
    assert (found.batch, found.stopped) == (1, "a failure at 2 clips")
    assert "must run" in found.tried[-1].clips_per_s.reason


def test_room_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Estimate.missing("")
    seen = Memory(
        peak_live_bytes=600,
        weights_bytes=0,
        input_bytes=100,
        peak_resident_growth_bytes=missing,
        cuda_allocated_bytes=missing,
        cuda_reserved_bytes=missing,
    )
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    fits = memory.room_for(seen, 2, CPU)
    assert [fits(size) for size in (1, 2, 3)] == [True, True, False]
    monkeypatch.setattr(memory, "free_bytes", lambda _: None)
    assert memory.room_for(seen, 2, CPU)(10**9)


def test_free_memory_of_this_machine_is_known_or_not() -> None:
    free = memory.free_bytes(CPU)
    assert free is None or free > 0
