"""A real load beside a measurement: processes that do nothing but burn one core each, for as long as the measurement lasts and no longer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from vitgs.errors import UsageError

# Looks for its parent now and then, so that it ends even when the parent is killed.
_BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))\n"


@contextlib.contextmanager
def burning(count: int) -> Iterator[list[int]]:
    """`count` processes, each pinned to a core of its own, at normal priority; yields the cores."""
    if count == 0:
        yield []
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--load pins processes to cores, which needs Linux", given=sys.platform, remedy="leave --load away here")
    cores = sorted(os.sched_getaffinity(0))[:count]
    if count < 0 or len(cores) < count:
        raise UsageError("--load burns one core a process", given=count, remedy=f"give 0 to {len(cores)}")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for core in cores:
            process = subprocess.Popen([sys.executable, "-S", "-c", _BURN])
            started.append(process)
            os.sched_setaffinity(process.pid, {core})
        yield cores
    finally:
        for process in started:
            process.terminate()
            process.wait()
