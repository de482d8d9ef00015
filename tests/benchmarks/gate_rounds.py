"""What forking both sides of a gate's round from one process is worth: rounds of unchanged models that way and with a process a side, in turn.

    .venv/bin/python -m tests.benchmarks.gate_rounds

Each round of either kind is a line of `results/gate-rounds.ndjson`: seconds, and for each case log(head / base), of a head that is its base. What is
printed is the spread of those over the rounds (1.48 times the median of |log-ratio - median|, and the standard deviation), of the median case.
`--load` burns cores meanwhile, as in `gate_rates`.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from tests.benchmarks import gate_planted, rows
from tests.benchmarks.load import burning
from tests.benchmarks.rows import Row
from vitgs import folders
from vitgs.errors import VitgsError
from vitgs.executor.machine_lock import machine_lock
from vitgs.gate import cases, cores, sides, timed
from vitgs.gate.sides import Tree
from vitgs.measure import machine
from vitgs.record import to_json

KINDS = {"forked": True, "apart": False}
NORMAL = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


def spreads(found: Sequence[Row]) -> dict[str, dict[str, float]]:
    """For each kind: how many rounds, seconds a round, and the median case's two spreads in per cent."""
    told = {}
    for kind in KINDS:
        mine = [row for row in found if row["kind"] == kind]
        if len(mine) < 2:
            continue
        logs = {case: [100 * row["logs"][case] for row in mine] for case in mine[0]["logs"]}
        told[kind] = {
            "rounds": len(mine),
            "s": statistics.median(row["s"] for row in mine),
            "robust": statistics.median(_robust(values) for values in logs.values()),
            "deviation": statistics.median(statistics.stdev(values) for values in logs.values()),
        }
    return told


def _robust(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return NORMAL * statistics.median(abs(value - middle) for value in values)


def run(given: argparse.Namespace) -> list[Row]:
    """Makes the rounds, each on the disk before the next; all that the record has of these settings."""
    suite = cases.load("gate")
    chosen = {case.name: case for case in cases.chosen(suite, given.cases.split(",") if given.cases else None)}
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="vitgs-gate-rounds-") as temporary, machine_lock(alone=True), burning(given.load) as burnt:
        folder = Path(temporary).resolve() / "repository"
        base, file = gate_planted.repository(folder, suite)
        gate_planted.head(folder, base, suite, "unchanged", {})
        planted = {case.name: case for case in cases.load(str(file)).cases if case.name in chosen}
        before, after = (Tree(side=side, folder=folder, python=sys.executable) for side in ("base", "head"))
        settings = to_json({"load": given.load, "cases": sorted(planted), "machine": machine.slug(), "pairs_s": timed.pairs_s(len(planted))})
        environment = to_json(machine.describe())
        sample = timed.workers(before, after, planted, cores=cores.quietest(1))
        for turn in range(given.rounds):
            for kind in rng.sample(list(KINDS), 2):
                with mock.patch.object(sides, "FORKS", KINDS[kind]):
                    began_s = time.monotonic()
                    pairs = sample(list(planted))
                row = {"kind": kind, "turn": turn, "s": round(time.monotonic() - began_s, 2), "logs": _logs(pairs), "burnt_cores": burnt}
                name = rows.name_of({"kind": kind, "turn": turn}, settings)
                rows.append(given.out, {"name": name, **row, "settings": settings, "environment": environment})
    return rows.latest(rows.read(given.out), settings)


def _logs(pairs: Mapping[str, timed.Pair]) -> dict[str, float]:
    return {case: round(math.log(head / base), 5) for case, (base, head) in pairs.items()}


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="What forking both sides of a gate's round from one process is worth.")
    parser.add_argument("--rounds", type=int, default=24, help="of each kind")
    parser.add_argument("--cases", default="", metavar="A,B", help="these cases of the gate's suite alone")
    parser.add_argument("--load", type=int, default=1, help="processes that burn a core each meanwhile")
    parser.add_argument("--out", type=Path, default=folders.results() / "gate-rounds.ndjson")
    given = parser.parse_args()
    try:
        found = run(given)
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for kind, told in spreads(found).items():
        print(f"{kind}: {told['rounds']} rounds of {told['s']:.1f} s; spread {told['robust']:.2f} %, standard deviation {told['deviation']:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
