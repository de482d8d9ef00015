"""What NVIDIA's management library says about one GPU, found by UUID because CUDA's order is not its order. Reads only."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from vitgs.errors import UnfitMachine

_SLOWED = ("nvmlClocksThrottleReasonHwSlowdown", "nvmlClocksThrottleReasonSwThermalSlowdown", "nvmlClocksThrottleReasonHwThermalSlowdown")


class Gpu:
    """One GPU. `library` is the module `pynvml` of the package nvidia-ml-py, or anything with its functions."""

    def __init__(self, library: Any, uuid: str) -> None:
        self.library = library
        self._handle = library.nvmlDeviceGetHandleByUUID(uuid)

    def energy_mj(self) -> int:
        """Total energy since the driver was loaded, in millijoules."""
        return int(self.library.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def power_mw(self) -> int:
        """Power at this moment (newer GPUs: the mean of the last second), in milliwatts."""
        return int(self.library.nvmlDeviceGetPowerUsage(self._handle))

    def is_slice(self) -> bool:
        """Whether this is a part of a GPU (MIG); the counters are of the whole board, and others may work on its other parts."""
        try:
            return bool(self.library.nvmlDeviceIsMigDeviceHandle(self._handle))
        except (self.library.NVMLError, AttributeError):
            return False

    def strangers(self) -> int | None:
        """How many other compute processes there are; a container may show none or foreign process ids, so one entry counts as ours."""
        try:
            found = [p.pid for p in self.library.nvmlDeviceGetComputeRunningProcesses(self._handle)]
        except self.library.NVMLError:
            return None
        return len([pid for pid in found if pid != os.getpid()]) if os.getpid() in found else max(len(found) - 1, 0)

    def slowed(self) -> bool | None:
        """Whether heat or the hardware holds the clocks down at this moment."""
        try:
            reasons = int(self.library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        except self.library.NVMLError:
            return None
        return any(reasons & int(getattr(self.library, name, 0)) for name in _SLOWED)

    def facts(self) -> dict[str, object]:
        """Name, power limit, temperature and clock, as far as the driver tells."""
        asked: dict[str, Callable[[], object]] = {
            "power_limit_w": lambda: self.library.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000,
            "temperature_c": lambda: self.library.nvmlDeviceGetTemperature(self._handle, 0),
            "clock_mhz": lambda: self.library.nvmlDeviceGetClockInfo(self._handle, 1),
        }
        facts: dict[str, object] = {}
        for name, ask in asked.items():
            try:
                facts[name] = ask()
            except self.library.NVMLError:
                facts[name] = None
        return facts


def load() -> tuple[Any, str]:
    """The library, started, or None and why not. An unofficial package of the same module name is refused: its numbers can't be trusted."""
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    if not hasattr(library, "_nvmlGetFunctionPointer"):
        remedy = "uninstall pynvml and install nvidia-ml-py"
        raise UnfitMachine("GPU readings need the official package nvidia-ml-py", given="another package named pynvml", remedy=remedy)
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return None, f"NVML doesn't start: {error}"
    return library, ""


def find(device: torch.device, library: Any = None) -> tuple[Gpu | None, str]:
    """The GPU that torch calls `device`, or None and why not."""
    if device.type != "cuda":
        return None, f"the device is {device.type}"
    why = ""
    if library is None:
        library, why = load()
    if library is None:
        return None, why
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        return Gpu(library, uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"), ""
    except library.NVMLError as error:
        return None, f"NVML doesn't know this GPU: {error}"
