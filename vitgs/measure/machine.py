"""Which machine a number belongs to, without saying whose: models and versions, never a host name, user name or path. Doesn't import torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vitgs import folders

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "optuna", "av", "fvcore", "ptflops", "nvidia-ml-py")
FOREIGN_LIMIT = 0.10  # share of all cores that others may use before a timing counts as contaminated


def describe() -> dict[str, object]:
    """The environment field of a record; null where this system doesn't tell."""
    commit, dirty = _git()
    gpus, driver = _gpus()
    load = os.getloadavg() if hasattr(os, "getloadavg") else (None,)
    torch = sys.modules.get("torch")
    return {
        "machine": slug(),
        "versions": {"python": platform.python_version()} | {name: version for name in PACKAGES if (version := _version(name))},
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "cpu_cores_allowed": _allowed_cores(),
        "cpu_quota_cores": cpu_quota_cores(),
        "threads": torch.get_num_threads() if torch else None,
        "ram_bytes": _ram_bytes(),
        "ram_limit_bytes": _ram_limit_bytes(),
        "gpus": gpus,
        "gpu_driver": driver,
        "load_1min": load[0],
        "git_commit": commit,
        "git_dirty": dirty,
    }


def slug() -> str:
    """`<cpu or gpu model>-<6 hex digits>`, the name of this kind of machine's results folder: the same for machines of the same make and share."""
    gpus, _ = _gpus()
    model = gpus[0] if gpus else cpu_model()
    identity = "|".join(map(str, (cpu_model(), platform.machine(), os.cpu_count(), _allowed_cores(), cpu_quota_cores(), *gpus)))
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor|nvidia)\b|@.*", " ", model.lower())
    name = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:40].rstrip("-")
    return f"{name or platform.machine().lower()}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"


def cpu_model() -> str:
    """The CPU's model name as its maker writes it."""
    info = _text("/proc/cpuinfo")
    found = re.search(r"^(?:model name|Hardware|cpu model)\s*:\s*(.+)$", info, re.MULTILINE)
    if found:
        return found.group(1).strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    implementer, part = (re.search(rf"^{name}\s*:\s*(\S+)", info, re.MULTILINE) for name in ("CPU implementer", "CPU part"))
    if implementer and part:
        return f"{platform.machine()} {implementer.group(1)} {part.group(1)}"
    return platform.processor() or platform.machine()


def cpu_quota_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many cores' worth of time the container may use (cgroup version 2, then 1); None without a limit."""
    words = _text(root / "cpu.max").split()
    if len(words) == 2:
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota, period = (_text(root / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds: on the wall, and of CPU work by everybody and by this process with its ended children."""

    wall_s: float
    all_s: float | None
    own_s: float


def cpu_times() -> CpuTimes:
    """A reading, to be compared with a later one by `foreign_share`."""
    words = _text("/proc/stat").partition("\n")[0].split()
    busy = None
    if len(words) >= 9 and words[0] == "cpu":
        user, nice, system, _, _, irq, soft, steal = map(int, words[1:9])
        # Stolen time is work of other tenants on these cores: it counts.
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return CpuTimes(wall_s=time.monotonic(), all_s=busy, own_s=own.user + own.system + own.children_user + own.children_system)


def foreign_share(before: CpuTimes, after: CpuTimes) -> float | None:
    """Which share of all cores others used between two readings; None where the system doesn't tell."""
    wall = after.wall_s - before.wall_s
    if before.all_s is None or after.all_s is None or wall <= 0 or after.all_s <= before.all_s:
        return None
    foreign = (after.all_s - before.all_s) - (after.own_s - before.own_s)
    return min(max(foreign / (wall * (os.cpu_count() or 1)), 0.0), 1.0)


def busy_now(window_s: float = 0.3) -> float | None:
    """The share of all cores that others use at this moment."""
    before = cpu_times()
    time.sleep(window_s)
    return foreign_share(before, cpu_times())


def _gpus() -> tuple[list[str], str | None]:
    # Asked of the driver's own files first: NVML costs a library, torch costs a second.
    models = sorted(re.findall(r"^Model:\s*(.+)$", "\n".join(_text(p) for p in Path("/proc/driver/nvidia/gpus").glob("*/information")), re.MULTILINE))
    version = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _text("/proc/driver/nvidia/version"))
    return [m.strip() for m in models], version.group(1) if version else None


def _git() -> tuple[str | None, bool | None]:
    root = folders.checkout()
    if root is None or not (commit := _output("git", "-C", str(root), "rev-parse", "HEAD")):
        return None, None
    # Results and reports grow while a sweep runs; they don't change what is measured.
    status = _output("git", "-C", str(root), "status", "--porcelain", "--", ".", ":!results", ":!reports")
    return commit, None if status is None else bool(status)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _allowed_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _ram_limit_bytes() -> int | None:
    words = (_text("/sys/fs/cgroup/memory.max") or _text("/sys/fs/cgroup/memory/memory.limit_in_bytes")).split()
    return int(words[0]) if words and words[0] != "max" and int(words[0]) < 2**60 else None
