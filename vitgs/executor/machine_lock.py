"""One lock a machine, across commands and users: whoever measures is alone, whoever trains shares the machine with training only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT_S = 0.2


def lock_file() -> Path:
    """Where the lock lies: the same for every user of the machine, unless `$VITGS_MACHINE_LOCK` names another (tests must not wait for a sweep)."""
    return Path(os.environ.get("VITGS_MACHINE_LOCK") or Path(tempfile.gettempdir()) / "vitgs-bench-machine.lock")


@contextlib.contextmanager
def machine_lock(*, alone: bool, waiting: Callable[[], None] | None = None, given_up: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Holds the machine, alone or shared. `waiting` is called once if somebody else has it; yields False when `given_up` said so first.

    The kernel frees the lock when its holder ends, however that happens.
    """
    path = lock_file()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # made by another user under a strict umask: a lock needs no more than reading
        descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)
        yield _locked(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, waiting, given_up)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, how: int, waiting: Callable[[], None] | None, given_up: Callable[[], bool] | None) -> bool:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if given_up is not None and given_up():
                return False
            if waiting is not None and not told:
                waiting()
                told = True
            time.sleep(WAIT_S)
