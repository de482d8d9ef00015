"""Whether newer code gave the same rows: trainings with equal weights, tests with the same answer to every clip.

    .venv/bin/python -m tests.benchmarks.same_rows results/reference-epyc-xeon results/reference-intel-xeon-c129b7-again --system graphsampler

Of all jobs that both folders have measured it says how many are equal and which differ, and ends with 1 where any do, or there are none to compare.
`vitgs.store.same` names the versions that were shown to be the same by it. Not a test: it needs the rows of two sweeps.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitgs.record import Record
from vitgs.store.records import read

# What no other seed, machine or hour may change: beside these a row has times, and intervals that are made of these.
EXACT = {
    "train": ("checkpoint.digest", "steps", "params", "params_trainable"),
    "eval": ("split", "clips", "correct1", "correct5", "labels_digest", "checkpoint_digest"),
}


def measured(folder: Path, system: str) -> dict[str, Record]:
    """The folder's train and eval rows of a system by their job, the last of each."""
    rows = (row for file in sorted(folder.rglob("*.jsonl")) for row in read(file))
    return {row.job.id: row for row in rows if row.job.system == system and row.job.kind in EXACT and row.status == "measured"}


def different(before: Record, now: Record) -> list[str]:
    """What of their results differs."""
    return [name for name in EXACT[before.job.kind] if _at(before.result, name) != _at(now.result, name)]


def _at(result: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        result = result.get(part, {})
    return result


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Whether newer code gave the same rows.")
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--system", default="graphsampler")
    given = parser.parse_args()
    before, now = (measured(folder, given.system) for folder in (given.before, given.now))
    if not before.keys() & now.keys():
        print(f"both folders must hold rows of the same jobs of {given.system}; given: {len(before)} and {len(now)}, of none", file=sys.stderr)
        return 1
    versions, counts = defaultdict[str, set[str]](set), defaultdict[str, list[int]](lambda: [0, 0])
    for job in sorted(before.keys() & now.keys()):
        old, new = before[job], now[job]
        versions[new.code_version].add(old.code_version)
        counts[old.job.kind][0] += 1
        if names := different(old, new):
            print(f"{old.job.kind} {job} {old.job.label}: {', '.join(names)}")
        else:
            counts[old.job.kind][1] += 1
    for kind, (both, equal) in sorted(counts.items()):
        print(f"{kind}: {equal} of {both} equal")
    for version, olds in sorted(versions.items()):
        print(f"{version} beside {', '.join(sorted(olds))}")
    return 0 if all(both == equal for both, equal in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
