"""Two workers: of one process or of one each, and how one that dies is told of. With tiny trees of their own, no project in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vitgs.gate import sides
from vitgs.gate.sides import Fails, Tree, Worker, both

MODEL = """
import os, sys
import torch

def linear():
    print("an answer this is not")
    return torch.nn.Linear(4, {width}), torch.zeros(2, 4)

def silent():
    sys.exit()

def killed():
    print("a warning that is not the reason", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), 9)
"""


def case(what: str) -> dict[str, Any]:
    return {"name": what, "factory": f"own:{what}", "device": "cpu", "threads": 1}


@pytest.fixture(params=[True, False], ids=["forked", "apart"])
def trees(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tree, Tree]:
    """Base and head whose models differ, forked from one process or started apart."""
    monkeypatch.setattr(sides, "FORKS", request.param)
    for side, width in (("base", 8), ("head", 16)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "own.py").write_text(MODEL.format(width=width), encoding="utf-8")
    base, head = (Tree(side=side, folder=tmp_path / side, python=sys.executable) for side in ("base", "head"))
    return base, head


def parameters(worker: Worker) -> int:
    return int(worker.ask("exact", case("linear"))["quantities"]["parameters"]["total"])


def test_each_worker_has_its_own_tree_and_keeps_the_heads_clean(trees: tuple[Tree, Tree]) -> None:
    base, head = trees
    with both(head, base) as (after, before):
        assert (parameters(before), parameters(after)) == (8 * 5, 16 * 5)
    assert (base.folder / "__pycache__").is_dir() and not (head.folder / "__pycache__").exists()


@pytest.mark.parametrize(("dies", "told"), [("silent", "exit status 0"), ("killed", "exit status -9")])
def test_one_that_dies_is_told_of_and_the_other_goes_on(trees: tuple[Tree, Tree], dies: str, told: str) -> None:
    if dies == "killed" and not sides.FORKS:
        told = "a warning that is not the reason"  # a process of its own has nobody to add to what it said
    with both(*trees) as (before, after):
        with pytest.raises(Fails, match=f"the head must import and run the case {dies}.*{told}"):
            after.ask("exact", case(dies))
        assert parameters(before) == 8 * 5
