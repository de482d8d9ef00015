"""Jobs on this machine: one fresh process each, that can be ended when its time is over and whose death takes nothing else with it.

The interface is that of `concurrent.futures.Executor`, with a time limit (`submit_limited`). A pool of the standard library reuses its processes
and breaks as a whole when one dies, so it won't do. On Linux, processes fork from a server that has imported torch already, which saves seconds
a job; elsewhere, where system libraries don't bear forking, they are spawned.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vitgs.errors import VitgsError
from vitgs.executor.machine_lock import machine_lock

P = ParamSpec("P")
T = TypeVar("T")
GRACE_S = 5.0


class Died(VitgsError):
    """A process ended without an answer. `oom`: killed as the kernel kills what takes too much memory."""

    exit_code = 1
    oom = False


class TimedOut(VitgsError):
    """A process was ended because its time was over."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class _Task:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    limit_s: float | None
    future: Future[Any]


class LocalExecutor(Executor):
    """`workers` processes side by side. `alone`: each holds the machine by itself (and then there is one at a time), else they share it.

    `preload`: modules that the server of forks imports once.
    """

    def __init__(self, workers: int, *, alone: bool = False, preload: tuple[str, ...] = (), waiting: Callable[[], None] | None = None) -> None:
        self._context = _context(preload)
        self._alone, self._waiting = alone, waiting
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._running: set[BaseProcess] = set()
        self._lock, self._closed, self._cancelled = threading.Lock(), False, False
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"lane-{i}") for i in range(1 if alone else workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs `fn` in a fresh process, without a time limit."""
        return self.submit_limited(None, fn, *args, **kwargs)

    def submit_limited(self, limit_s: float | None, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs `fn` in a fresh process; the future raises `TimedOut` after `limit_s`, `Died` when the process ends without an answer."""
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future: Future[T] = Future()
            self._tasks.put(_Task(function=fn, args=args, kwargs=dict(kwargs), limit_s=limit_s, future=future))
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more work. With `cancel_futures`, running processes are ended too."""
        with self._lock:
            if not self._closed:
                for _ in self._threads:
                    self._tasks.put(None)
            self._closed = True
            if cancel_futures:
                self._cancelled = True
                for process in self._running:
                    process.kill()
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._cancelled:
                task.future.cancel()
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                with machine_lock(alone=self._alone, waiting=self._waiting, given_up=lambda: self._cancelled) as held:
                    if not held:
                        raise _died("it was cancelled before it began")
                    answer = self._run(task)
            except BaseException as error:
                task.future.set_exception(error)
            else:
                task.future.set_result(answer)

    def _run(self, task: _Task) -> Any:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(theirs, task.function, task.args, task.kwargs), daemon=True)  # type: ignore[attr-defined]
        with self._lock:
            if self._cancelled:
                raise _died("it was cancelled before it began")
            process.start()
            self._running.add(process)
        theirs.close()
        try:
            return _answer(process, ours, task.limit_s)
        finally:
            with self._lock:
                self._running.discard(process)
            process.kill()
            process.join()
            process.close()
            ours.close()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(preload: tuple[str, ...]) -> BaseContext:
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _answer(process: BaseProcess, ours: connection.Connection, limit_s: float | None) -> Any:
    """What the process sent, or the exception that says how it ended."""
    until = None if limit_s is None else time.monotonic() + limit_s
    while True:
        rest = None if until is None else max(0.0, until - time.monotonic())
        ready = connection.wait([ours, process.sentinel], timeout=rest)
        if ours in ready:
            with contextlib.suppress(EOFError, OSError):
                succeeded, value = ours.recv()
                if not succeeded:
                    raise value
                return value
        if process.sentinel in ready or ours in ready:
            process.join(GRACE_S)
            raise _died(_how(process.exitcode), oom=process.exitcode == -signal.SIGKILL)
        if not ready:
            raise TimedOut(
                "a job must end within its time limit",
                given=f"{limit_s:g} s are over",
                remedy="raise the limit in the profile, or make the job smaller",
            )


def _how(exitcode: int | None) -> str:
    if exitcode is None:
        return "it closed its pipe"
    if exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in {s.value for s in signal.Signals} else f"signal {-exitcode}"
        return f"{name}, as when memory runs out" if -exitcode == signal.SIGKILL else name
    return f"exit status {exitcode}"


def _died(how: str, *, oom: bool = False) -> Died:
    error = Died("a job's process must live until its answer", given=how, remedy="run it by itself with `python -m vitgs.run` to see why")
    error.oom = oom
    return error


def _child(theirs: connection.Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The whole life of a job's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    with contextlib.suppress(OSError):  # when memory runs out, the kernel shall end a job, not the sweep
        Path("/proc/self/oom_score_adj").write_text("500")
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    try:
        answer = (True, function(*args, **kwargs))
    except BaseException as error:  # the process boundary: it goes to the future
        answer = (False, _portable(error))
    theirs.send(answer)
    theirs.close()


def _portable(error: BaseException) -> BaseException:
    """An exception that unpickles on the other side."""
    if isinstance(error, (VitgsError, MemoryError)):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """A sweep that is killed leaves nobody behind: the pipe that only the parent holds open tells."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
