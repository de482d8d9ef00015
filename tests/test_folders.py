"""Where things lie, and that the cache finds a place even where the home can't be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitgs import folders


def test_the_checkout_holds_its_folders() -> None:
    root = folders.checkout()
    assert root == Path(__file__).resolve().parents[1]
    assert folders.suites() == root / "suites"
    assert folders.results() == root / "results"
    assert folders.reports() == root / "reports"


def test_an_installed_package_works_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PACKAGE", tmp_path / "site-packages" / "vitgs")
    monkeypatch.chdir(tmp_path)
    assert folders.checkout() is None
    assert folders.suites() == tmp_path / "site-packages" / "vitgs" / "suites"
    assert folders.results() == tmp_path / "results"
    assert folders.reports() == tmp_path / "reports"


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITGS_CACHE", str(tmp_path / "mine"))
    assert folders.cache() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


def test_the_cache_lies_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITGS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.cache() == tmp_path / "vitgs"


def test_the_cache_survives_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("a file, so that nobody, root included, makes a folder under it")
    monkeypatch.delenv("VITGS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(folders, "PACKAGE", tmp_path / "site-packages" / "vitgs")
    monkeypatch.setattr("vitgs.folders.tempfile.gettempdir", lambda: str(tmp_path))
    assert folders.cache() == tmp_path / ".cache" / "vitgs"


def test_portable_paths_name_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    work.mkdir()
    monkeypatch.setenv("VITGS_DATA", str(data))
    monkeypatch.chdir(work)
    assert folders.portable(data / "k400" / "a.mp4") == "$VITGS_DATA/k400/a.mp4"
    assert folders.portable(work / "clips") == "clips"
    assert folders.portable(Path("clips")) == "clips"
    assert folders.portable(tmp_path / "else") == "../else"
