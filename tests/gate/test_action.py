"""What CI runs: the action's options exist, its script survives odd names and hands on the exit code, and the plain shell knows the same variable."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"


def script() -> str:
    """The shell of the action's first step."""
    lines = ACTION.read_text(encoding="utf-8").split("      run: |\n")[1].splitlines()
    own = [line for line in lines if not line.strip() or line.startswith("        ")]
    return "\n".join(line[8:] for line in own[: lines.index("    - if: always() && inputs.page != ''")])


def run(folder: Path, gate: str, **given: str) -> tuple[int, dict[str, str]]:
    """The script with a stand-in for Python that writes down its arguments and answers as `gate` says."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word" >> {folder}/asked; done\n{gate}\n')
    python.chmod(0o755)
    names = {"BASE": "b", "SUITE": "gate", "TIER": "exact", "SECONDS_GIVEN": "60", "ALLOW": "", "DRIFT": "", "RESULTS": "results", "DIRECTORY": "."}
    files = {"RUNNER_TEMP": folder, "GITHUB_STEP_SUMMARY": folder / "summary", "GITHUB_OUTPUT": folder / "output"}
    environment = {**os.environ, **names, **given, "PYTHON": str(python), **{name: str(path) for name, path in files.items()}}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script()], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, {name: (folder / name).read_text() for name in ("asked", "summary", "output")}


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_table_and_exit_code_are_handed_on(tmp_path: Path, code: int) -> None:
    ended, wrote = run(tmp_path, f'[ "$4" = run ] || exit 3; echo "| table |"; echo "error: why" >&2; echo "round 1" >&2; exit {code}')
    assert (ended, wrote["output"]) == (code, f"code={code}\n")
    assert wrote["summary"] == "| table |\nerror: why\n"


def test_a_branch_may_have_any_name_and_drift_may_be_left_out(tmp_path: Path) -> None:
    _, wrote = run(tmp_path, "exit 0", BASE="a b; touch hurt", DRIFT="tag")
    assert "--base\na b; touch hurt\n" in wrote["asked"] and "--drift\ntag\n" in wrote["asked"]
    assert not (tmp_path / "hurt").exists()
    (tmp_path / "asked").unlink()
    assert "--drift" not in run(tmp_path, "exit 0")[1]["asked"]


def test_inputs_that_are_left_out_are_no_empty_arguments(tmp_path: Path) -> None:
    """The command refuses those."""
    assert "" not in run(tmp_path, "exit 0")[1]["asked"].splitlines()
    assert "--allow\nMACs\n" in run(tmp_path, "exit 0", ALLOW="MACs")[1]["asked"]


def test_the_page_is_uploaded() -> None:
    text = ACTION.read_text(encoding="utf-8")
    assert "actions/upload-artifact@" in text and "runner.temp }}/gate.html" in text and '--page "$RUNNER_TEMP/gate.html"' in text


def test_the_options_are_the_commands() -> None:
    command = (ROOT / "vitgs" / "cli" / "gate.py").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", script()))
    assert {"--base", "--drift", "--out", "--markdown", "--page"} <= options
    assert [option for option in options if f'"{option}"' not in command] == []


def test_what_may_grow_is_told_by_a_variable_or_by_a_line_that_holds_for_earlier_bases(tmp_path: Path) -> None:
    """The plain shell's script, with `make` and the gate replaced by programs that tell what they were called with."""
    assert "GATE_ALLOW=" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def git(*arguments: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def program(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        file.chmod(0o755)

    program("bin/make", "true")
    program(".venv/bin/vitgs-bench", 'echo "$@"')
    program(".ci/run", "")
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "vitgs").mkdir()
    git("init", "-q", "-b", "main")
    commits: list[str] = []
    for text in ("first", "second", "third"):
        (tmp_path / "vitgs" / "code.py").write_text(text, encoding="utf-8")
        if text == "second":
            (tmp_path / ".ci" / "allow").write_text(f"# a comment\n{commits[0]} operators,MACs for a reason\n", encoding="utf-8")
        git("add", ".ci", "vitgs")
        git("commit", "-q", "-m", text)
        commits.append(git("rev-parse", "HEAD"))

    def said(**environment: str) -> str:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [tmp_path / ".ci" / "run"], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path, **environment}
        ).stdout.strip()

    assert said() == f"gate run --base {commits[1]} --tier exact"
    assert said(GATE_ALLOW="parameters") == f"gate run --base {commits[1]} --tier exact --allow parameters"
    git("update-ref", "refs/remotes/origin/main", commits[0])
    assert said() == f"gate run --base {commits[0]} --tier exact --allow operators,MACs"
    assert said(GATE_ALLOW="parameters") == f"gate run --base {commits[0]} --tier exact --allow parameters,operators,MACs"
