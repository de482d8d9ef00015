"""Peak memory, under names that say which: live tensor bytes (counted, the same each run), resident growth (the process), CUDA peaks."""

from __future__ import annotations

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vitgs.errors import UsageError
from vitgs.measure import machine
from vitgs.measure.setting import synchronise
from vitgs.record import Estimate

INPUTS_AT_ONCE = 4  # batches of input that timing keeps beside what the model makes


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`peak_live_bytes` is of what the pass itself makes: weights and input are apart, kernels' own scratch space is not seen."""

    peak_live_bytes: int
    weights_bytes: int
    input_bytes: int
    peak_resident_growth_bytes: Estimate
    cuda_allocated_bytes: Estimate
    cuda_reserved_bytes: Estimate


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operators make under `with` and that are still alive. `known` tensors (weights, input) are not counted."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        # Followed by the storage's Python object, which torch keeps one and the same for as long as the storage lives.
        self._known = {id(storage): storage for storage in (t.untyped_storage() for t in known)}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self._known:
            return
        if name not in self._sizes:
            weakref.finalize(storage, self._gone, name).atexit = False
        self.live_bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _gone(self, name: int) -> None:
        self.live_bytes -= self._sizes.pop(name)


def peak_live_bytes(call: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """The most bytes alive at one moment of `call()`, results included."""
    with LiveBytes(known) as counter:
        call()
    return int(counter.peak_bytes)


def weights_bytes(model: nn.Module) -> int:
    """Parameters and buffers, shared storages once."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in (*model.parameters(), *model.buffers()))}.values())


def resident_growth(call: Callable[[], object]) -> Estimate:
    """How far `call()` lifted the process's peak resident size above its size before: meaningful for a first call, in a fresh process."""
    gc.collect()
    status = Path("/proc/self/status")
    before = _field_bytes(status, "VmRSS")
    if before is not None and _reset_peak():
        call()
        after = _field_bytes(status, "VmHWM")
        if after is not None and after > before:
            return Estimate(value=float(after - before), samples=(float(after - before),), method="VmHWM after a reset, less VmRSS before")
        return Estimate.missing("the process did not grow: it had freed memory to use again")
    peak_before = _maxrss_bytes()
    call()
    growth = _maxrss_bytes() - peak_before
    if growth <= 0:
        return Estimate.missing("the peak resident size had been higher before, and the system doesn't let it be reset")
    return Estimate(value=float(growth), samples=(float(growth),), method="growth of ru_maxrss: a lower bound, the peak before it is included")


def cuda_peaks(call: Callable[[], object], device: torch.device) -> tuple[Estimate, Estimate]:
    """Allocated (weights and input included) and reserved peaks of `call()`; missing on other devices."""
    if device.type != "cuda":
        absent = Estimate.missing(f"no CUDA memory: the device is {device.type}")
        call()
        return absent, absent
    synchronise(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronise(device)
    allocated, reserved = float(torch.cuda.max_memory_allocated(device)), float(torch.cuda.max_memory_reserved(device))
    return (
        Estimate(value=allocated, samples=(allocated,), method="torch.cuda.max_memory_allocated"),
        Estimate(value=reserved, samples=(reserved,), method="torch.cuda.max_memory_reserved"),
    )


def peaks(model: nn.Module, call: Callable[[], object], clip: Tensor, device: torch.device) -> Memory:
    """All peaks of `call()`, which runs `model` on `clip`: twice, first for the process and the device, then counted."""
    taken: list[tuple[Estimate, Estimate]] = []
    resident = resident_growth(lambda: taken.append(cuda_peaks(call, device)))
    if not taken:
        raise UsageError("a memory pass must run its call", given="no run", remedy="pass a call that runs the model")
    return Memory(
        peak_live_bytes=peak_live_bytes(call, (*model.parameters(), *model.buffers(), clip)),
        weights_bytes=weights_bytes(model),
        input_bytes=clip.untyped_storage().nbytes(),
        peak_resident_growth_bytes=resident,
        cuda_allocated_bytes=taken[0][0],
        cuda_reserved_bytes=taken[0][1],
    )


def free_bytes(device: torch.device) -> int | None:
    """What this process may still take on the device; on CPU, half of what the machine or its container has left, since a process that takes too
    much there is ended without a word. None where the system doesn't tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    groups = [limit - (used or 0) for limit, used in machine.memory_limits()]
    known = [value for value in (_field_bytes(Path("/proc/meminfo"), "MemAvailable"), *groups) if value is not None]
    return max(min(known), 0) // 2 if known else None


def room_for(seen: Memory, batch: int, device: torch.device) -> Callable[[int], bool]:
    """Whether a batch of n would fit, from what was seen at `batch`: activations and inputs grow with n. True where the system doesn't tell."""
    per_clip_bytes = (seen.peak_live_bytes + INPUTS_AT_ONCE * seen.input_bytes) / batch
    free = free_bytes(device)
    return lambda count: free is None or count * per_clip_bytes <= free


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _field_bytes(status: Path, name: str) -> int | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def _maxrss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux
