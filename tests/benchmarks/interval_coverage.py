"""How often the 95 % intervals of a latency and of a paired ratio hold the truth: the real clock code on a simulated machine whose truth is known.

    .venv/bin/python -m tests.benchmarks.interval_coverage --out results/interval-coverage.json --table reports/interval-coverage.md

`vitgs.measure.clock` runs two calls on a simulated clock, with its own first call, warm-up, random order, looks and stopping rule, as `measure` does
by default for a latency (3 s, half-width 2 %, 12 blocks); its results are judged. Beside it the same code is made to run a fixed number of rounds, to
tell what the stopping rule does from what the interval does. No real time is taken; the same seed gives the same record. Exit code 1 when a rate of
the clock's own rule is outside 93–97 %.

The truth of a ratio is the ratio of the costs: both sides are disturbed alike and come in random order. The truth of a latency is the median of what
the call takes in the time in which it was measured: jitter, hits and wander in all that they may do, drift as it was then. What the call takes at
other times of a drifting machine, no single run can know; how often the interval holds that is told beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.noise import SETTINGS, Machine, Noise, true_log_median
from tests.benchmarks.rates import rate
from vitgs.measure import clock
from vitgs.measure.intervals import half_width
from vitgs.numbers import percent
from vitgs.record import Estimate

SUBJECT, ANCHOR = "subject", "anchor"
COST_MS = {SUBJECT: 10.0, ANCHOR: 8.0}  # a block is one call: what a block averages over is not the interval's matter
TARGET, MIN_BLOCKS, SECONDS = 0.02, 12, 1.35  # `measure` by default: 3 s, a tenth of it for stages, half of the rest for the latency
OWN = "stops by itself"
FIXED = (12, 60)
LEAST, MOST = 0.93, 0.97
PHASES = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One simulated timing. Low end, value and high end are over the truth: the truth is 1. `at_all_times`: a latency's truth whatever the drift,
    over its truth in this run."""

    latency: tuple[float, float, float]
    ratio: tuple[float, float, float]
    at_all_times: float
    rounds: int
    unstable: bool


def simulate(noise: Noise, seed: int, rounds: int | None = None) -> Outcome:
    """A timing with the clock's own stopping rule, or with as many `rounds` as are given."""
    machine = Machine(noise, random.Random(f"{noise.name} {seed}"))
    timed = clock.time_interleaved(
        {SUBJECT: lambda: machine.work(SUBJECT, COST_MS[SUBJECT]), ANCHOR: lambda: machine.work(ANCHOR, COST_MS[ANCHOR])},
        target_half_width=TARGET if rounds is None else math.inf,
        min_blocks=rounds or MIN_BLOCKS,
        max_seconds=SECONDS if rounds is None else 1e6,
        rng_seed=seed,
        anchor=ANCHOR,
        clock_ns=machine.read,
    )
    subject = timed[SUBJECT]
    count = len(subject.blocks_ms)
    first_ns = machine.began_ns[SUBJECT][-count]
    drifts = [machine.log_drift(first_ns + round((machine.now_ns - first_ns) * (i + 0.5) / PHASES)) for i in range(PHASES)]
    whole = [noise.drift * math.sin(2 * math.pi * (i + 0.5) / PHASES) for i in range(PHASES)]
    here, everywhere = math.exp(true_log_median(noise, drifts)), math.exp(true_log_median(noise, whole))
    return Outcome(
        latency=_over(clock.estimate(subject.blocks_ms), COST_MS[SUBJECT] * here),
        ratio=_over(clock.ratio(subject.blocks_ms, timed[ANCHOR].blocks_ms), COST_MS[SUBJECT] / COST_MS[ANCHOR]),
        at_all_times=everywhere / here,
        rounds=count,
        unstable=any(t.unstable for t in timed.values()),
    )


def _over(found: Estimate, truth: float) -> tuple[float, float, float]:
    assert found.low is not None and found.value is not None and found.high is not None  # six rounds or more always give an interval
    return found.low / truth, found.value / truth, found.high / truth


def holds(interval: tuple[float, float, float], truth: float = 1.0) -> bool:
    """Whether the truth is between the ends."""
    return interval[0] <= truth <= interval[2]


def summary(noise: Noise, rule: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The row of one noise under one rule: rates with their exact intervals, on which side the truth is missed, widths and lengths."""
    row: dict[str, Any] = {"noise": noise.name, "rule": rule, "trials": len(outcomes)}
    for what in ("latency", "ratio"):
        found = [o.latency if what == "latency" else o.ratio for o in outcomes]
        row[what] = {
            **rate(sum(map(holds, found)), len(found)).plain(),
            "truth_below": sum(low > 1 for low, _, _ in found),
            "truth_above": sum(high < 1 for _, _, high in found),
            "median_half_width": statistics.median(half_width(Estimate(value=value, low=low, high=high)) for low, value, high in found),
            "median_error": statistics.median(abs(value - 1) for _, value, _ in found),
        }
    row["latency_at_all_times"] = rate(sum(holds(o.latency, o.at_all_times) for o in outcomes), len(outcomes)).plain()
    row["median_rounds"] = statistics.median(o.rounds for o in outcomes)
    row["unstable"] = sum(o.unstable for o in outcomes)
    row["latency_by_end"] = {
        name: rate(sum(holds(o.latency) for o in part), len(part)).plain()
        for name, part in (("stable", [o for o in outcomes if not o.unstable]), ("unstable", [o for o in outcomes if o.unstable]))
        if part
    }
    return row


def missed(row: dict[str, Any]) -> list[str]:
    """Which rates of the clock's own rule lie outside the band; nothing is asked of the fixed numbers of rounds, which only explain."""
    if row["rule"] != OWN:
        return []
    found = {what: rate(row[what]["hits"], row[what]["trials"]).outside(LEAST, MOST) for what in ("latency", "ratio")}
    return [f"{what} {text}" for what, text in found.items() if text]


def table(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The rows as Markdown."""
    wrong = [f"{row['noise']}: {text}" for row in rows for text in missed(row)]
    asked = 2 * sum(row["rule"] == OWN for row in rows)
    lines = [
        "# How often the intervals hold the truth",
        "",
        f"{about['trials']} simulated timings a line, seeds from {about.get('first_seed', 0)}; the nominal rate is 95 %, asked of the clock's own "
        f"rule is {percent(LEAST, 0)}–{percent(MOST, 0)} %: "
        + (f"{asked - len(wrong)} of {asked} rates are inside. Outside: {'; '.join(wrong)}." if wrong else f"all {asked} rates are inside."),
        "",
        "Rates with the 95 % interval of Clopper and Pearson. `latency`: the median in the time of the run; `of stable rows`: without those that ran "
        "out of time; `at all times`: the median over the whole drift, which no shorter run can know. `ratio`: paired, 10 ms to 8 ms. "
        "Lines with a fixed number of rounds run the same code without its stopping rule. Noise and the sources of its sizes: "
        f"`tests/benchmarks/noise.py`. Again: `python -m tests.benchmarks.interval_coverage --trials {about['trials']}`.",
        "",
        "| noise | rounds | latency | of stable rows | at all times | ratio | truth missed below / above: latency, ratio "
        "| median half-width: latency, ratio, % | median rounds | unstable | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        latency, ratio = row["latency"], row["ratio"]
        rates = (latency, row["latency_by_end"].get("stable"), row["latency_at_all_times"], ratio)
        cells = [
            row["noise"],
            row["rule"],
            *("–" if part is None else str(rate(part["hits"], part["trials"])) for part in rates),
            ", ".join(f"{w['truth_below']} / {w['truth_above']}" for w in (latency, ratio)),
            ", ".join(percent(w["median_half_width"], 2) for w in (latency, ratio)),
            f"{row['median_rounds']:g}",
            f"{percent(row['unstable'] / row['trials'], 0)} %",
            "; ".join(missed(row)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Simulates all settings, and writes record and table."""
    parser = argparse.ArgumentParser(description="How often the intervals hold the truth.")
    parser.add_argument("--trials", type=int, default=1000, help="simulated timings of each noise and rule")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds are counted from here: tell a rule's choice from its confirmation")
    parser.add_argument("--fixed", type=int, nargs="*", default=list(FIXED), help="fixed numbers of rounds to show beside the clock's own rule")
    parser.add_argument("--out", type=Path, default=Path("interval-coverage.json"))
    parser.add_argument("--table", type=Path, default=Path("interval-coverage.md"))
    given = parser.parse_args()
    gc.collect()
    gc.freeze()  # the clock collects before each timing: what was imported needs no second look
    costs = {"cost_ms": COST_MS, "target_half_width": TARGET, "min_blocks": MIN_BLOCKS, "max_seconds": SECONDS}
    about = {"trials": given.trials, "first_seed": given.first_seed, **costs, "noise": [asdict(noise) for noise in SETTINGS]}
    rows: list[dict[str, Any]] = []
    seeds = range(given.first_seed, given.first_seed + given.trials)
    for noise in SETTINGS:
        for rule, rounds in [(OWN, None), *((f"{n} fixed", n) for n in given.fixed)]:
            rows.append(summary(noise, rule, [simulate(noise, seed, rounds) for seed in seeds]))
            print(table(rows[-1:], about).splitlines()[-1], flush=True)
    given.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    given.table.write_text(table(rows, about), encoding="utf-8")
    return 1 if any(map(missed, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
