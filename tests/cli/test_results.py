"""`report`, `best` and `replay` on made-up results: they name what they found, and say plainly when there is nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line
from tests.report import synthetic
from vitgs.cli import replay as command
from vitgs.record import Record


@pytest.fixture
def rows(tmp_path: Path) -> list[Record]:
    """Results of one machine, in the folder where the commands look."""
    found = synthetic.records(seeds=1)
    synthetic.write(tmp_path / "results", found)
    return found


@pytest.mark.parametrize("arguments", [["report"], ["best"], ["replay", "abcdef"]])
def test_without_results_there_is_nothing_to_work_on(arguments: list[str], ran: Ran) -> None:
    assert "vitgs-bench sweep --suite budget" in one_line(ran(arguments), 3)


def test_report_writes_what_is_asked_for(rows: list[Record], ran: Ran, tmp_path: Path) -> None:
    assert rows
    done = ran(["report", "--format", "md,csv", "--json"])
    assert sorted(done.document["files"]) == ["reports/accuracy.md", "reports/results.csv", "reports/results.md"]
    assert (tmp_path / "reports" / "results.csv").is_file()
    assert "a report's format must be" in one_line(ran(["report", "--format", "docx"]), 2)


def test_best_keeps_to_the_limits(rows: list[Record], ran: Ran) -> None:
    assert rows
    found = ran(["best", "--max-gmacs", "0.06", "--json"]).document
    assert {answer["data"] for answer in found} == {"moment", "order"}
    for answer in found:
        assert answer["best"]["macs"] <= 0.06e9
        assert answer["best"]["replay"].startswith("vitgs-bench replay ")
        assert 0 <= answer["probability"] <= 1
        assert answer["over_a_limit"] > 0


def test_best_for_people(rows: list[Record], ran: Ran) -> None:
    assert rows
    done = ran(["best", "--data", "moment"])
    assert done.out.startswith("moment on ")
    assert "top-1 in %" in done.out
    assert "vitgs-bench replay" in done.out
    assert "doubts about its rows" in done.out


def test_best_gives_a_replay_command_that_finds_the_rows(rows: list[Record], ran: Ran) -> None:
    assert rows
    elsewhere = ["best", "--data", "moment", "--results", "results"]
    assert ran(elsewhere).out.splitlines()[-1].endswith(" --results results")
    assert ran([*elsewhere, "--json"]).document[0]["best"]["replay"].endswith(" --results results")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--max-gmacs", "0"], 2, "--max-gmacs must be above 0"),
        (["--max-latency-ms", "-1"], 2, "--max-latency-ms must be above 0"),
        (["--max-gmacs", "1e-9"], 3, "within the limits"),
        (["--data", "nothing"], 3, "known: moment, order"),
        (["--results", "results", "--results", "elsewhere"], 3, "given: elsewhere, which is none"),
        (["--data", "moment,nothing"], 3, "given: nothing; known: moment, order"),
    ],
)
def test_best_says_why_there_is_none(arguments: list[str], code: int, says: str, rows: list[Record], ran: Ran) -> None:
    assert rows
    assert says in one_line(ran(["best", *arguments]), code)


def test_replay_compares_with_the_row(rows: list[Record], ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(record for record in rows if record.job.kind == "eval")
    monkeypatch.setattr(command, "_again", lambda job: row)
    done = ran(["replay", row.id[:12]])
    assert (done.code, done.out.splitlines()[-1]) == (0, "reproduced")
    worse = {**row.result, "top1": {"value": 0.01, "low": 0.0, "high": 0.02}}
    monkeypatch.setattr(command, "_again", lambda job: dataclasses.replace(row, result=worse))
    done = ran(["replay", row.id, "--json"])
    assert (done.code, done.document["reproduced"]) == (1, False)


def test_replay_of_a_job_that_now_fails(rows: list[Record], ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(record for record in rows if record.job.kind == "eval")
    monkeypatch.setattr(command, "_again", lambda job: dataclasses.replace(row, status="failed", reason="no weights"))
    assert "failed: no weights" in one_line(ran(["replay", row.id]), 1)


def test_replay_needs_a_row_with_a_result(rows: list[Record], ran: Ran) -> None:
    failed = next(record for record in rows if record.status == "failed")
    assert "--retry-failed" in one_line(ran(["replay", failed.id]), 2)
    assert "at least 4 characters" in one_line(ran(["replay", "a"]), 2)
    assert "the beginning of 0 of" in one_line(ran(["replay", "zzzz"]), 2)
