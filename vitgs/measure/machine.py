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
UNLIMITED = 2**60  # version 1 writes a number of that order where there is no limit
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
    info = text_of("/proc/cpuinfo")
    found = re.search(r"^(?:model name|Hardware|cpu model)\s*:\s*(.+)$", info, re.MULTILINE)
    if found:
        return found.group(1).strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    implementer, part = (re.search(rf"^{name}\s*:\s*(\S+)", info, re.MULTILINE) for name in ("CPU implementer", "CPU part"))
    if implementer and part:
        return f"{platform.machine()} {implementer.group(1)} {part.group(1)}"
    return platform.processor() or platform.machine()


def cpu_quota_cores(root: Path = Path("/")) -> float | None:
    """How many cores' worth of time this process may use: the tightest limit of its cgroups, version 2 or 1; None without a limit."""
    return min(filter(None, map(_limit_cores, control_groups("cpu", root))), default=None)


def control_groups(kind: str, root: Path = Path("/")) -> list[Path]:
    """The folders of the cgroups that limit this process's `cpu` or `memory`, its own and all above it, as far as it sees them."""
    mounts = root / "sys/fs/cgroup"
    places = {mounts: "/", mounts / kind: "/"}
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        # A path through `..` lies outside the container's own view: only the root of the view can be read.
        own = "/" if ".." in path.split("/") or not path.startswith("/") else path
        if not kinds:
            places |= {mounts: own, mounts / "unified": own}
        elif kind in kinds.split(","):
            places |= {mounts / kinds: own, mounts / kind: own}
    folders_above = ((base / own.strip("/"), base) for base, own in places.items())
    found = [folder for own, base in folders_above for folder in (own, *own.parents) if folder.is_relative_to(base)]
    # `cpu` is often a link to `cpu,cpuacct`: what is one place is counted once.
    return list({folder.resolve(): folder for folder in found if folder.is_dir()})


def _limit_cores(group: Path) -> float | None:
    quota, period = [*text_of(group / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = (text_of(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) and int(period) else None


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds: on the wall, and of CPU work by everybody and by this process with its ended children. `counted_s`: all that the system's counters
    saw, idling included; None where they don't tell that."""

    wall_s: float
    all_s: float | None
    own_s: float
    counted_s: float | None = None


def cpu_times() -> CpuTimes:
    """A reading, to be compared with a later one by `foreign_share`."""
    words = text_of("/proc/stat").partition("\n")[0].split()
    busy = counted = None
    if len(words) >= 9 and words[0] == "cpu":
        user, nice, system, idle, waiting, irq, soft, steal = map(int, words[1:9])
        # Stolen time is work of other tenants on these cores: it counts.
        ticks = user + nice + system + irq + soft + steal
        busy, counted = ticks / os.sysconf("SC_CLK_TCK"), (ticks + idle + waiting) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    own_s = own.user + own.system + own.children_user + own.children_system
    return CpuTimes(wall_s=time.monotonic(), all_s=busy, own_s=own_s, counted_s=counted)


def foreign_share(before: CpuTimes, after: CpuTimes) -> float | None:
    """Which share of all cores others used between two readings; None where the system doesn't tell.

    On an idle machine nothing but idling is counted, and the share is 0; counters that don't move at all (some sandboxes) tell nothing.
    """
    wall = after.wall_s - before.wall_s
    if before.all_s is None or after.all_s is None or wall <= 0 or after.all_s < before.all_s:
        return None
    idled = before.counted_s is not None and after.counted_s is not None and after.counted_s > before.counted_s
    if after.all_s == before.all_s and not idled:
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
    models = sorted(
        re.findall(r"^Model:\s*(.+)$", "\n".join(text_of(p) for p in Path("/proc/driver/nvidia/gpus").glob("*/information")), re.MULTILINE)
    )
    version = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text_of("/proc/driver/nvidia/version"))
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


def text_of(path: str | Path) -> str:
    """A file's text, empty where it can't be read."""
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


def memory_limits(root: Path = Path("/")) -> list[tuple[int, int | None]]:
    """Limit and present use, in bytes, of each cgroup of this process that limits memory (version 2, then 1); file pages that it would give up at
    once are no use."""
    found = []
    for group in control_groups("memory", root):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, taken = (text_of(group / name).strip() for name in (most, used))
            if limit.isdigit() and int(limit) < UNLIMITED:
                idle = re.search(r"^(?:total_)?inactive_file (\d+)$", text_of(group / "memory.stat"), re.MULTILINE)
                found.append((int(limit), max(int(taken) - int(idle[1] if idle else 0), 0) if taken.isdigit() else None))
    return found


def _ram_limit_bytes() -> int | None:
    return min((limit for limit, _ in memory_limits()), default=None)
