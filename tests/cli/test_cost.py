"""`cost` on systems and on models of one's own, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line

SMALL = ["--size", "test", "--style", "digits", "--resolution", "32", "--classes", "10"]
OWN = """
import torch
from torch import nn

def factory(clip):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(clip.shape).numel(), clip.class_count))

def thing(clip):
    return "not a model"

def greedy(clip, more):
    return nn.Identity()
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file with models of one's own."""
    path = tmp_path / "own_models.py"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


def test_the_document(ran: Ran) -> None:
    found = ran(["cost", "vit_mean", *SMALL, "--json"]).document
    assert {"params", "macs", "flops", "macs_by_part", "counters", "uncounted"} <= set(found)
    assert found["flops"] == 2 * found["macs"]
    assert found["counters"]["torch"] == found["counters"]["formula"] == found["macs"]


def test_explain_asks_two_more_counters(ran: Ran) -> None:
    done = ran(["cost", "vit_mean", *SMALL, "--explain"])
    assert done.code == 0
    assert "by fvcore" in done.out
    assert "by ptflops" in done.out


def test_knobs_change_the_cost(ran: Ran) -> None:
    costs = [ran(["cost", "graphsampler", *SMALL, "--set", f"budget={budget}", "--json"]).document["macs"] for budget in (1.0, 0.25)]
    assert costs[1] < costs[0]
    few = ran(["cost", "vit_mean", *SMALL, "--set", "frames=2", "--json"]).document["macs"]
    assert few * 3 < ran(["cost", "vit_mean", *SMALL, "--json"]).document["macs"]


@pytest.mark.parametrize("suffix", ["", ":factory"])
def test_a_file_of_ones_own(suffix: str, own: str, ran: Ran) -> None:
    found = ran(["cost", own + suffix, *SMALL, "--json"]).document
    assert found["macs"] == 8 * 3 * 32 * 32 * 10


def test_a_factory_in_the_working_directory(own: str, ran: Ran) -> None:
    assert ran(["cost", "own_models:factory", *SMALL, "--json"]).document["params"] == (8 * 3 * 32 * 32 + 1) * 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["jont"], "did you mean joint?"),
        (["joint", "--size", "Q"], "a size must be"),
        (["joint", "--style", "Q"], "a style must be"),
        (["joint", "--set", "foo=1"], "a knob in joint must be"),
        (["joint", "--set", "frames"], "--set takes knob=value"),
        (["joint", "--set", "frames=2", "--set", "frames=4"], "frames twice"),
        (["joint", "--set", "utility=some"], "joint's utility must be one of none, learned"),
        (["graphsampler", "--set", "budget=0"], "budget must be"),
        (["graphsampler", "--set", "budget=1.5"], "budget must be"),
        (["graphsampler", "--set", "budget=NaN"], "budget must be"),
        (["joint", "--frames", "0"], "frames must be at least 1"),
        (["joint", "--resolution", "33"], "multiples of the patch"),
        (["joint", "--classes", "0"], "--classes must be above 0"),
        (["nowhere.py"], "file must exist"),
        (["no_such_package.models:factory"], "must import"),
        (["own_models.py:nothing"], "has nothing"),
        (["own_models.py:thing"], "must return an nn.Module"),
        (["own_models.py:greedy"], "one argument"),
        (["own_models.py", "--set", "budget=0.5"], "a knob in own_models.py"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, own: str, ran: Ran) -> None:
    assert own
    assert says in one_line(ran(["cost", arguments[0], *SMALL, *arguments[1:]]), 2)


def test_a_file_that_does_not_import(tmp_path: Path, ran: Ran) -> None:
    (tmp_path / "broken.py").write_text("def factory(clip:\n", encoding="utf-8")
    assert "must import" in one_line(ran(["cost", "broken.py", *SMALL]), 2)
