"""What counts as reproduced, kind by kind."""

from __future__ import annotations

from typing import Any

import pytest

from vitgs.cli.reproduced import compare, reproduced
from vitgs.record import Clip, Job, Kind, Record


def row(kind: Kind, **result: Any) -> Record:
    """A measured row with this result."""
    options = {"recipe": {"val_clips": 300}} if kind == "train" else {}
    clip = Clip(frames=8, height=32, width=32, classes=10)
    job = Job(kind=kind, suite="s", profile="p", system="joint", size="test", style="digits", clip=clip, options=options)
    return Record(job=job, attempt=1, status="measured", result=result)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    """An Estimate as a row holds it."""
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.0, 0.9, 1.1)),
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.15, 1.05, 1.2)),
            True,
        ),
        (
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.0, 0.9, 1.1)),
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.3, 1.2, 1.4)),
            False,
        ),
        (
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.0, 0.9, 1.1)),
            row("measure", cost={"macs": 11}, latency_to_anchor=estimate(1.0, 0.9, 1.1)),
            False,
        ),
        (
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.0, 0.9, 1.1)),
            row("measure", cost={"macs": 10}, latency_to_anchor=estimate(None)),
            False,
        ),
        # The absolute time belongs to the machine and stands beside.
        (
            row("measure", cost={"macs": 10}, latency_ms=estimate(5.0, 4.9, 5.1)),
            row("measure", cost={"macs": 10}, latency_ms=estimate(9.0, 8.9, 9.1)),
            True,
        ),
        (row("eval", labels_digest="a", top1=estimate(0.8, 0.7, 0.9)), row("eval", labels_digest="a", top1=estimate(0.8, 0.7, 0.9)), True),
        (row("eval", labels_digest="a", top1=estimate(0.8, 0.7, 0.9)), row("eval", labels_digest="b", top1=estimate(0.8, 0.7, 0.9)), False),
        (row("train", checkpoint={"digest": "x"}), row("train", checkpoint={"digest": "x"}), True),
        (row("train", checkpoint={"digest": "x"}), row("train", checkpoint={"digest": "y"}), False),
        (row("train", curve=[{"val_top1": 0.80}]), row("train", curve=[{"val_top1": 0.83}]), True),
        (row("train", curve=[{"val_top1": 0.80}]), row("train", curve=[{"val_top1": 0.60}]), False),
        (row("eval"), row("eval"), False),
    ],
)
def test_what_is_reproduced(before: Record, now: Record, same: bool) -> None:
    assert reproduced(compare(before, now)) is same


def test_a_value_that_was_never_measured_decides_nothing() -> None:
    before = row("measure", cost={"macs": 10}, latency_to_anchor=estimate(None), energy={"gross_j_per_clip": estimate(None)})
    lines = compare(before, row("measure", cost={"macs": 10}, latency_to_anchor=estimate(1.0, 0.9, 1.1)))
    assert [line.name for line in lines] == ["cost.macs"]
