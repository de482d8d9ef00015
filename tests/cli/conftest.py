"""The fixture `ran`: a command line run in this process, in an empty folder and with a cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Done, Ran
from vitgs import folders
from vitgs.cli.app import run


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    """`ran(["cost", "joint"])` -> exit code and output."""
    monkeypatch.setenv("VITGS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "results", lambda: tmp_path / "results")
    monkeypatch.setattr(folders, "reports", lambda: tmp_path / "reports")
    monkeypatch.chdir(tmp_path)

    def carried_out(arguments: list[str]) -> Done:
        code = run(arguments)
        out, err = capsys.readouterr()
        return Done(code=code, out=out, err=err)

    return carried_out
