"""`train` and `eval`: a checkpoint says what it is, and nothing but a run knob can be changed afterwards."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cli.command import Ran, one_line
from vitgs.cli.evaluate import affordable
from vitgs.cli.train import _progress
from vitgs.record import Views

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
    assert (found["views"], found["views_a_video"], found["macs_a_video"]) == ("1x1", 1, found["macs_a_view"])
    told = ran(["eval", checkpoint, "--clips", "40", "--split", "test", "--views", "auto"]).out
    assert "on 40 test clips of digits:moment" in told
    assert "\n1 view: " in told
    for arguments, says in (
        (["--set", "k=2"], "a run knob alone"),
        (["--set", "budget=2"], "budget must be"),
        (["--data", "digits:order"], "the model knows 10 classes"),
        (["--split", "all"], "a split must be"),
        (["--views", "2x3"], "digits:moment has one view"),
        (["--views", "2by3"], "--views must be clips x crops"),
        (["--views", "automatic"], "for two clips of three crops each, or auto"),
        (["--clips", "0"], "--clips must be above 0"),
    ):
        assert says in one_line(ran(["eval", checkpoint, *arguments]), 2)


def test_a_cost_that_depends_on_the_clip_is_said_to_be_of_one(checkpoint: str, ran: Ran) -> None:
    rlt = ran(["train", "rlt", "--data", "digits:moment", *TINY, "--out", "out", "--json"]).document["checkpoint"]
    for name, of, depends in ((rlt, "the first clip", True), (checkpoint, "every clip", False)):
        assert ran(["eval", name, "--clips", "8", "--json"]).document["macs_of"] == of
        assert ("MACs, of the first clip: its cost depends on the clip\n" in ran(["eval", name, "--clips", "8"]).out) == depends


def test_training_is_told_on_stderr(ran: Ran) -> None:
    done = ran(["train", "joint", "--data", "digits:moment", *TINY])
    assert done.code == 0
    assert "val top-1" in done.out
    assert "100%" in done.err


def test_eval_needs_a_checkpoint_of_ours(ran: Ran, tmp_path: Path) -> None:
    assert "with its .json beside it" in one_line(ran(["eval", "none.safetensors"]), 2)
    (tmp_path / "odd.safetensors").touch()
    for text in (
        "{}",
        "[]",
        "3",
        '{"clip": {}}',
        '{"clip": {"frames": 8, "height": 32, "width": 32, "channels": 3, "classes": 2},'
        '"knobs": [], "model": "joint", "size": "test", "style": "digits", "data": "digits:moment"}',
        "\xff",
    ):
        (tmp_path / "odd.json").write_text(text, encoding="latin-1")
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
        (["joint", "--data", "digits:moment", "--temporal-scales", "1,0.5"], "temporal scales are for folders of videos"),
        (["joint", "--data", "digits:moment", "--temporal-scales", "half"], "takes numbers with commas between"),
        (["joint", "--data", "digits:moment", "--out", "a-file/weights"], "something of another kind"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    assert says in one_line(ran(["train", *arguments]), 2)


def test_videos_are_seen_in_views(ran: Ran, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, label in product(("train", "val", "test"), ("a", "b")):
        path = tmp_path / "data" / split / label / "0.mp4"
        path.parent.mkdir(parents=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for _ in range(8):
                noise = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            container.mux(stream.encode())
    shape = ["--frames", "4", "--resolution", "16", "--style", "digits"]
    names = []
    for scales in ([], ["--temporal-scales", "1"], ["--temporal-scales", "1,0.5"]):
        done = ran(["train", "graphsampler", "--data", "./data/", *TINY, *shape, *scales, "--out", "out", "--json"])
        assert done.code == 0, done.err
        names.append(done.document["checkpoint"])
        assert done.document.get("temporal_scales") == ([1.0, 0.5] if "1,0.5" in scales else None)
    assert names[0] == names[1] != names[2]
    done = ran(["train", "graphsampler", "--data", "./data/", *TINY, *shape, "--set", "select=none", "--out", "out", "--json"])
    assert ran(["eval", done.document["checkpoint"], "--views", "auto", "--json"]).document["views"] == "1x1", "it keeps all tokens at any budget"
    one, six, auto, dear = (
        ran(["eval", names[0], *views, "--split", "test", "--json"]).document
        for views in ([], ["--views", "2x3"], ["--views", "auto", "--set", "budget=0.0625"], ["--views", "auto", "--set", "budget=0.5"])
    )
    assert [found["views"] for found in (one, six, auto, dear)] == ["1x1", "2x3", "1x3", "1x1"]
    assert six["clips"] == one["clips"] == 2
    assert six["macs_a_view"] == one["macs_a_view"] > 0
    assert six["macs_a_video"] == 6 * one["macs_a_view"]
    assert "\n3 views: 3 x " in ran(["eval", names[0], "--views", "1x3", "--split", "test"]).out
    assert "at most 2 clips" in one_line(ran(["eval", names[0], "--views", "3x1"]), 2)
    assert "repeats some" in one_line(ran(["train", "joint", "--data", "./data/", *TINY, "--temporal-scales", "0.25"]), 2)


@pytest.mark.parametrize(("macs", "whole", "crops"), [(90, 90, 1), (31, 90, 1), (30, 90, 3), (20, 90, 3), (None, 90, 1), (30, None, 1)])
def test_three_crops_where_they_cost_no_more_than_one_whole_view(macs: int | None, whole: int | None, crops: int) -> None:
    assert affordable(macs, whole, Views(clips=2, crops=3)) == Views(crops=crops)
    assert affordable(macs, whole, Views()) == Views()


def test_a_long_training_tells_a_percent_once_and_each_part_from_its_first_step_to_its_last(capsys: pytest.CaptureFixture[str]) -> None:
    for tell, lines in ((_progress(least_s=0), 101), (_progress(least_s=3600), 2)):
        for part in ("start", "own"):
            for step in range(1, 1001):
                tell(step / 1000, part)
            told = capsys.readouterr().err.splitlines()
            assert len(told) == lines
            assert told[0] == f"   0% {part}" and told[-1] == f" 100% {part}"
