"""The parent's end of a worker: one process in one tree, asked and answered by JSON lines, ended when the `with` is left.

The parent sleeps in a blocking wait while a worker computes: on two cores a parent that spins would be measured too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from vitgs.errors import VitgsError

WORKER = Path(__file__).with_name("worker.py")
LIMIT_S = 600.0


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


class Worker:
    """`with Worker(tree) as worker: worker.ask("exact", case)`."""

    def __init__(self, tree: Tree, *, limit_s: float = LIMIT_S) -> None:
        self._tree, self._limit_s = tree, limit_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        paths = [str(tree.folder), str(tree.folder / "src")]
        threads = {name: str(tree.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        ours = {**threads, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0"}
        if tree.side == "head":  # somebody's checkout; the base is ours, and its next worker starts faster
            ours["PYTHONDONTWRITEBYTECODE"] = "1"
        self._process = subprocess.Popen(
            # -P: the folder of the script must not stand in for the standard library.
            [tree.python, "-P", str(WORKER), str(tree.folder)],
            env={**os.environ, **ours, "PYTHONPATH": os.pathsep.join(paths + _installed(tree))},
            cwd=tree.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]

    def tell(self, do: str, case: Mapping[str, Any], calls: int = 0, cores: Sequence[int] = ()) -> None:
        """Sends a request; `hear` waits for its answer. `cores`: where the process is to work from now on; none: anywhere."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: `hear` says how it died
            self._process.stdin.write(json.dumps({"do": do, "case": case, "calls": calls, "cores": list(cores)}) + "\n")
            self._process.stdin.flush()

    def hear(self, name: str) -> Any:
        """The answer about the case of that name."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit_s)
        line = self._process.stdout.readline() if ready else ""
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
        code = self._process.wait()
        self._said.seek(0)
        words = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return words[-1].strip()[:300] if words else f"exit status {code}"


def _installed(tree: Tree) -> list[str]:
    """Where this `vitgs` is imported from, for a tree that has none of its own."""
    return [] if (tree.folder / "vitgs").is_dir() else [str(WORKER.parents[2])]
