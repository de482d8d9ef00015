"""The cores that others use least, for both sides of a comparison: on different cores they would have different neighbours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from vitgs.measure.machine import text_of

WINDOW_S = 0.5
_IDLE, _WAITING, _STOLEN = 3, 4, 7  # the columns of /proc/stat that are nobody's work here; a core that is stolen from is no quiet one


def quietest(count: int, *, window_s: float = WINDOW_S, read: Callable[[], str] = lambda: text_of("/proc/stat")) -> tuple[int, ...]:
    """So many of the cores that this process may use, the idlest during the window; none where that can't be known or there is no choice."""
    may_use = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(may_use) <= count:
        return ()
    before = _ticks(read())
    time.sleep(window_s)
    after = _ticks(read())
    idle = {core: _idle_share(before[core], after[core]) for core in may_use if core in before and core in after}
    if len(idle) < len(may_use):
        return ()
    return tuple(sorted(idle, key=lambda core: (-idle[core], core))[:count])


def _ticks(text: str) -> dict[int, list[int]]:
    lines = (line.split() for line in text.splitlines() if line.startswith("cpu"))
    return {int(words[0][3:]): [int(word) for word in words[1:9]] for words in lines if words[0] != "cpu" and len(words) > _STOLEN + 1}


def _idle_share(before: list[int], after: list[int]) -> float:
    spent = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return (spent[_IDLE] + spent[_WAITING]) / sum(spent) if sum(spent) > 0 else 1.0
