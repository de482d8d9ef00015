"""The job that measures the gate's own error rates: its plan, planting by measurement, rows, resuming, the table. No time is judged."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gate_planted, gate_rates, gate_table, rows
from tests.benchmarks.gate_rates import Cell
from tests.gate.repository import git
from vitgs.gate import cases, worker
from vitgs.measure import machine

NAMES = ["a", "b"]


def test_the_kinds_take_turns_and_slowdowns_go_through_the_cases() -> None:
    cells = gate_rates.plan([*NAMES, "c", "d", "e", "f"], 100, 40)
    assert (len(cells), len(set(cells))) == (220, 220)
    for part in (cells[:22], cells[110:132]):
        assert [sum(cell.share == share for cell in part) for share in (0.0, *gate_rates.SHARES)] == [10, 4, 4, 4]
    assert {cell.case for cell in cells if cell.share == 0.05} == {*NAMES, "c", "d", "e", "f"}
    assert gate_rates.plan(NAMES, 0, 1) == [Cell(share=share, index=0, case="a") for share in gate_rates.SHARES]


def test_a_slowdown_is_planted_by_what_is_measured() -> None:
    rng = random.Random(0)
    asked: list[int] = []

    def measure(tokens: int) -> list[float]:
        asked.append(tokens)
        return [math.log(1 + 0.004 + 2e-5 * tokens) + rng.gauss(0, 0.002) for _ in range(40)]

    found = gate_planted.plant(0.05, measure)
    assert asked[0] == gate_planted.FIRST_TOKENS and found.tokens == asked[-1] and found.pairs == 40
    assert abs(found.share - 0.05) <= gate_planted.NEAR and found.low < found.share < found.high
    assert 0.004 + 2e-5 * found.tokens == pytest.approx(0.05, abs=0.004)


def test_what_cannot_be_reached_is_told_as_measured() -> None:
    found = gate_planted.plant(0.05, lambda tokens: [0.2, 0.21, 0.19, 0.2, 0.2])
    assert found.tokens == 1 and found.share == pytest.approx(math.expm1(0.2), abs=0.01)


def test_the_layer_is_really_worked_off_and_measured() -> None:
    plain, clip = gate_planted.made("vit_mean", {})
    slowed, _ = gate_planted.made("vit_mean", {"vit_mean": 7})
    assert sum(p.numel() for p in slowed.parameters()) - sum(p.numel() for p in plain.parameters()) == 64 * 65
    with torch.inference_mode():
        assert slowed.eval()(clip).shape == plain.eval()(clip).shape
    assert len(gate_planted.measured("vit_mean", 7, pairs=2)) == 2


def test_a_planted_head_is_one_that_a_worker_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository"
    suite = cases.load("gate")
    base, file = gate_planted.repository(folder, suite)
    told = cases.load(str(file))
    assert [case.name for case in told.cases] == [case.name for case in suite.cases] and told.threshold == suite.threshold
    gate_planted.head(folder, base, suite, "first", {})
    assert git(folder, "diff", "--name-only", base, "HEAD") == "run"
    gate_planted.head(folder, base, suite, "second", {"vit_mean": 7})
    assert git(folder, "rev-parse", "HEAD~1") == base and git(folder, "diff", "--name-only", base, "HEAD") == "planted.py\nrun"
    monkeypatch.syspath_prepend(str(folder))
    request = next(case for case in told.cases if case.name == "vit_mean").request("head")
    model, _ = worker.make(request, folder.resolve())
    assert model.tokens_ND.shape == (7, 64)


def answer(slower: str = "", *, code: int = 0, unconfirmed: bool = False) -> tuple[int, str]:
    """What a run of the gate says and prints."""
    timed = [
        {
            "case": name, "outcome": "slower" if name == slower else "same", "unconfirmed": unconfirmed, "threshold": 0.02,
            "ratio": 1.05, "low": 1.04, "high": 1.06, "samples_ms": [[10.0, 10.5]], "again_ms": [],
        } for name in NAMES
    ]  # fmt: skip
    findings = [{"case": slower, "kind": "regression"}] if slower else []
    return code, json.dumps({"report": {"timed": timed, "findings": findings, "left_out": {}}})


def test_what_a_run_said() -> None:
    code, printed = answer("a", code=1)
    row = gate_rates.outcome(code, f"note\n{printed}\n", 41.234)
    assert (row["status"], row["exit_code"], row["wall_s"], row["counted"]) == ("measured", 1, 41.23, ["a"])
    assert row["cases"]["a"] == {
        "outcome": "slower", "unconfirmed": False, "threshold": 0.02, "ratio": [1.05, 1.04, 1.06], "logs": [0.04879], "again": [],
    }  # fmt: skip
    assert gate_rates.outcome(3, "", 1.0) == {"status": "failed", "exit_code": 3, "why": ""}
    assert gate_rates.outcome(1, "error: the head must run", 1.0)["status"] == "failed"


Given = Callable[..., argparse.Namespace]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The job with a gate that answers at once; options are added."""

    def gate(folder: Path, base: str, suite: Path, seconds: float) -> dict[str, Any]:
        slowed = "a" if "TOKENS = {}" not in (folder / "planted.py").read_text() else ""
        code, printed = answer(slowed, code=int(bool(slowed)))
        return gate_rates.outcome(code, printed.replace('"a"', '"joint"'), 30.0)

    monkeypatch.setattr(gate_rates, "_gate", gate)
    monkeypatch.setattr(gate_planted, "measured", lambda case, tokens, pairs: [5e-5 * tokens, 5.1e-5 * tokens, 4.9e-5 * tokens])
    line = ["--cases", "joint,tome", "--load", "0", "--out", str(tmp_path / "gate-rates.ndjson"), "--table", str(tmp_path / "gate-rates.md")]
    return lambda *more: gate_rates.arguments([*line, *more])


def test_a_killed_job_goes_on_where_it_was(given: Given, tmp_path: Path) -> None:
    file = tmp_path / "gate-rates.ndjson"
    assert gate_rates.run(given("--same", "2", "--slowed", "1"))
    whole = file.read_bytes()
    lines = whole.splitlines()
    assert len(lines) == 5 + 3  # the runs, and a planted slowdown for each share
    file.write_bytes(whole[: -len(lines[-1]) // 2])  # killed while the last row was written
    gate_rates.run(given("--same", "2", "--slowed", "1"))
    names = [row["name"] for row in rows.read(file)]
    assert len(names) == len(set(names)) == 8
    before = file.read_bytes()
    gate_rates.run(given("--same", "2", "--slowed", "1"))
    assert file.read_bytes() == before


def test_the_time_ends_the_job_before_a_run(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate_rates.run(given("--minutes", "0"))
    assert not (tmp_path / "gate-rates.ndjson").exists() and "the same command goes on" in capsys.readouterr().out
    assert "So far 0 of 220 runs" in (tmp_path / "gate-rates.md").read_text(encoding="utf-8")


def test_a_failed_run_is_no_rate_and_is_made_again(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = gate_rates._gate
    monkeypatch.setattr(gate_rates, "_gate", lambda *_: gate_rates.outcome(3, "", 1.0))
    gate_rates.run(given("--same", "1", "--slowed", "0"))
    assert "So far 0 of 1 runs" in (tmp_path / "gate-rates.md").read_text(encoding="utf-8")
    monkeypatch.setattr(gate_rates, "_gate", works)
    gate_rates.run(given("--same", "1", "--slowed", "0"))
    assert [row["status"] for row in rows.read(tmp_path / "gate-rates.ndjson")] == ["failed", "measured"]
    assert "All runs made" in (tmp_path / "gate-rates.md").read_text(encoding="utf-8")


def found(share: float, slower: str, count: int, wall_s: float = 50.0, case: str = "a") -> list[rows.Row]:
    code, printed = answer(slower, code=int(bool(slower)))
    return [{"share": share, "case": case if share else "", **gate_rates.outcome(code, printed, wall_s)} for _ in range(count)]


SETTINGS = {"cases": [{"name": name} for name in NAMES], "seconds": 60.0, "load": 1, "threshold": 0.02, "machine": "m"}


def test_the_table_has_every_rate_with_its_interval() -> None:
    of = found(0.0, "", 100) + found(0.05, "a", 38) + found(0.05, "", 2) + found(0.1, "b", 1)
    of.append({"status": "measured", "planted": 0.05, "case": "a", "found": {"tokens": 9, "share": 0.051, "low": 0.049, "high": 0.053, "pairs": 120}})
    assert gate_table.missed(of) == ["10 % slower is found in 0.0 % (0.0–97.5), below 98 %"]
    text = gate_table.table(of, SETTINGS, asked={0.0: 100, 0.03: 40, 0.05: 40, 0.1: 40})
    assert "| no change (false alarms) | 100 | 0.0 % (0.0–3.6) | 0 | 0 | 50 (50–50) |" in text
    assert "| one case 5 % slower | 40 | 95.0 % (83.1–99.4) |" in text and "| one case 3 % slower | 0 | – |" in text
    assert "as slower in 2.4 % (0.1–12.9)" in text  # b, when a was slowed
    assert "| a | 5 | 9 | 5.1 (4.9–5.3) | 5.0 | 38 of 40 |" in text
    assert "* So far 141 of 220 runs." in text and "* Not as asked: 10 % slower is found in 0.0 % (0.0–97.5), " in text
    assert "other guests" not in text
    for row, share in zip(of, (0.0, 0.1, 0.2), strict=False):
        row["stolen"] = share
    assert "* Besides, the host gave 10.0 % of the cores' time to other guests, in the median run (p10–p90: 0.0–20.0 %)." in gate_table.table(
        of[:3], SETTINGS, asked={0.0: 100}
    )


def test_stolen_time_is_a_share_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter(["cpu 1 0 0 50 0 0 0 4 0 0\n", "cpu 31 0 0 90 0 0 0 34 0 0\n", "", ""])
    monkeypatch.setattr(machine, "text_of", lambda _: next(told))
    assert gate_rates.Stolen().share() == 0.3
    assert gate_rates.Stolen().share() is None


def test_what_is_missed_is_told() -> None:
    assert gate_table.missed(found(0.0, "b", 1) + found(0.0, "", 9)) == ["1 false alarm in 10 runs of head against head"]
    assert gate_table.missed(found(0.03, "a", 5) + found(0.03, "", 5) + found(0.1, "a", 40)) == []
    (told,) = gate_table.missed(found(0.05, "a", 8) + found(0.05, "", 12))
    assert told.startswith("5 % slower is found in 40.0 % (") and told.endswith("below 90 %")
    assert gate_table.missed(found(0.0, "", 3, wall_s=75.0)) == ["a run takes 75 s, above 60 s"]
