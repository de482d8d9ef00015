"""`cost` on systems and on models of one's own, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line

SMALL = ["--size", "test", "--style", "digits", "--resolution", "32", "--classes", "10"]
OWN = """
import torch
from torch import nn

def factory(clip):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(clip.shape).numel(), clip.class_count))

class TwoFaced(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.first, self.second = nn.Linear(clip.width, clip.class_count), nn.Linear(clip.class_count, clip.class_count)

    def forward(self, clip):
        x = self.first(clip).mean(dim=(1, 2, 3))
        return x if clip.is_meta else self.second(x.expand(clip[0].numel(), -1)).mean(dim=0, keepdim=True)

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


def test_explain_shows_parts_tokens_and_what_two_more_counters_lack(ran: Ran) -> None:
    done = ran(["cost", "vit_mean", *SMALL, "--explain", "--views", "2x3"])
    assert done.code == 0
    labels = [re.split(r"  +", line.strip())[0] for line in done.out.splitlines()]
    assert [
        label for label in ("backbone", "embed.patch", "blocks x 2", "mlp", "head", "torch", "formula", "fvcore", "ptflops") if label not in labels
    ] == []
    assert labels.count("lacks scaled_dot_product_attention") == 2
    assert "MACs a clip" in done.out
    assert "(2 clips of 3 crops)" in done.out
    assert "136 = 8 x 17" in done.out
    assert "with what it lacks by name, each is within 1 % of the formula" in done.out


def test_views_of_a_clip_and_of_a_video(ran: Ran) -> None:
    found = ran(["cost", "vit_mean", *SMALL, "--views", "5x3", "--json"]).document
    assert found["views"] == {"clips": 5, "crops": 3, "macs_a_clip": 3 * found["macs"], "macs_a_video": 15 * found["macs"]}
    assert "MACs a video" not in ran(["cost", "vit_mean", *SMALL]).out


def test_the_same_seed_gives_the_same_cost_where_weights_decide_it(ran: Ran) -> None:
    found = [ran(["cost", "adaframe", *SMALL, "--seed", seed, "--json"]).document["macs"] for seed in ("0", "0", "1", "2", "3")]
    assert found[0] == found[1]
    assert len(set(found)) > 1
    assert "from seed 0: its cost depends on the clip" in ran(["cost", "adaframe", *SMALL]).out


def test_no_number_and_exit_code_1_when_counters_disagree(own: str, ran: Ran) -> None:
    assert ran(["cost", f"{own}:TwoFaced", *SMALL]).code == 0
    done = ran(["cost", f"{own}:TwoFaced", *SMALL, "--explain"])
    assert done.code == 1
    assert "not given: fvcore differs by" in done.out
    done = ran(["cost", f"{own}:TwoFaced", *SMALL, "--explain", "--json"])
    assert (done.code, done.document["macs"], done.document["flops"]) == (1, None, None)
    assert done.document["views"]["macs_a_video"] is None


def test_no_number_when_our_own_two_counters_disagree(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitgs.measure.formula.product_macs", lambda left, right: 1)
    done = ran(["cost", "vit_mean", *SMALL])
    assert done.code == 1
    assert "not given: the counters disagree by more than 1%: torch " in done.out


def test_knobs_change_the_cost(ran: Ran) -> None:
    costs = [ran(["cost", "graphsampler", *SMALL, "--set", f"budget={budget}", "--json"]).document["macs"] for budget in (1.0, 0.25)]
    assert costs[1] < costs[0]
    few = ran(["cost", "vit_mean", *SMALL, "--set", "frames=2", "--json"]).document["macs"]
    assert few * 3 < ran(["cost", "vit_mean", *SMALL, "--json"]).document["macs"]


@pytest.mark.parametrize("suffix", ["", ":factory"])
def test_a_file_of_ones_own(suffix: str, own: str, ran: Ran) -> None:
    found = ran(["cost", own + suffix, *SMALL, "--json"]).document
    assert found["macs"] == 8 * 3 * 32 * 32 * 10


def test_a_number_may_begin_or_end_with_its_point(ran: Ran) -> None:
    counted = [ran(["cost", "graphsampler", *SMALL, "--set", f"budget={text}", "--json"]).document["macs"] for text in (".5", "0.5", "1.", "1.0")]
    assert counted[0] == counted[1] < counted[2] == counted[3]


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
        (["joint", "--views", "5by3"], "--views must be clips x crops"),
        (["joint", "--views", "0x3"], "--views must be clips x crops"),
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def factory(clip:\n", "must import"),
        ("1 / 0\n", "ZeroDivisionError: division by zero at broken.py:1"),
        ("raise SystemExit(3)\n", "SystemExit: 3 at broken.py:1"),
        ("def factory(clip):\n    raise KeyError(clip.frames)\n", "KeyError: 8 at broken.py:2"),
    ],
)
def test_a_file_of_ones_own_that_fails_is_told_with_its_place(text: str, says: str, tmp_path: Path, ran: Ran) -> None:
    (tmp_path / "broken.py").write_text(text, encoding="utf-8")
    assert says in one_line(ran(["cost", "broken.py", *SMALL]), 2)
