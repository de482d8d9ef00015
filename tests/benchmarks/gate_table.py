"""The rates of the gate as a table: false alarms, slowdowns found, the time of a run, and how big the planted slowdowns really are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.rates import rate
from tests.benchmarks.rows import Row
from vitgs.numbers import percent

MUST_BE_FOUND = {0.03: 0.5, 0.05: 0.9, 0.1: 0.98}
MEDIAN_AT_MOST_S = 60.0


def runs(found: Sequence[Row], share: float) -> list[Row]:
    """The answered runs of a kind."""
    return [row for row in found if row["status"] == "measured" and row.get("share") == share]


def slower(row: Row) -> set[str]:
    """The cases that the run's timed tier called slower, confirmed."""
    return {name for name, case in row["cases"].items() if case["outcome"] == "slower"}


def hit(row: Row) -> bool:
    """Head against head: an alarm in any case. Planted: the slowed case was called slower."""
    return row["case"] in slower(row) if row["share"] else bool(slower(row))


def missed(found: Sequence[Row]) -> list[str]:
    """Which of the figures asked for the runs so far don't reach."""
    same = runs(found, 0.0)
    times = [row["wall_s"] for row in found if "wall_s" in row]
    told = []
    if alarms := sum(map(hit, same)):
        told.append(f"{alarms} false alarm{'s' * (alarms > 1)} in {len(same)} runs of head against head")
    for share, wanted in MUST_BE_FOUND.items():
        planted = runs(found, share)
        if planted and (detected := rate(sum(map(hit, planted)), len(planted))).value < wanted:
            told.append(f"{percent(share, 0)} % slower is found in {detected}, {detected.outside(wanted, 1)}")
    if times and (median := statistics.median(times)) > MEDIAN_AT_MOST_S:
        told.append(f"a run takes {median:.0f} s, above {MEDIAN_AT_MOST_S:.0f} s")
    return told


def table(found: Sequence[Row], settings: Mapping[str, Any], *, asked: Mapping[float, int]) -> str:
    """All of it as Markdown."""
    answered = [row for share in asked for row in runs(found, share)]
    complete = all(len(runs(found, share)) >= count for share, count in asked.items())
    answer = "; ".join(missed(found))
    wanted = ", ".join(f"{percent(share, 0)} % slower found in at least {percent(least, 0)} %" for share, least in MUST_BE_FOUND.items())
    load = f"{settings['load']} core{'s' * (settings['load'] != 1)} burnt beside it"
    names = ", ".join(case["name"] for case in settings["cases"])
    verdict = f"Not as asked: {answer}" if answer else "As asked" if complete else "As asked so far" if answered else "Nothing to say yet"
    lines = [
        "# How often the gate is wrong",
        "",
        f"`vitgs-bench gate run` with {len(settings['cases'])} of the cases of `suites/gate/gate.toml` ({names}), its timed tier given "
        f"{settings['seconds']:g} s, the suite's threshold of {percent(settings['threshold'], 0)} %, on {settings['machine']}, {load}. "
        "Slowdowns are planted in one case a run, each case in turn: a linear layer more, really computed. All figures are of the timed tier alone.",
        "",
        f"* {'All runs made' if complete else f'So far {len(answered)} of {sum(asked.values())} runs'}.",
        f"* {verdict} (no false alarm; {wanted}; median run at most {MEDIAN_AT_MOST_S:.0f} s).",
        *_stolen(answered),
        f"* Again, or further: `python -m tests.benchmarks.gate_rates --seconds {settings['seconds']:g} --load {settings['load']} "
        f"--cases {names.replace(', ', ',')}`.",
        "",
        "| head | runs | told as slower (95 % interval) | in the first look alone, not confirmed | machine unfit | median run, s (p10–p90) |",
        "|---|---|---|---|---|---|",
        *(_row(runs(found, share), share) for share in asked),
        "",
        *_others(found, asked),
        *_planted(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(of: Sequence[Row], share: float) -> str:
    kind = f"one case {percent(share, 0)} % slower" if share else "no change (false alarms)"
    if not of:
        return f"| {kind} | 0 | – | – | – | – |"
    times = sorted(row["wall_s"] for row in of)
    unconfirmed = sum(any(case["unconfirmed"] for case in row["cases"].values()) for row in of)
    spread = f"{statistics.median(times):.0f} ({times[len(times) // 10]:.0f}–{times[-1 - len(times) // 10]:.0f})"
    return f"| {kind} | {len(of)} | {rate(sum(map(hit, of)), len(of))} | {unconfirmed} | {sum(row['exit_code'] == 4 for row in of)} | {spread} |"


def _stolen(answered: Sequence[Row]) -> list[str]:
    """How busy the host was: what other guests took of the cores while the runs were made."""
    shares = sorted(row["stolen"] for row in answered if row.get("stolen") is not None)
    if not shares:
        return []
    low, middle, high = (percent(share) for share in (shares[len(shares) // 10], statistics.median(shares), shares[-1 - len(shares) // 10]))
    return [f"* Besides, the host gave {middle} % of the cores' time to other guests, in the median run (p10–p90: {low}–{high} %)."]


def _others(found: Sequence[Row], asked: Mapping[float, int]) -> list[str]:
    """What else the planted runs say: alarms in cases that were left as they were, and what counting found."""
    planted = [row for share in asked if share for row in runs(found, share)]
    if not planted:
        return []
    alarms = sum(bool(slower(row) - {row["case"]}) for row in planted)
    counted = sum(row["case"] in row["counted"] for row in planted)
    clean = sum(set(row["counted"]) <= {row["case"]} for row in planted)
    return [
        f"In the planted runs, a case that was left as it was is told as slower in {rate(alarms, len(planted))}. "
        f"The exact tier names the slowed case in {counted} of {len(planted)}, and no other in {clean}.",
        "",
    ]


def _planted(found: Sequence[Row]) -> list[str]:
    sizes = [row for row in found if "planted" in row]
    if not sizes:
        return []
    lines = [
        "The planted slowdowns: measured beside the same load when first needed, with and without the layer in pairs of blocks in one process; "
        "and what the runs of the gate saw of them.",
        "",
        "| case | wanted, % | tokens of the layer | measured, % (95 % interval) | median of the gate's own ratios, % | found |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(sizes, key=lambda row: (row["case"], row["planted"])):
        of = [run for run in runs(found, row["planted"]) if run["case"] == row["case"]]
        seen = [run["cases"][row["case"]]["ratio"][0] - 1 for run in of if row["case"] in run["cases"]]
        size = row["found"]
        cells = [
            row["case"], percent(row["planted"], 0), str(size["tokens"]),
            f"{percent(size['share'])} ({percent(size['low'])}–{percent(size['high'])})",
            percent(statistics.median(seen)) if seen else "–", f"{sum(map(hit, of))} of {len(of)}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines
