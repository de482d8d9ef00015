"""`sweep`: its options reach the sweep as they are meant, what it says, and what it refuses before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Ran, one_line
from vitgs.sweep import Summary


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the sweep is asked for; nothing is run."""
    seen: dict[str, Any] = {}

    def run_sweep(suite: str, **options: Any) -> Summary:
        seen.update(options, suite=suite)
        failed = (("train joint() digits:moment seed 0", "killed"),)
        return Summary(file=tmp_path / "results" / "m" / "budget.jsonl", done=3, kept=4, measured=6, failed=failed, seconds=90.0)

    monkeypatch.setattr("vitgs.sweep.run_sweep", run_sweep)
    return seen


def test_the_options_reach_the_sweep(asked: dict[str, Any], ran: Ran) -> None:
    done = ran(["sweep", "--suite", "budget", "--data", "digits:moment, digits:order", "--models", "joint,to*", "--seeds", "3", "--out", "elsewhere"])
    assert done.code == 0
    assert (asked["suite"], asked["profile"], asked["seeds"]) == ("budget", None, 3)
    assert list(asked["data"]) == ["digits:moment", "digits:order"]
    assert list(asked["models"]) == ["joint", "to*"]
    assert (asked["out"], asked["executor"], asked["retry_failed"]) == (Path("elsewhere"), "local", False)


def test_names_come_with_commas_or_with_the_option_again(asked: dict[str, Any], ran: Ran) -> None:
    assert ran(["sweep", "--suite", "budget", "--data", "digits:moment", "--data", "digits:order, digits:link"]).code == 0
    assert list(asked["data"]) == ["digits:moment", "digits:order", "digits:link"]


def test_a_sweep_with_failed_rows_is_done(asked: dict[str, Any], ran: Ran) -> None:
    done = ran(["sweep", "--suite", "budget"])
    assert asked["data"] == ()
    assert done.code == 0
    assert done.out.splitlines() == [
        "3 rows written, 4 kept, in 1.50 min: results/m/budget.jsonl",
        "failed: train joint() digits:moment seed 0: killed",
    ]


def test_a_sweep_that_measured_nothing_is_not_done(ran: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = Summary(file=tmp_path / "budget.jsonl", done=1, kept=0, measured=0, failed=(("train joint()", "killed"),))
    monkeypatch.setattr("vitgs.sweep.run_sweep", lambda *_, **__: nothing)
    done = ran(["sweep", "--suite", "budget"])
    assert (done.code, done.out.splitlines()[-1]) == (1, "failed: train joint(): killed")
    assert "must measure something" in done.err


def test_the_document(asked: dict[str, Any], ran: Ran) -> None:
    document = ran(["sweep", "--suite", "budget", "--profile", "embedded", "--json"]).document
    assert asked["profile"] == "embedded"
    assert (document["done"], document["kept"], document["failed"][0]["reason"]) == (3, 4, "killed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "budgets"], "did you mean budget?"),
        (["--suite", "budget", "--profile", "huge"], "a profile must be"),
        (["--suite", "budget", "--models", "jont"], "a system must be"),
        (["--suite", "budget", "--data", "digits:nothing"], "a digit task must be"),
        (["--suite", "budget", "--data", "nowhere/at/all"], "is a folder"),
        (["--suite", "budget", "--seeds", "0"], "--seeds must be above 0"),
        (["--suite", "budget", "--workers", "0"], "--workers must be above 0"),
        (["--suite", "budget", "--executor", "cloud"], "--executor must be one of"),
        (["--suite", "budget", "--device", "tpu"], "a device must be"),
        (["--suite", "own.toml"], "key"),
        (["--suite", "none.toml"], "must exist"),
        (["--suite", "smoke", "--storage", "foo"], "--storage must be a database"),
        (["--suite", "smoke", "--storage", "sqlite:////none/study.db"], "given: sqlite: OperationalError"),
        (["--suite", "smoke", "--out", "own.toml"], "something of another kind"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('systmes = ["joint"]\n', encoding="utf-8")
    assert says in one_line(ran(["sweep", *arguments]), 2)
    assert not (tmp_path / "results").exists()
