"""How often the gate is wrong on a busy machine: real runs of `gate run` on unchanged and on slowed heads, one core burnt beside them.

    .venv/bin/python -m tests.benchmarks.gate_rates --minutes 60

A background job. Every run of the gate is one line of `results/gate-rates.ndjson`, on the disk before the next begins; the same command goes on where
it was, and a kill at any moment loses no more than the run in progress. The kinds take turns, so that a part of the job already says something: 100
runs of a head that changes nothing, and 40 each of a head in which one of the six cases (in turn) has become 3, 5 or 10 % slower by a real layer
(`gate_planted`; its size is measured beside the same load when it is first needed, and kept in the same record). `--minutes` ends the job in time;
the table is written anew after every run. Exit code 1 when a figure asked for is missed by the runs there are.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import gate_planted, rows
from tests.benchmarks.gate_table import missed, table
from tests.benchmarks.load import burning
from tests.benchmarks.rows import Row
from vitgs import folders, gate
from vitgs.errors import VitgsError
from vitgs.executor.machine_lock import machine_lock
from vitgs.gate import cases
from vitgs.gate.cases import GateSuite
from vitgs.measure import machine
from vitgs.record import digest, to_json

SHARES = (0.03, 0.05, 0.10)
DECIDE, TIME = ("blocks", "cores", "decide", "sides", "timed", "worker"), ("blocks",)
ANSWERS = (0, 1, 4)  # exit codes that are an answer about the change: none, slower, a machine that can't tell


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: its kind (0 for head against head, else the share planted), which one of its kind, and the case that is slowed."""

    share: float
    index: int
    case: str = ""


def plan(names: Sequence[str], same: int, slowed: int) -> list[Cell]:
    """All runs, the kinds spread evenly over the job."""
    counts = {0.0: same, **dict.fromkeys(SHARES, slowed)}
    turns = sorted(((i + 0.5) / count, share, i) for share, count in counts.items() for i in range(count))
    return [Cell(share=share, index=i, case=names[i % len(names)] if share else "") for _, share, i in turns]


def gate_code(names: Sequence[str] = DECIDE) -> str:
    """What the rates are of: the files that take times and decide, without their comments and docstrings."""
    folder = Path(gate.__file__).parent
    return digest({name: _code((folder / f"{name}.py").read_text(encoding="utf-8")) for name in names})


def _code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def outcome(code: int, printed: str, took_s: float) -> Row:
    """A run's part of its row, from what the gate printed; an exit code that is no answer is a failed run, to be made again."""
    last = printed.strip().splitlines()[-1:] or [""]
    if code not in ANSWERS or not last[0].startswith("{"):
        return {"status": "failed", "exit_code": code, "why": last[0][:300]}
    told = json.loads(last[0])["report"]
    return {
        "status": "measured", "exit_code": code, "wall_s": round(took_s, 2),
        "cases": {
            t["case"]: {
                "outcome": t["outcome"], "unconfirmed": t["unconfirmed"], "threshold": t["threshold"], "ratio": [t["ratio"], t["low"], t["high"]],
                "logs": _logs(t["samples_ms"]), "again": _logs(t["again_ms"]),
            } for t in told["timed"]
        },
        "counted": sorted({f["case"] for f in told["findings"] if f["kind"] == "regression"}), "left_out": told["left_out"],
    }  # fmt: skip


def _logs(pairs: Sequence[Sequence[float]]) -> list[float]:
    return [round(math.log(head / base), 5) for base, head in pairs]


@contextmanager
def _repository(suite: GateSuite) -> Iterator[tuple[Path, str, Path]]:
    with tempfile.TemporaryDirectory(prefix="vitgs-gate-rates-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve() / "repository"
        base, file = gate_planted.repository(folder, suite)
        yield folder, base, file


def _gate(folder: Path, base: str, suite: Path, seconds: float) -> Row:
    """One run of the command, as anybody runs it, its start included."""
    with machine_lock(alone=True, waiting=_waiting):
        pass  # whoever still works here is waited for, not timed
    command = [sys.executable, "-m", "vitgs", "gate", "run", "--base", base, "--repo", str(folder), "--suite", str(suite), "--seconds", str(seconds)]
    began_s = time.monotonic()
    # Standard error as a file: a pipe would have to be read meanwhile.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*command, "--json", "--out", str(folder.parent / "out")], stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()  # it removes its worktree
            process.wait()
            raise
        took_s = time.monotonic() - began_s
        said.seek(0)
        return outcome(process.returncode, printed or said.read().decode(errors="replace"), took_s)


class Stolen:
    """Which share of all cores' time the host has given to other guests since this was made."""

    def __init__(self) -> None:
        self._began = self._ticks()

    def share(self) -> float | None:
        """None where the system doesn't tell."""
        (stolen, counted), (before, then) = self._ticks(), self._began
        return round((stolen - before) / (counted - then), 3) if counted > then else None

    @staticmethod
    def _ticks() -> tuple[int, int]:
        words = [int(word) for word in machine.text_of("/proc/stat").partition("\n")[0].split()[1:9]]
        return (words[7], sum(words)) if len(words) == 8 else (0, 0)


def _waiting() -> None:
    print("waiting: another vitgs-bench works on this machine", flush=True)


def _planted(cell: Cell, given: argparse.Namespace, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> int:
    """The size of the layer: as measured before, or measured now and kept."""
    what = {"planted": cell.share, "case": cell.case}
    name = rows.name_of(what, settings)
    before = rows.latest(rows.read(given.out), settings)
    known = next((row for row in before if row["name"] == name), None)
    if known is None:
        # What another share of this case took says where to begin.
        first = [cell.share / row["planted"] * row["found"]["tokens"] for row in before if row["case"] == cell.case]
        with machine_lock(alone=True, waiting=_waiting):
            found = gate_planted.plant(
                cell.share, lambda tokens: gate_planted.measured(cell.case, tokens, pairs=given.pairs),
                first=round(first[-1]) if first else gate_planted.FIRST_TOKENS,
            )  # fmt: skip
        known = {"name": name, "status": "measured", **what, "found": asdict(found), "settings": settings, "environment": environment}
        rows.append(given.out, known)
        print(f"planted: {cell.case} {cell.share:.0%}: {found.tokens} tokens, {found.share:.2%}", flush=True)
    return int(known["found"]["tokens"])


def run(given: argparse.Namespace) -> bool:
    """Makes the runs that are not there yet, as long as there is time; whether all is as asked so far."""
    began_s = time.monotonic()
    suite = cases.load("gate")
    suite = dataclasses.replace(suite, cases=cases.chosen(suite, given.cases.split(",") if given.cases else None))
    settings, of_planted = _settings(given, suite)
    cells = plan([case.name for case in suite.cases], given.same, given.slowed)
    done = rows.measured(rows.read(given.out))
    environment = to_json(machine.describe())
    longest_s = 0.0
    with burning(given.load) as cores, _repository(suite) as (folder, base, file):
        for number, cell in enumerate(cells, 1):
            name = rows.name_of(asdict(cell), settings)
            if name in done:
                continue
            if given.minutes is not None and time.monotonic() - began_s + longest_s > 60 * given.minutes:
                print(f"the time is up before run {number} of {len(cells)}; the same command goes on", flush=True)
                break
            run_began_s = time.monotonic()
            tokens = {cell.case: _planted(cell, given, of_planted, environment)} if cell.share else {}
            gate_planted.head(folder, base, suite, name, tokens)
            stolen = Stolen()
            row = {"name": name, **asdict(cell), **_gate(folder, base, file, given.seconds), "settings": settings}
            rows.append(given.out, {**row, "burnt_cores": cores, "stolen": stolen.share(), "environment": environment})
            longest_s = max(longest_s, time.monotonic() - run_began_s)
            print(f"{number} of {len(cells)}: {_told(row)}", flush=True)
            _write(given, settings, of_planted)
    return not missed(_write(given, settings, of_planted))


def _settings(given: argparse.Namespace, suite: GateSuite) -> tuple[Row, Row]:
    """What a run depends on, and what the size of a planted layer does: on how calls are timed, not on how it is decided."""
    shared = {"load": given.load, "pairs": given.pairs, "cases": [case.request("head") for case in suite.cases], "machine": machine.slug()}
    of_run = {**shared, "seconds": given.seconds, "threshold": suite.threshold, "gate": gate_code()}
    return to_json(of_run), to_json({**shared, "timed": gate_code(TIME)})


def _write(given: argparse.Namespace, settings: Mapping[str, Any], of_planted: Mapping[str, Any]) -> list[Row]:
    every = rows.read(given.out)
    found = rows.latest(every, settings) + rows.latest(every, of_planted)
    given.table.parent.mkdir(parents=True, exist_ok=True)
    given.table.write_text(table(found, settings, asked={0.0: given.same, **dict.fromkeys(SHARES, given.slowed)}), encoding="utf-8")
    return found


def _told(row: Row) -> str:
    what = f"{row['case']} {row['share']:.0%} slower" if row["share"] else "no change"
    if row["status"] == "failed":
        return f"{what}: failed with {row['exit_code']}: {row['why']}"
    slower = [name for name, case in row["cases"].items() if case["outcome"] == "slower"]
    return f"{what}: {'slower: ' + ', '.join(slower) if slower else 'none slower'}, {row['wall_s']:.0f} s"


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="How often the gate is wrong on a busy machine.")
    parser.add_argument("--minutes", type=float, default=None, help="stop cleanly after about so many; without, all runs")
    parser.add_argument("--same", type=int, default=100, help="runs of head against head in all, those of earlier jobs included")
    parser.add_argument("--slowed", type=int, default=40, help="runs of each planted slowdown in all")
    parser.add_argument("--seconds", type=float, default=60.0, help="the gate's budget for its timed tier")
    parser.add_argument("--cases", default="", metavar="A,B", help="these cases of the gate's suite alone")
    parser.add_argument("--load", type=int, default=1, help="processes that burn a core each meanwhile")
    parser.add_argument("--pairs", type=int, default=gate_planted.PAIRS, help="pairs of blocks with which a planted slowdown is measured")
    parser.add_argument("--out", type=Path, default=folders.results() / "gate-rates.ndjson")
    parser.add_argument("--table", type=Path, default=folders.reports() / "gate-rates.md")
    return parser.parse_args(line)


def main() -> int:
    """The program; its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends the gate, the load and the folders too
    try:
        return 0 if run(arguments()) else 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
