"""What a machine can show: floors, alarms with their interval, the smallest change; and the files that keep it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vitgs.errors import UsageError
from vitgs.gate import calibrate, history
from vitgs.gate.cases import GateCase
from vitgs.measure.shares import clopper_pearson


def noise(spread: float, rounds: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, spread) for _ in range(rounds)]


def test_a_quiet_and_a_noisy_case() -> None:
    found = calibrate.calibrate({"quiet": noise(0.01, 48, 0), "noisy": noise(0.2, 48, 1)}, rounds_a_run=12, threshold=0.02)
    quiet, noisy = found.cases["quiet"], found.cases["noisy"]
    assert (quiet.refused, noisy.refused, found.runs, found.alarms) == (False, True, 4, 0)
    assert quiet.noise_floor == pytest.approx(0.0115, abs=0.003)
    assert 0.03 < quiet.smallest_low < quiet.smallest < quiet.smallest_high < 0.06
    assert [found.low, found.high] == pytest.approx([0.0, 0.602], abs=0.001)


def test_alarms_are_counted() -> None:
    found = calibrate.calibrate({"a": [0.2 + 0.001 * (i % 3) for i in range(24)]}, rounds_a_run=12, threshold=0.02)
    assert (found.alarms, found.runs, found.cases["a"].alarms) == (2, 2, 2)


@pytest.mark.parametrize(("hits", "runs", "low", "high"), [(0, 0, 0, 1), (0, 100, 0, 0.0362), (5, 100, 0.0164, 0.1128), (3, 3, 0.2924, 1)])
def test_clopper_pearson(hits: int, runs: int, low: float, high: float) -> None:
    assert list(clopper_pearson(hits, runs)) == pytest.approx([low, high], abs=1e-4)


def test_a_calibration_is_kept_by_what_is_run_and_used(tmp_path: Path) -> None:
    case, other = GateCase(name="a", system="joint"), GateCase(name="b", system="joint", frames=4)
    assert history.load_calibration(tmp_path) == {}
    shape = history.shape(case.request("head"))
    found = calibrate.calibrate({"a": noise(0.05, 24, 0)}, rounds_a_run=12, threshold=0.02)
    history.save_calibration(tmp_path, {shape: found.cases["a"]})
    history.save_calibration(tmp_path, {history.shape(other.request("head")): found.cases["a"]})
    known = history.load_calibration(tmp_path)
    assert len(known) == 2
    threshold, refused = calibrate.usable(shape, known, 0.02)
    assert threshold == pytest.approx(found.cases["a"].noise_floor) and refused == found.cases["a"].refused
    assert calibrate.usable("unknown", known, 0.02) == (0.02, False)
    assert history.shape(GateCase(name="renamed", system="joint").request("head")) == shape
    (tmp_path / "gate-calibration.json").write_text("broken")
    assert history.load_calibration(tmp_path) == {}


def test_history_is_appended_and_a_cut_line_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "machine" / "gate.jsonl"
    history.append(path, {"kind": "run", "ratio": 1.5})
    with path.open("a") as file:
        file.write('{"format": 1, "kind": "r')
    history.append(path, {"kind": "calibration"})
    assert [row["kind"] for row in history.rows(path)] == ["run", "calibration"]
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"format": 1, "kind": "run", "ratio": 1.5} and lines[1].endswith(history.CUT_MARK)


@pytest.mark.parametrize("line", [b"junk", b"[]", b"3", b'{"kind":"run"}', b'{"format":99}', b"\xff"])
def test_a_line_that_is_no_row_is_named_and_a_cut_one_left_out(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / history.ROWS
    history.append(path, {"kind": "run"})
    path.write_bytes(path.read_bytes() + b'{"format":1,"ki')
    assert len(history.rows(path)) == 1
    path.write_bytes(line + b"\n")
    with pytest.raises(UsageError, match=r"gate\.jsonl:1"):
        history.rows(path)
