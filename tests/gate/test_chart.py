"""The page of the gate's history: a point for each timed case of each run, both comparisons, what was worse; nothing from outside the file."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from vitgs.gate import chart


def run(day: int, *, outcome: str = "same", ratio: float = 1.0, older: float | None = None, case: str = "a <b>") -> dict[str, Any]:
    def judged(value: float, how: str) -> list[dict[str, Any]]:
        return [{"case": case, "outcome": how, "ratio": value, "low": value * 0.99, "high": value * 1.01}]

    drift = {"revision": "t" * 40, "timed": judged(older, "slower")} if older else None
    report = {"head": f"{day:040d}", "base": "b" * 40, "tier": "all", "findings": [], "timed": judged(ratio, outcome), "drift": drift}
    return {"kind": "run", "at_utc": f"2026-01-{day:02d}T00:00:00+00:00", "regressed": outcome == "slower", "report": report}


def test_a_point_for_each_case_of_each_run_and_for_both_comparisons() -> None:
    rows = [run(1), {"kind": "calibration"}, run(2, outcome="slower", ratio=1.1, older=1.2), run(3, case="c")]
    found = chart.points(rows)
    assert [(p.side, p.ratio, p.outcome) for p in found["a <b>"]] == [("base", 1.0, "same"), ("base", 1.1, "slower"), ("older", 1.2, "slower")]
    assert len(found["c"]) == 1
    page = chart.page(rows, "machine")
    assert "3 runs, 1 with a regression" in page and "a &lt;b&gt;: 10.0 % slower" in page and "<b>" not in page
    assert "http" not in page and "<script" not in page


def test_slower_is_higher_and_the_middle_is_no_change() -> None:
    drawn = ElementTree.fromstring(chart.chart(chart.points([run(1), run(2, ratio=1.04), run(3, ratio=0.96)])["a <b>"]))
    heights = [float(circle.attrib["cy"]) for circle in drawn.iter("circle")]
    middle = (chart.TOP + chart.HEIGHT - chart.BOTTOM) / 2
    assert heights[1] < heights[0] == middle < heights[2]


def test_runs_that_were_only_counted_are_listed() -> None:
    row = run(1)
    finding = {"case": "a", "quantity": "MACs", "kind": "regression", "base": 1, "head": 2, "place": "mlp"}
    row["report"] |= {"timed": [], "findings": [finding]}
    page = chart.page([row], "machine")
    assert "No run has timed a case yet" in page and "a: MACs 1 to 2 mlp" in page
