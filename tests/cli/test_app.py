"""The outermost layer: exit codes, one line for each known error, nothing heavy before it is needed, and options that scripts rely on."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

import vitgs
from tests.cli.command import Ran, command, from_anywhere, one_line
from vitgs.errors import AnswerIsNo, NothingToWorkOn, UnfitMachine, VitgsError

HEAVY = ("torch", "numpy", "pandas", "optuna", "matplotlib", "sklearn", "scipy", "timm", "rich")
OPTIONS = {
    "sweep": ["--suite", "--profile", "--data", "--models", "--seeds", "--storage", "--executor", "--workers", "--out", "--retry-failed", "--json"],
    "report": ["--results", "--out", "--format", "--json"],
    "list": ["--json", "--markdown"],
    "cost": ["--size", "--style", "--frames", "--resolution", "--classes", "--set", "--explain", "--json"],
    "measure": ["--size", "--frames", "--resolution", "--classes", "--set", "--batch", "--device", "--dtype", "--content", "--json"],
    "train": ["--data", "--size", "--set", "--weights", "--seed", "--json"],
    "eval": ["--data", "--views", "--split", "--set", "--json"],
    "best": ["--max-latency-ms", "--max-gmacs", "--max-memory-gib", "--max-energy-j", "--json"],
    "replay": ["--results", "--json"],
}


def imported_by(arguments: list[str]) -> set[str]:
    """Which heavy modules a command line has imported when it ends."""
    script = "import sys\nfrom vitgs.cli.app import run\ncode = run(sys.argv[1:])\nprint('\\n' + ' '.join(sys.modules))\nsys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


LISTS = [["list", what] for what in ("models", "suites", "profiles", "data")]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sweep", "--help"], *LISTS])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(arguments) == set()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_that_scripts_rely_on(name: str, ran: Ran) -> None:
    out = ran([name, "--help"]).out
    assert [option for option in OPTIONS[name] if option not in out] == []


def test_help_names_every_command(ran: Ran) -> None:
    done = ran(["--help"])
    assert done.code == 0
    assert [name for name in OPTIONS if f"  {name} " not in done.out] == []


def test_version(ran: Ran) -> None:
    assert ran(["--version"]).out.strip() == f"vitgs-bench {vitgs.__version__}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command"),
        (["frobnicate"], "No such command"),
        (["cost"], "Missing argument"),
        (["cost", "joint", "--size"], "requires an argument"),
        (["cost", "joint", "--frames", "many"], "--frames"),
        (["cost", "joint", "--nope"], "No such option"),
        (["sweep"], "--suite"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_help(arguments: list[str], says: str, ran: Ran) -> None:
    line = one_line(ran(arguments), 2)
    assert says in line
    assert line.endswith("--help")


@pytest.mark.parametrize("kind", [AnswerIsNo, NothingToWorkOn, UnfitMachine])
def test_known_errors_exit_with_their_code(kind: type[VitgsError], ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, kind("a rule", given="this\nand that", remedy="do it otherwise"))
    assert one_line(ran(["report"]), kind.exit_code) == "error: a rule; given: this and that; do it otherwise"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_environment_that_refuses_breaks_off(code: int, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, OSError(code, "no", "reports/index.html"))
    line = one_line(ran(["report"]), 5)
    assert "reports/index.html" in line
    assert "run the same command again" in line


@pytest.mark.parametrize("code", [errno.ENOTDIR, errno.EEXIST, errno.EISDIR])
def test_a_path_through_a_file_is_wrong_usage(code: int, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, OSError(code, "Not a directory", "README.md/x"))
    assert "README.md/x: Not a directory" in one_line(ran(["report"]), 2)


def test_an_interruption(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, KeyboardInterrupt())
    assert "the same command" in one_line(ran(["report"]), 130)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["best", "--data", ""], "must not be empty; given: --data ''"),
        (["best", "--max-gmacs="], "must not be empty; given: --max-gmacs="),
        (["cost", ""], "must not be empty"),
    ],
)
def test_an_empty_argument_does_not_pass_for_one_left_out(arguments: list[str], says: str, ran: Ran) -> None:
    assert says in one_line(ran(arguments), 2)


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), FileNotFoundError(errno.ENOENT, "a bug")])
def test_a_bug_keeps_its_traceback(bug: Exception, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, bug)
    with pytest.raises(type(bug), match="a bug"):
        ran(["report"])


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen([*command(), "list", "data", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run([*command(), "list", "data", "--json"], cwd=tmp_path, env=from_anywhere(), capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout.splitlines()[-1])) >= 5


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `report` end with this error."""

    def raises(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("vitgs.report.render.render", raises)
