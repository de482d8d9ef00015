"""`train` and `eval`: a checkpoint says what it is, and nothing but a run knob can be changed afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Ran, one_line

TINY = ["--size", "test", "--steps", "2", "--batch", "4"]


@pytest.fixture
def checkpoint(ran: Ran, tmp_path: Path) -> str:
    """A model hardly trained."""
    done = ran(["train", "graphsampler", "--data", "digits:moment", *TINY, "--start", "shared", "--start-steps", "2", "--out", "out", "--json"])
    assert done.code == 0, done.err
    assert done.err == ""
    file = str(done.document["checkpoint"])
    assert (tmp_path / file).is_file()
    assert not Path(file).is_absolute()
    return file


def test_a_checkpoint_is_evaluated(checkpoint: str, ran: Ran) -> None:
    found = ran(["eval", checkpoint, "--clips", "40", "--set", "budget=0.5", "--json"]).document
    assert (found["split"], found["clips"], found["run"]) == ("val", 40, {"budget": 0.5})
    assert found["top1"]["low"] <= found["top1"]["value"] <= found["top1"]["high"]
    assert "on 40 test clips of digits:moment" in ran(["eval", checkpoint, "--clips", "40", "--split", "test"]).out
    for arguments, says in (
        (["--set", "k=2"], "a run knob alone"),
        (["--set", "budget=2"], "budget must be"),
        (["--data", "digits:order"], "the model knows 10 classes"),
        (["--split", "all"], "a split must be"),
        (["--views", "2x3"], "--views must be"),
        (["--clips", "0"], "--clips must be above 0"),
    ):
        assert says in one_line(ran(["eval", checkpoint, *arguments]), 2)


def test_training_is_told_on_stderr(ran: Ran) -> None:
    done = ran(["train", "joint", "--data", "digits:moment", *TINY])
    assert done.code == 0
    assert "val top-1" in done.out
    assert "100%" in done.err


def test_eval_needs_a_checkpoint_of_ours(ran: Ran, tmp_path: Path) -> None:
    assert "with its .json beside it" in one_line(ran(["eval", "none.safetensors"]), 2)
    (tmp_path / "odd.safetensors").touch()
    (tmp_path / "odd.json").write_text("{}", encoding="utf-8")
    assert "is written by `train`" in one_line(ran(["eval", "odd.safetensors"]), 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["joint", "--data", "digits:nothing"], "a digit task must be"),
        (["joint", "--data", "nowhere/at/all"], "is a folder"),
        (["joint", "--data", "digits:moment", "--lr", "5"], "lr must be"),
        (["joint", "--data", "digits:moment", "--steps", "0"], "steps must be"),
        (["joint", "--data", "digits:moment", "--start", "warm"], "a start must be"),
        (["joint", "--data", "digits:moment", "--start", "shared", "--weights", "x.npz"], "one start"),
        (["joint", "--data", "digits:moment", "--size", "test", "--rule", "elastic"], "run knobs"),
        (["joint", "--data", "digits:moment", "--size", "test", "--rule", "loose"], "a rule must be"),
        (["joint", "--data", "digits:moment", "--resolution", "30"], "multiples of the patch"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran) -> None:
    assert says in one_line(ran(["train", *arguments]), 2)
