"""What is installed is what is tested: the wheel with the sources gone, the pinned versions, and the two commands that README starts with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)$")
IN_WHEEL = """
import pathlib, sys
import vitgs, vitgs.folders, vitgs.baselines.joint
from vitgs.cli.app import run
site = pathlib.Path(sys.argv[1]).resolve()
assert pathlib.Path(vitgs.__file__).resolve().is_relative_to(site), vitgs.__file__
assert pathlib.Path(vitgs.baselines.joint.__file__).resolve().is_relative_to(site), vitgs.baselines.joint.__file__
assert vitgs.folders.checkout() is None
assert vitgs.folders.suites() == site / "vitgs" / "suites" and any(vitgs.folders.suites().glob("*.toml"))
assert vitgs.folders.results() == pathlib.Path.cwd() / "results"
assert vitgs.baselines.joint.SYSTEM.name == "joint"
sys.exit(run(["list", "models"]))
"""


def normal(name: str) -> str:
    """Package names compare without case and with one kind of dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(text: str) -> str:
    """`optuna>=5` -> `optuna`."""
    return normal(re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0])


def pins() -> dict[str, str]:
    """`constraints.txt` as a mapping; a line that is more than a name and a version fails."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = PIN.match(line)
            assert match, f"not a name and a version alone: {line}"
            found[normal(match[1])] = match[2]
    return found


def test_every_dependency_is_pinned() -> None:
    groups = [entry for group in PROJECT["dependency-groups"].values() for entry in group]
    named = {requirement(text) for text in [*PROJECT["project"]["dependencies"], *groups, *PROJECT["build-system"]["requires"]]}
    assert named - set(pins()) == set()


def test_the_pins_hold_on_every_platform() -> None:
    platform_bound = [name for name in pins() if name.startswith(("nvidia-cu", "nvidia-nc", "nvidia-nv", "cuda-", "triton"))]
    assert platform_bound == []
    assert "+" not in "".join(pins().values())


def test_the_wheel_works_with_the_sources_gone(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; `make test` installs it")
    sources, site, elsewhere = tmp_path / "sources", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    without = shutil.ignore_patterns("__pycache__")
    for folder in ("vitgs", "baselines", "suites"):
        shutil.copytree(ROOT / folder, sources / folder, ignore=without)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources / file)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=sources, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(sources)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "vitgs/baselines/joint.py" in names
    assert not [name for name in names if name.startswith(("tests/", "baselines/", "results/", "reports/"))]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IN_WHEEL, str(site)], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vit_mean" in done.stdout


def planned(folder: Path, target: str) -> str:
    """What `make` would do."""
    # These tests may run under `make test`, whose flags are not this one's.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", "-n", target], cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_a_second_make_installs_nothing(tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path / file)
    assert ".ci/environment" in planned(tmp_path, "bench")
    stamp = tmp_path / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert planned(tmp_path, "bench").splitlines() == [
        ".venv/bin/vitgs-bench sweep --suite budget --profile embedded-short",
        ".venv/bin/vitgs-bench report",
    ]
    assert planned(tmp_path, "test").splitlines() == [".venv/bin/python -m pytest"]
    newer = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (newer, newer))
    assert ".ci/environment" in planned(tmp_path, "test")


def test_continuous_integration_runs_the_tests_then_the_exact_tier() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert "set -euo pipefail" in lines
    assert commands[0] == "make test"
    assert commands[-1].startswith(".venv/bin/vitgs-bench gate run ")
    assert "--tier exact" in commands[-1]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert os.access(ROOT / ".ci" / "environment", os.X_OK)


OLD = 'case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac'
LAME = 'case "$2" in *print*) echo 3.12 ;; *version_info*) exit 0 ;; *) exit 1 ;; esac'
GOOD = 'case "$2" in *SOABI*) echo cpython-312-x86_64-linux-gnu ;; *print*) echo 3.12 ;; *) exit 0 ;; esac'
MUSL = 'case "$2" in *SOABI*) echo cpython-312-x86_64-linux-musl ;; *print*) echo 3.12 ;; *) exit 0 ;; esac'


@pytest.mark.parametrize(
    ("commands", "rule", "remedy"),
    [
        ({"fake": OLD}, "Python 3.11 or newer; given: 3.9", "set PYTHON"),
        ({"fake": "exit 127"}, "Python 3.11 or newer; given: none", "set PYTHON"),
        ({"fake": LAME}, "Python 3.12 without venv or ensurepip", "python3.12-venv"),
        ({"fake": MUSL}, "needs glibc", "glibc distribution"),
        ({"fake": GOOD, "df": "printf 'h\\nd 1 1 7000000 1 /\\n'"}, "8 GB of disk; given: 7 GB", "free some"),
        ({"fake": GOOD, "uname": "echo Plan9"}, "Linux on x86-64 or arm64", "use such a machine"),
    ],
)
def test_an_unfit_machine_is_told_the_one_remedy(tmp_path: Path, commands: dict[str, str], rule: str, remedy: str) -> None:
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": "fake"}
    done = subprocess.run([ROOT / ".ci" / "environment", ".venv"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert rule in done.stderr
    assert remedy in done.stderr
    assert not (tmp_path / ".venv").exists()
