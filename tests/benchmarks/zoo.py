"""Does every system train? A page from the rows of `sweep --suite smoke --profile smoke-all`: does the loss fall, what is learnt above chance.

    .venv/bin/vitgs-bench sweep --suite smoke --profile smoke-all --out results/zoo
    .venv/bin/python -m tests.benchmarks.zoo results/zoo/*/smoke.jsonl --table reports/zoo.md

A task is learnt when the 95 % interval of the test top-1 lies above chance; a system passes when its loss fell on every task and it learnt two of
them. Exit code 1 when one doesn't. A training of a few steps tells that a system runs and learns, not how good it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitgs import registry
from vitgs.errors import NothingToWorkOn, VitgsError
from vitgs.numbers import percent
from vitgs.record import Record
from vitgs.store import records

LEAST_LEARNT = 2


@dataclass(kw_only=True)
class Cell:
    """One system on one task: mean loss of the first and the last quarter of its training, top-1 on test with its interval, chance."""

    first_loss: float | None = None
    last_loss: float | None = None
    top1: float | None = None
    low: float | None = None
    chance: float | None = None
    reason: str = ""

    @property
    def fell(self) -> bool:
        return self.first_loss is not None and self.last_loss is not None and self.last_loss < self.first_loss

    @property
    def learnt(self) -> bool:
        return self.low is not None and self.chance is not None and self.low > self.chance

    def __str__(self) -> str:
        if self.reason or self.first_loss is None or self.last_loss is None:
            return self.reason or "–"
        top1 = f"{'**' * self.learnt}{percent(self.top1)}{'**' * self.learnt}"
        return f"{self.first_loss:.2f} {'→' if self.fell else '⇸'} {self.last_loss:.2f}, {top1}"


@dataclass(kw_only=True)
class Entry:
    """One system over all tasks."""

    cells: dict[str, Cell] = field(default_factory=dict)

    def failures(self, tasks: Sequence[str]) -> str:
        """Empty when the loss fell on every task and two were learnt."""
        stuck = [task for task in tasks if not self.cells.get(task, Cell()).fell]
        learnt = sum(cell.learnt for cell in self.cells.values())
        parts = [f"loss did not fall on {', '.join(stuck)}"] if stuck else []
        return "; ".join(parts + ([f"{learnt} learnt"] if learnt < LEAST_LEARNT else []))


def entries(rows: Sequence[Record]) -> dict[str, Entry]:
    """By system, from the last row of each job."""
    found: dict[str, Entry] = {}
    for row in {row.job.id: row for row in rows}.values():
        kind, task = row.job.kind, row.job.data.removeprefix("digits:")
        if kind == "measure":
            continue
        cell = found.setdefault(row.job.system, Entry()).cells.setdefault(task, Cell())
        if row.status != "measured":
            cell.reason = cell.reason or f"{row.status}: {row.reason}"
        elif kind == "train":
            cell.first_loss, cell.last_loss = row.result["curve"][0]["loss"], row.result["curve"][-1]["loss"]
        elif row.job.options["split"] == "test":
            cell.top1, cell.low = row.result["top1"]["value"], row.result["top1"]["low"]
            cell.chance = row.job.options["data_info"]["chance"]
    return found


def table(rows: Sequence[Record], found: Mapping[str, Entry], names: Sequence[str]) -> str:
    """The page as Markdown; `names`: the systems that there have to be."""
    tasks = list(dict.fromkeys(task for entry in found.values() for task in entry.cells))
    chance = {task: next(e.cells[task].chance for e in found.values() if task in e.cells and e.cells[task].chance is not None) for task in tasks}
    passed = [name for name in names if name in found and not found[name].failures(tasks)]
    measured = [row.status == "measured" for row in rows if row.job.kind == "measure"]
    lines = [
        "# Every system, briefly trained on every embedded task",
        "",
        f"Mean loss of the first and of the last quarter of a training of {rows[0].job.options['recipe']['steps']} steps at one learning rate, and "
        "top-1 on test in %; bold where its 95 % interval lies above chance. It tells that a system learns, not how well: nothing was tuned, "
        "one seed ran. The loss is the system's own: `adaframe`'s has a reward in it, `vtm`'s a second cross-entropy. "
        f"{rows[0].environment.get('cpu', '')}; {sum(row.seconds for row in rows) / 60:.0f} minutes of jobs, each on one core. "
        "Again: `vitgs-bench sweep --suite smoke --profile smoke-all`, then `python -m tests.benchmarks.zoo ROWS`.",
        "",
        f"* The loss falls on every task, and {LEAST_LEARNT} or more are learnt: {len(passed)} of {len(names)} systems.",
        f"* Rows: {len(rows)}, {sum(row.status == 'measured' for row in rows)} of them measured; of {len(measured)} costs {sum(measured)}.",
        "",
        "| system | " + " | ".join(f"{task} (chance {percent(chance[task], 0)})" for task in tasks) + " | tasks learnt | |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name in names:
        entry = found.get(name, Entry())
        cells = [str(entry.cells.get(task, "–")) for task in tasks]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {sum(c.learnt for c in entry.cells.values())} | {entry.failures(tasks)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Does every system train?")
    parser.add_argument("rows", type=Path, help="smoke.jsonl of a sweep with the profile smoke-all")
    parser.add_argument("--table", type=Path, default=Path("zoo.md"))
    given = parser.parse_args()
    try:
        rows = records.read(given.rows)
        if not any(row.job.kind == "train" and row.status == "measured" for row in rows):
            raise NothingToWorkOn(
                "the rows must hold trainings", given=f"{len(rows)} rows, no training", remedy="run the sweep of the profile smoke-all"
            )
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    rows = sorted(rows, key=lambda row: row.job.kind != "train")
    found, names = entries(rows), registry.names()
    given.table.write_text(table(rows, found, names), encoding="utf-8")
    tasks = list(dict.fromkeys(task for entry in found.values() for task in entry.cells))
    missed = [f"{name}: {text}" for name in names if (text := found.get(name, Entry()).failures(tasks))]
    print("\n".join(missed) or f"{len(names)} systems train on every task")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
