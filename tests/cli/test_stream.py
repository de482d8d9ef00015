"""`stream`: accuracy chunk after chunk beside global selection, one video's answers as it comes in, and what can't be streamed in one line."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.cli.command import Ran, one_line
from vitgs.cli.stream import _video
from vitgs.data import sampling, transforms
from vitgs.data.video import decode
from vitgs.record import Clip

TINY = ["--data", "digits:moment", "--size", "test", "--steps", "1", "--batch", "2", "--out", "out", "--json"]


@pytest.fixture
def checkpoint(ran: Ran) -> str:
    """A model hardly trained."""
    done = ran(["train", "graphsampler", *TINY])
    assert done.code == 0, done.err
    return str(done.document["checkpoint"])


def film(path: Path, frames: int) -> None:
    """A small video of one colour a frame."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            pixels = np.full((48, 64, 3), rng.integers(0, 256, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_accuracy_beside_global_selection(checkpoint: str, ran: Ran) -> None:
    found = ran(["stream", checkpoint, "--clips", "40", "--chunk-frames", "2", "--budget", "0.5", "--json"]).document
    assert (found["clips"], found["split"], found["grid"]) == (40, "val", {"chunk_frames": 2, "budget": 0.5, "past_chunks": 4})
    lost, streamed, whole = (found[f"{name}_top1"] for name in ("lost", "streamed", "global"))
    assert lost["value"] == pytest.approx(whole["value"] - streamed["value"])
    assert lost["low"] <= lost["value"] <= lost["high"]
    assert whole == ran(["eval", checkpoint, "--clips", "40", "--set", "budget=0.5", "--json"]).document["top1"]
    done = ran(["stream", checkpoint, "--clips", "40", "--chunk-frames", "8", "--split", "test"])
    assert (done.code, done.err) == (0, "")
    assert "40 test clips of digits:moment, 8 frames, budget 0.25" in done.out
    assert done.out.endswith("lost by streaming: 0 [0, 0]\n")


def test_the_answer_as_a_made_clip_comes_in(checkpoint: str, ran: Ran) -> None:
    found = ran(["stream", checkpoint, "digits:moment:3", "--chunk-frames", "3", "--json"]).document
    assert [chunk["frames"] for chunk in found["chunks"]] == [3, 6, 8]
    assert all(0 < chunk["probability"] <= 1 and chunk["answer"] in "0123456789" for chunk in found["chunks"])
    assert "after 8 frames: " in ran(["stream", checkpoint, "digits:moment"]).out.splitlines()[-1]


def test_the_answer_as_a_video_comes_in(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", 13)
    found = ran(["stream", checkpoint, "clip.mp4", "--json"]).document
    assert [chunk["frames"] for chunk in found["chunks"]] == [4, 8, 12, 13]
    assert [c["frames"] for c in ran(["stream", checkpoint, "clip.mp4", "--every", "3", "--json"]).document["chunks"]] == [4, 5]


def test_a_video_is_cut_as_the_decoder_gives_it(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", 13)
    shape = Clip(frames=8, height=16, width=24, classes=2)
    found = torch.cat(list(_video(str(tmp_path / "clip.mp4"), shape, 4, 1)), dim=1)
    stored = decode(tmp_path / "clip.mp4", lambda total: sampling.uniform(total, total), transforms.margin(16), transforms.margin(24))
    assert torch.equal(found, transforms.normalised([transforms.centre_crop(stored.frame_THWC, 16, 24)], "imagenet"))
    third = torch.cat(list(_video(str(tmp_path / "clip.mp4"), shape, 2, 3)), dim=1)
    assert torch.equal(third, found[:, ::3])


def test_what_can_not_be_streamed_is_refused_in_one_line(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes", encoding="utf-8")
    for arguments, says, code in (
        (["--chunk-frames", "0"], "a chunk has at least one frame; given: 0", 2),
        (["--chunk-frames", "16"], "trained on 8", 2),
        (["--chunk-frames", "2", "--budget", "0.02"], "at least one token of a chunk", 2),
        (["--budget", "2"], "budget must be", 2),
        (["--past-chunks", "-1"], "earlier chunks", 2),
        (["--data", "digits:order"], "the model knows 10 classes", 2),
        (["--split", "all"], "a split must be", 2),
        (["--clips", "0"], "--clips must be above 0", 2),
        (["digits:moment:1", "--every", "0"], "--every must be above 0", 2),
        (["digits:moment:1", "--data", "digits:moment"], "one clip or a data set", 2),
        (["digits:moment:x"], "a number from 0 to 999", 2),
        (["digits:order"], "the model knows 10 classes", 2),
        (["nowhere.mp4"], "a video file", 2),
        (["notes.mp4"], "can be decoded", 3),
    ):
        assert says in one_line(ran(["stream", checkpoint, *arguments]), code)
    assert "with its .json beside it" in one_line(ran(["stream", "none.safetensors"]), 2)
    other = ran(["train", "joint", *TINY]).document["checkpoint"]
    assert "stream needs graphsampler" in one_line(ran(["stream", other]), 2)
