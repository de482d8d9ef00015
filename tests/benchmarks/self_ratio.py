"""A system measured against itself, again and again, with the real harness: how often the ratio's 95 % interval holds 1, and how wide it is.

    .venv/bin/python -m tests.benchmarks.self_ratio --out results/self-ratio.ndjson --table reports/self-ratio.md
    .venv/bin/python -m tests.benchmarks.self_ratio --load 1 --out results/self-ratio-load.ndjson --table reports/self-ratio-load.md

Each comparison is one call of `vitgs.measure.harness.measure`: subject and anchor in interleaved rounds, on rotating inputs. The anchor is the very
same module. `--anchor twin`: a copy with the same weights, which lies elsewhere in memory and may really be some tenths of a percent faster or
slower; no interval can tell that from a difference of the code. 500 of 1.5 s take about 15 minutes.
Rows are kept as they come, and the same command goes on where it was. With `--load 1` a process burns one core all the time; then a row either holds
what it says or is flagged (unstable, contaminated, throttled). Exit code 1 when the intervals hold 1 in fewer than 92 % or more than 98 %, or the
median half-width is above 2 %: of all rows, and with a load of those that carry no flag.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import rows
from tests.benchmarks.load import burning
from tests.benchmarks.rates import rate
from tests.benchmarks.rows import Row
from vitgs import registry
from vitgs.backbone import sizes
from vitgs.errors import VitgsError
from vitgs.measure import harness, machine
from vitgs.measure.intervals import half_width
from vitgs.numbers import percent, significant
from vitgs.record import Clip, Estimate, to_json
from vitgs.store.code import code_version

LEAST, MOST = 0.92, 0.98
WIDEST = 0.02
CLASSES = 10
STYLE = "digits"


def compare(given: argparse.Namespace, index: int) -> Row:
    """One comparison: weights and order of the rounds from seed `index`."""
    clip = Clip(frames=given.frames, height=given.resolution, width=given.resolution, classes=CLASSES)
    torch.manual_seed(index)
    model = registry.get(given.system).build(given.size, clip, STYLE).eval()
    began_s = time.perf_counter()
    found = harness.measure(
        model, clip=clip, run={}, anchor=copy.deepcopy(model) if given.anchor == "twin" else model, batch=1, seconds=given.seconds,
        threads=given.threads, witnesses=given.witnesses, seed=index,
    )  # fmt: skip
    blocks = {side: found.timings[f"{side}_latency"].blocks_ms for side in (harness.SUBJECT, harness.ANCHOR)}
    return {
        "status": "measured",
        "ratio": rows.plain(found.latency_to_anchor),
        "latency_ms": rows.plain(found.latency_ms),
        "flags": list(found.flags),
        "foreign_cpu_share": found.foreign_cpu_share,
        "blocks_ms": blocks,
        "wall_s": round(time.perf_counter() - began_s, 3),
    }


def holds(row: Row) -> bool:
    """Whether 1 is between the ends of the ratio's interval; a row without an interval holds nothing."""
    low, high = row["ratio"]["low"], row["ratio"]["high"]
    return low is not None and low <= 1 <= high


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """Flags, the rate and the widths of the rows without a flag and of all, and on which side 1 was missed."""
    unflagged = [row for row in found if not row["flags"]]
    told: dict[str, Any] = {"rows": len(found), "flags": dict(Counter(flag for row in found for flag in row["flags"]))}
    for name, part in (("unflagged", unflagged), ("all", list(found))):
        told[name] = None
        if part:
            ratios = [Estimate(value=row["ratio"]["value"], low=row["ratio"]["low"], high=row["ratio"]["high"]) for row in part]
            told[name] = {
                **rate(sum(map(holds, part)), len(part)).plain(),
                "one_below": sum(r.low is not None and r.low > 1 for r in ratios),
                "one_above": sum(r.high is not None and r.high < 1 for r in ratios),
                "median_half_width": statistics.median(map(half_width, ratios)),
                "median_ratio": statistics.median(r.value for r in ratios if r.value is not None),
            }
    return told


def missed(told: Mapping[str, Any], load: int) -> list[str]:
    """What isn't as required of all rows; with a load, of those without a flag: nothing where every row is flagged."""
    part = told["unflagged" if load else "all"]
    if part is None:
        return []
    coverage = rate(part["hits"], part["trials"]).outside(LEAST, MOST)
    wide = f"median half-width {percent(part['median_half_width'])} %, above {percent(WIDEST, 0)} %" if part["median_half_width"] > WIDEST else ""
    return [text for text in (coverage and f"holds 1 {coverage}", wide) if text]


def table(found: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    told = summary(found)
    flags = ", ".join(f"{name} {count}" for name, count in sorted(told["flags"].items())) or "none"
    flagged = sum(bool(row["flags"]) for row in found)
    wrong = missed(told, settings["load"])
    verdict = f"Not as asked: {'; '.join(wrong)}" if wrong else "As asked" if told["unflagged"] or not settings["load"] else "Every row is flagged"
    load = f"{settings['load']} core{'s' * (settings['load'] > 1)} burnt beside it" if settings["load"] else "nothing else started beside it"
    again = " ".join(f"--{name} {settings[name]}" for name in ("system", "size", "seconds", "threads", "load", "anchor"))
    lines = [
        "# A system against itself",
        "",
        f"{settings['system']} at size {settings['size']}, {settings['frames']} frames of {settings['resolution']} px, batch 1, "
        f"{settings['threads']} threads, {settings['machine']}; {len(found)} comparisons of {settings['seconds']:g} s, {load}. The anchor is "
        + ("a second model with the same weights" if settings["anchor"] == "twin" else "the same module")
        + (", public counters asked before timing" if settings["witnesses"] else "")
        + f". Asked of {'the rows without a flag' if settings['load'] else 'all rows'}: the ratio's 95 % interval holds 1 in "
        f"{percent(LEAST, 0)}–{percent(MOST, 0)} %, median half-width at most {percent(WIDEST, 0)} %. "
        f"Again: `python -m tests.benchmarks.self_ratio {again}{' --witnesses' if settings['witnesses'] else ''}`.",
        "",
        f"* {verdict}.",
        f"* Flagged: {flagged} of {len(found)} ({flags}).",
        "",
        "| rows | comparisons | hold 1 | 1 missed below / above | median half-width, % | median ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (("unflagged", "without a flag"), ("all", "all")):
        part = told[name]
        if part is None:
            lines.append(f"| {label} | 0 | – | – | – | – |")
            continue
        cells = [
            label,
            str(part["trials"]),
            str(rate(part["hits"], part["trials"])),
            f"{part['one_below']} / {part['one_above']}",
            percent(part["median_half_width"], 2),
            significant(part["median_ratio"], 5),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="A system against itself, again and again.")
    parser.add_argument("--system", default="vit_mean")
    parser.add_argument("--size", default="pico", choices=tuple(sizes.SIZES))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--times", type=int, default=500, help="comparisons in all, those of earlier runs included")
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing a comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--load", type=int, default=0, help="processes that burn a core each meanwhile")
    parser.add_argument("--anchor", default="same", choices=("twin", "same"))
    parser.add_argument("--witnesses", action="store_true", help="ask the public counters before timing, as the jobs of a sweep do")
    parser.add_argument("--out", type=Path, default=Path("self-ratio.ndjson"), help="one comparison a line; those that are there are not made again")
    parser.add_argument("--table", type=Path, default=Path("self-ratio.md"))
    return parser.parse_args()


def run(given: argparse.Namespace) -> bool:
    """Makes the comparisons that are not there yet; whether all is as asked."""
    settings: dict[str, Any] = to_json({
        **{key: getattr(given, key) for key in ("system", "size", "frames", "resolution", "seconds", "threads", "load", "anchor", "witnesses")},
        "machine": machine.slug(), "code_version": code_version(given.system, "measure"),
    })  # fmt: skip
    names = [rows.name_of({"index": index}, settings) for index in range(given.times)]
    done = rows.measured(rows.read(given.out))
    environment = machine.describe()
    with burning(given.load) as cores:
        for index, name in enumerate(names):
            if name in done:
                continue
            row = {"name": name, "index": index, "settings": settings, "burnt_cores": cores, **compare(given, index), "environment": environment}
            rows.append(given.out, row)
            print(f"{index + 1} of {given.times}: {rows.shown(row['ratio'], 5)} {', '.join(row['flags'])}", flush=True)
    found = [row for row in rows.latest(rows.read(given.out), settings) if row["name"] in set(names)]
    given.table.write_text(table(found, settings), encoding="utf-8")
    print(table(found, settings))
    return not missed(summary(found), given.load)


def main() -> int:
    """The program; its exit code."""
    try:
        return 0 if run(arguments()) else 1
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
