"""Records as JSON and back, names that depend on everything that the outcome depends on, and packed bit sets."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from vitgs.errors import UsageError
from vitgs.record import FORMAT, Clip, Estimate, Job, Record, digest, job_from, pack_bits, record_from, record_line, to_json, unpack_bits

CLIP = Clip(frames=8, height=32, width=32, classes=10, class_names=tuple("0123456789"))
JOB = Job(
    kind="train",
    suite="budget",
    profile="embedded",
    system="graphsampler",
    size="nano",
    style="digits",
    clip=CLIP,
    knobs={"k": 8, "readout": "mean"},
    run={"budget": 0.25},
    rule="elastic",
    seed=2,
    start="shared",
    data="digits:moment",
    options={"recipe": {"steps": 10}, "lr": (1e-3, 2e-3)},
)
RECORD = Record(job=JOB, attempt=1, status="failed", reason="killed", flags=("oom",), result={"macs": None}, environment={"cpu": "x"})


def test_a_job_survives_json() -> None:
    again = job_from(json.loads(json.dumps(to_json(JOB))))
    assert again.id == JOB.id
    assert again.clip == CLIP
    assert to_json(again) == to_json(JOB)


def test_a_record_survives_its_line() -> None:
    line = record_line(RECORD)
    assert "\n" not in line
    again = record_from(json.loads(line))
    assert again.id == RECORD.id == json.loads(line)["id"]
    assert record_line(again) == line


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "eval"},
        {"suite": "graph"},
        {"system": "joint"},
        {"size": "S"},
        {"style": "in21k"},
        {"clip": dataclasses.replace(CLIP, frames=16)},
        {"knobs": {"k": 4, "readout": "mean"}},
        {"run": {}},
        {"rule": "paper"},
        {"seed": 3},
        {"start": "random"},
        {"data": "digits:order"},
        {"purpose": "tune"},
        {"options": {}},
    ],
)
def test_a_jobs_name_changes_with_everything(change: dict[str, object]) -> None:
    assert dataclasses.replace(JOB, **change).id != JOB.id  # type: ignore[arg-type]


def test_a_jobs_name_does_not_depend_on_the_order_of_knobs() -> None:
    assert dataclasses.replace(JOB, knobs={"readout": "mean", "k": 8}).id == JOB.id


def test_each_attempt_is_a_row_of_its_own() -> None:
    assert dataclasses.replace(RECORD, attempt=2).id != RECORD.id
    assert dataclasses.replace(RECORD, status="measured", seconds=3.0).id == RECORD.id


def test_names_are_stable_across_versions() -> None:
    assert digest({"b": 1, "a": [1.5, None, "x"]}) == digest({"a": [1.5, None, "x"], "b": 1}) == "52686768c7445ae4"


def test_a_newer_format_is_refused() -> None:
    data = {**json.loads(record_line(RECORD)), "format": FORMAT + 1}
    with pytest.raises(UsageError, match="upgrade"):
        record_from(data)


def test_a_value_that_is_not_a_number_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        record_line(dataclasses.replace(RECORD, result={"macs": float("nan")}))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 500])
def test_bits_survive_packing(count: int) -> None:
    rng = random.Random(count)
    bits = [rng.random() < 0.5 for _ in range(count)]
    assert unpack_bits(pack_bits(bits), count) == bits


@pytest.mark.parametrize("name", ["frames", "height", "width", "channels"])
def test_a_clip_has_at_least_one_of_each(name: str) -> None:
    with pytest.raises(UsageError, match=f"a clip's {name} must be at least 1; given: 0"):
        dataclasses.replace(CLIP, **{name: 0})  # type: ignore[arg-type]


def test_several_heads_are_counted_together() -> None:
    assert Clip(frames=8, height=32, width=32, classes={"verb": 97, "noun": 300}).class_count == 397


def test_a_missing_estimate_keeps_its_reason() -> None:
    assert to_json(Estimate.missing("no counter"))["value"] is None
    assert Estimate.missing("no counter").reason == "no counter"


def test_a_jobs_label_is_for_people() -> None:
    assert JOB.label == "train graphsampler(k=8,readout=mean,budget=0.25) digits:moment seed 2"
