"""The gate's history as one page: for each case, what every run found against its base, run after run, and against an older revision where asked for.

Times of different days aren't compared with each other: what is drawn are ratios of times taken side by side.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitgs.numbers import percent

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 200, 56, 12, 10, 46
LEAST_SPAN = 0.05  # of the ratio, so that noise doesn't look like news
MOST_RUNS = 60
_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --faint: #6b6f74; --line: #c9ced3; --base: #1f6aa5; --older: #8f6400; --worse: #c8430a;
  --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --faint: #a3a8ae; --line: #464c53; --base: #63a9e6; --older: #e6b94a; --worse: #ff8a57; --back: #15181b }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 900px; margin: 2em auto; padding: 0 1em }
svg { width: 100%; height: auto } text { fill: var(--faint); font-size: 11px } table { border-collapse: collapse }
td, th { padding: .15em .9em .15em 0; text-align: left; vertical-align: top } figure { margin: 0 } h2 { margin-bottom: 0 }
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One case in one run. `side`: "base" or "older"; ratio of the head's time to that side's, with its 95 % interval."""

    at_utc: str
    head: str
    revision: str
    side: str
    outcome: str
    ratio: float
    low: float
    high: float


def points(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Every timed case of the history, its points in the order of the runs."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        if row.get("kind") != "run":
            continue
        report = row["report"]
        sides = [("base", report["base"], report["timed"])]
        if report.get("drift"):
            sides.append(("older", report["drift"]["revision"], report["drift"]["timed"]))
        for side, revision, judged in sides:
            for case in judged:
                point = Point(
                    at_utc=row["at_utc"], head=report["head"][:10], revision=revision[:10], side=side, outcome=case["outcome"], ratio=case["ratio"],
                    low=case["low"], high=case["high"],
                )  # fmt: skip
                found.setdefault(case["case"], []).append(point)
    return found


def page(rows: Sequence[Mapping[str, Any]], machine: str) -> str:
    """The page, in one file that needs nothing else."""
    runs = [row for row in rows if row.get("kind") == "run"]
    drawn = "".join(f"<h2>{html.escape(case)}</h2>\n<figure>{chart(taken)}</figure>\n" for case, taken in points(rows).items())
    regressed = sum(bool(row["regressed"]) for row in runs)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>vitgs-bench gate</title>\n'
        f"<style>{_STYLE}</style>\n<h1>Speed of each case, commit after commit</h1>\n"
        f"<p>{html.escape(machine)}: {len(runs)} run{'s' * (len(runs) != 1)}, {regressed} with a regression. A point is the head's time over "
        "that of its base in the same run, with the 95 % interval, oldest left; "
        '<span style="color: var(--older)">a square</span> is the same over an older revision (slow drift); '
        '<span style="color: var(--worse)">filled</span> is a slowdown that was found twice. Above 1 is slower.</p>\n'
        f"{drawn or '<p>No run has timed a case yet.</p>'}<h2>Runs</h2>\n{_runs(runs)}</html>\n"
    )


def chart(taken: Sequence[Point]) -> str:
    """One case: ratios from left to right, a place for each run."""
    runs = list(dict.fromkeys((point.at_utc, point.head) for point in taken))[-MOST_RUNS:]
    shown = [point for point in taken if (point.at_utc, point.head) in runs]
    reach = max(LEAST_SPAN, *(abs(math.log(end)) for point in shown for end in (point.low, point.high) if 0 < end < 10))
    step = (WIDTH - LEFT - RIGHT) / len(runs)

    def y(ratio: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (0.5 - 0.5 * max(-1.0, min(1.0, math.log(max(ratio, 1e-9)) / reach)))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for level in (math.exp(-reach), 1.0, math.exp(reach)):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.3f}</text>')
    for i, (at_utc, head) in enumerate(runs):
        if i % math.ceil(len(runs) / 12) == 0:
            parts.append(f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{html.escape(head[:7])}</text>')
            parts.append(f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 32}" text-anchor="middle">{html.escape(at_utc[:10])}</text>')
    for point in shown:
        x = LEFT + (runs.index((point.at_utc, point.head)) + 0.5) * step + (min(5.0, step / 6) if point.side == "older" else 0)
        parts.append(_marker(point, x, y))
    return "".join(parts) + "</svg>"


def _marker(point: Point, x: float, y: Any) -> str:
    colour = "var(--worse)" if point.outcome == "slower" else f"var(--{point.side})"
    fill = colour if point.outcome == "slower" else "var(--back)"
    at = y(point.ratio)
    shape = (
        f'<circle cx="{x:.1f}" cy="{at:.1f}" r="4" fill="{fill}" stroke="{colour}"/>'
        if point.side == "base"
        else f'<rect x="{x - 3.5:.1f}" y="{at - 3.5:.1f}" width="7" height="7" fill="{fill}" stroke="{colour}"/>'
    )
    told = f"{point.head} over {point.revision}: {point.ratio:.3f} [{point.low:.3f}, {point.high:.3f}], {point.outcome}"
    bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}" stroke="{colour}"/>'
    return f"<g><title>{html.escape(told)}</title>{bar}{shape}</g>"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """What each run found, latest first."""
    lines = []
    for row in reversed(runs):
        report = row["report"]
        counted = [f"{f['case']}: {f['quantity']} {f['base']} to {f['head']} {f['place']}" for f in report["findings"] if f["kind"] == "regression"]
        timed = [f"{t['case']}: {percent(t['ratio'] - 1)} % slower" for t in report["timed"] if t["outcome"] == "slower"]
        cells = (row["at_utc"], report["head"][:10], report["base"][:10], report["tier"], "; ".join(counted + timed) or "–")
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n")
    return f"<table><tr><th>when (UTC)</th><th>head</th><th>base</th><th>tier</th><th>worse</th></tr>\n{''.join(lines)}</table>\n"


def write(rows: Sequence[Mapping[str, Any]], machine: str, path: Path) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(rows, machine), encoding="utf-8")
