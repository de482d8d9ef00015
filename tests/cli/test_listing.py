"""`list` says the same at once, from texts, as the registry does after importing everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line
from vitgs import folders, registry

OWN = '''"""A system of one's own."""
from vitgs.spec import System
SYSTEM = System(name="mine", group="own group", paper="none", construct=None)
'''


def test_the_texts_and_the_registry_agree(ran: Ran) -> None:
    rows = [line.split("  ")[0].strip() for line in ran(["list", "models"]).out.splitlines()[1:]]
    assert rows == registry.names()
    fast = {row["name"]: row["group"] for row in _fast()}
    assert fast == {name: registry.get(name).group for name in registry.names()}


def _fast() -> list[dict[str, str]]:
    from vitgs.cli.listing import _models

    return _models()


def test_models_as_json_have_their_knobs(ran: Ran) -> None:
    rows = {row["name"]: row for row in ran(["list", "models", "--json"]).document}
    budget = rows["graphsampler"]["knobs"]["budget"]
    assert budget["when"] == "run"
    assert 0.25 in budget["values"]


def test_a_folder_of_ones_own_is_listed(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / "own"))
    lines = ran(["list", "models"]).out.splitlines()
    assert [line.split("  ")[0] for line in lines if "own group" in line] == ["mine"]


@pytest.mark.parametrize("what", ["suites", "profiles"])
def test_suites_and_profiles_are_the_files(what: str, ran: Ran) -> None:
    folder = folders.suites() / ("profiles" if what == "profiles" else "")
    rows = ran(["list", what, "--json"]).document
    assert [row["name"] for row in rows] == sorted(file.stem for file in folder.glob("*.toml"))
    assert all(row["title"] for row in rows)


def test_data_as_markdown(ran: Ran) -> None:
    lines = ran(["list", "data", "--markdown"]).out.splitlines()
    assert lines[0].startswith("| name |")
    assert any(line.startswith("| digits:moment |") for line in lines)


def test_an_unknown_list_names_the_known_ones(ran: Ran) -> None:
    assert "did you mean models?" in one_line(ran(["list", "model"]), 2)
