"""`theory`: numbers, table and figures of a model hardly trained; a part that can't be checked says so; the rest is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line
from vitgs.graphsampler import theory_checks

TINY = ["--size", "test", "--steps", "1", "--batch", "2", "--out", "out", "--json"]


def trained(ran: Ran, *knobs: str, model: str = "graphsampler") -> str:
    done = ran(["train", model, "--data", "digits:moment", *TINY, *(word for knob in knobs for word in ("--set", knob))])
    assert done.code == 0, done.err
    return str(done.document["checkpoint"])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small instances: what they say is checked elsewhere."""
    monkeypatch.setattr(theory_checks, "CANDIDATES", 5)
    monkeypatch.setattr(theory_checks, "CHOSEN", 3)


def test_numbers_table_and_figures(ran: Ran, tmp_path: Path) -> None:
    first, second = trained(ran), trained(ran, "sparsity=1.0")
    done = ran(["theory", first, second, "--clips", "2", "--out", "checked", "--record", "kept/moment.json", "--json"])
    assert (done.code, done.err) == (0, "")
    names = ["kept/moment.json", *(f"checked/{name}" for name in ("theory.md", "theory-graph.png", "theory-sets.png", "theory-utility.png"))]
    assert done.document["files"] == names
    assert all((tmp_path / name).is_file() for name in names)
    kept = json.loads((tmp_path / "kept/moment.json").read_text(encoding="utf-8"))
    assert kept["claims"] == done.document["claims"]
    assert [row["sparsity"] for row in kept["price"]] == [0.3, 1.0]
    assert [about["file"] for about in kept["checkpoints"]] == [Path(first).name, Path(second).name]
    assert (kept["settings"]["clips"], kept["settings"]["budget"], kept["settings"]["split"]) == (2, 0.25, "test")
    assert len(kept["utility"]["kept"]["utility"]["samples"]) == 2
    assert {row["of"] for row in kept["scaling"]} == {"edges and messages, window 8", "edges and messages, window 2", "full attention"}
    assert all(row["blocks_ms"] is None and row["reason"] for row in kept["scaling"])
    assert "| **holds** |" in (tmp_path / "checked/theory.md").read_text(encoding="utf-8")


def test_without_a_graph_that_part_says_so(ran: Ran, tmp_path: Path) -> None:
    done = ran(["theory", trained(ran, "layers=0"), "--clips", "1", "--budget", "0.5"])
    assert done.code == 0
    assert "no graph" in done.out
    kept = json.loads((tmp_path / "reports/theory/theory.json").read_text(encoding="utf-8"))
    assert (kept["graph"], kept["scaling"], kept["settings"]["budget"]) == ({"reason": "no graph"}, [], 0.5)
    assert not (tmp_path / "reports/theory/theory-graph.png").exists()


def test_what_can_not_be_checked_is_refused_in_one_line(ran: Ran) -> None:
    checkpoint = trained(ran)
    for arguments, says in (
        ([checkpoint, "--clips", "0"], "--clips must be above 0"),
        ([checkpoint, "--budget", "2"], "budget must be"),
        ([checkpoint, "--split", "all"], "split"),
        ([checkpoint, "--time", "0"], "--time must be above 0"),
        ([checkpoint, "--data", "digits:order"], "the model knows 10 classes"),
        (["none.safetensors"], "with its .json beside it"),
        ([trained(ran, model="joint")], "theory needs graphsampler"),
        ([trained(ran, "utility=none", "select=random")], "a learned utility"),
        ([checkpoint, trained(ran, "k=2")], "another k in"),
    ):
        assert says in one_line(ran(["theory", *arguments]), 2)
