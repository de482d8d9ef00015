"""The parent's end of two workers: a process in each tree, asked and answered by JSON lines, ended when the `with` is left.

The parent sleeps in a blocking wait while a worker computes: on two cores a parent that spins would be measured too.

Where both trees have the same Python, one new process imports torch and forks into both sides: half the work of starting, and what was placed in
memory until then lies at the same places for both. (Where that happens to be makes one process a per cent or two faster than the next.)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from vitgs.errors import VitgsError

WORKER = Path(__file__).with_name("worker.py")
LIMIT_S = 600.0
FORKS = sys.platform == "linux"  # elsewhere the libraries that torch brings don't bear it


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One revision on the disk, and the Python that runs it."""

    side: Literal["base", "head"]
    folder: Path
    python: str
    threads: int = 1


Side = Literal["base", "head"]


class Lacks(VitgsError):
    """This tree doesn't have the case. `side`: which tree."""

    exit_code = 3
    side: Side = "head"


class Fails(VitgsError):
    """This tree has the case and can't run it, or can't be imported at all. `side`: which tree."""

    exit_code = 3
    side: Side = "head"


@dataclass(frozen=True, kw_only=True)
class _Pipes:
    """Between the parent and one worker. `theirs`: the worker's ends, and the file for what it says on standard error."""

    requests: RawIOBase
    answers: TextIO
    said: IO[bytes]
    theirs: tuple[int, int, int]


class Worker:
    """`worker.ask("exact", case)`; `both` makes two."""

    def __init__(self, tree: Tree, process: subprocess.Popen[bytes], pipes: _Pipes, *, limit_s: float) -> None:
        self._tree, self._process, self._pipes, self._limit_s = tree, process, pipes, limit_s

    def tell(self, do: str, case: Mapping[str, Any], calls: int = 0, cores: Sequence[int] = ()) -> None:
        """Sends a request; `hear` waits for its answer. `cores`: where the process is to work from now on; none: where it does already."""
        with contextlib.suppress(BrokenPipeError):  # it is dead: `hear` says how it died
            self._pipes.requests.write(json.dumps({"do": do, "case": case, "calls": calls, "cores": list(cores)}).encode() + b"\n")

    def hear(self, name: str) -> Any:
        """The answer about the case of that name."""
        ready, _, _ = select.select([self._pipes.answers], [], [], self._limit_s)
        line = self._pipes.answers.readline() if ready else ""
        if not line:
            raise self._failure(name, "no answer in time" if not ready else self._last_words())
        answer = json.loads(line)
        if "lacks" in answer:
            remedy = 'if it was renamed, give the case was = "its name there"' if self._tree.side == "base" else "correct the suite"
            lacks = Lacks(f"the {self._tree.side} must have the case {name}", given=answer["lacks"], remedy=remedy)
            lacks.side = self._tree.side
            raise lacks
        if "fails" in answer:
            raise self._failure(name, answer["fails"])
        return answer["ok"]

    def ask(self, do: str, case: Mapping[str, Any], calls: int = 0) -> Any:
        """Tells and hears."""
        self.tell(do, case, calls)
        return self.hear(case["name"])

    def _failure(self, name: str, given: str) -> Fails:
        side = self._tree.side
        remedy = "name a base that works" if side == "base" else "mend it first"
        fails = Fails(f"the {side} must import and run the case {name}", given=given, remedy=f"{remedy} (see it with vitgs-bench cost there)")
        fails.side = side
        return fails

    def _last_words(self) -> str:
        self._pipes.said.seek(0)
        words = [line for line in self._pipes.said.read().decode(errors="replace").splitlines() if line.strip()]
        return words[-1].strip()[:300] if words else f"exit status {self._process.wait()}"


@contextlib.contextmanager
def both(first: Tree, second: Tree, *, limit_s: float = LIMIT_S) -> Iterator[tuple[Worker, Worker]]:
    """Fresh workers in these trees, in this order. Nobody waits for their start: it is part of their first answer."""
    shared = FORKS and (first.python, first.threads) == (second.python, second.threads)
    with contextlib.ExitStack() as stack:
        groups = [[first, second]] if shared else [[first], [second]]
        one, other = [worker for trees in groups for worker in stack.enter_context(_started(trees, limit_s))]
        yield one, other


@contextlib.contextmanager
def _started(trees: Sequence[Tree], limit_s: float) -> Iterator[list[Worker]]:
    """The workers of one process: itself for a single tree, else what it forks into."""
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(_piped()) for _ in trees]
        sides = [
            {"tree": str(tree.folder), "paths": _paths(tree), "bytecode": tree.side == "base", "ends": pipe.theirs}
            for tree, pipe in zip(trees, pipes, strict=True)
        ]
        threads = {name: str(trees[0].threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        process = subprocess.Popen(
            # -P: the folder of the script must not stand in for the standard library.
            [trees[0].python, "-P", str(WORKER), json.dumps(sides)],
            env={**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0", "PYTHONPATH": ""}, cwd=trees[0].folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=pipes[0].said, pass_fds=[end for pipe in pipes for end in pipe.theirs],
            process_group=0,  # it and its forks are ended together
        )  # fmt: skip
        stack.callback(_ended, process, pipes)
        for pipe in pipes:
            for end in pipe.theirs[:2]:  # held here as well, an answer's end would never come
                os.close(end)
        yield [Worker(tree, process, pipe, limit_s=limit_s) for tree, pipe in zip(trees, pipes, strict=True)]


@contextlib.contextmanager
def _piped() -> Iterator[_Pipes]:
    with tempfile.TemporaryFile() as said:
        (their_requests, requests), (answers, their_answers) = os.pipe(), os.pipe()
        with open(requests, "wb", buffering=0) as asked, open(answers, encoding="utf-8") as answered:
            yield _Pipes(requests=asked, answers=answered, said=said, theirs=(their_requests, their_answers, said.fileno()))


def _ended(process: subprocess.Popen[bytes], pipes: Sequence[_Pipes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in pipes:
        pipe.answers.read()  # ends when the last process that could answer is gone


def _paths(tree: Tree) -> list[str]:
    """Where modules are looked for first: the tree, or else where this `vitgs` is imported from for a tree that has none of its own."""
    installed = [] if (tree.folder / "vitgs").is_dir() else [str(WORKER.parents[2])]
    return [str(tree.folder), str(tree.folder / "src"), *installed]
