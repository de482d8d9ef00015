"""The verdict on whether every system trains, on rows written by hand."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.zoo import entries, table
from vitgs.record import Clip, Job, Record

CLIP = Clip(frames=2, height=8, width=8, classes=4)


def rows(system: str, task: str, *, losses: tuple[float, float], top1: tuple[float, float]) -> list[Record]:
    def job(kind: Any, **options: Any) -> Job:
        return Job(
            kind=kind, suite="smoke", profile="p", system=system, size="pico", style="digits", clip=CLIP, data=f"digits:{task}", options=options
        )

    train = {"curve": [{"step": step, "loss": loss} for step, loss in enumerate(losses)]}
    test = {"top1": {"value": top1[0], "low": top1[1], "high": 1.0}}
    facts = {"split": "test", "data_info": {"chance": 0.25}}
    done: dict[str, Any] = {"attempt": 1, "status": "measured"}
    return [
        Record(job=job("train", recipe={"steps": 8}), started_utc="2026-01-01T00:00:00+00:00", seconds=60.0, result=train, **done),
        Record(job=job("eval", **facts), started_utc="2026-01-01T00:01:00+00:00", seconds=30.0, result=test, **done),
    ]


def test_a_system_passes_when_its_loss_falls_everywhere_and_it_learns_two_tasks() -> None:
    good = rows("good", "a", losses=(1.0, 0.5), top1=(0.5, 0.4)) + rows("good", "b", losses=(1.0, 0.9), top1=(0.3, 0.26))
    stuck = rows("stuck", "a", losses=(1.0, 1.1), top1=(0.5, 0.4)) + rows("stuck", "b", losses=(1.0, 0.9), top1=(0.3, 0.2))
    found = entries(good + stuck)
    assert found["good"].failures(("a", "b")) == ""
    assert found["stuck"].failures(("a", "b")) == "loss did not fall on a; 1 learnt"
    text = table(good + stuck, found, ("good", "stuck", "absent"))
    assert "1 of 3 systems" in text
    assert "6 minutes of jobs" in text
    assert "| good | 1.00 → 0.50, **50.0** | 1.00 → 0.90, **30.0** | 2 |  |" in text
    assert "| absent | – | – | 0 | loss did not fall on a, b; 0 learnt |" in text


def test_a_failed_training_is_shown_with_its_reason() -> None:
    (train, _) = rows("broken", "a", losses=(1.0, 0.5), top1=(0.5, 0.4))
    failed = Record(job=train.job, attempt=1, status="failed", reason="out of memory")
    assert str(entries([failed])["broken"].cells["a"]) == "failed: out of memory"
