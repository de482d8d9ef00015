"""`explain`: a picture or a document of one clip, of a made one or a video file as `eval` sees it; what can't be explained is refused in one line."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.cli.command import Ran, one_line
from vitgs.cli.explain import _video
from vitgs.data.digits import Digits
from vitgs.data.folder import VideoFolder
from vitgs.record import Clip

TINY = ["--size", "test", "--steps", "1", "--batch", "2", "--out", "out", "--json"]


@pytest.fixture
def checkpoint(ran: Ran) -> str:
    """A model hardly trained."""
    done = ran(["train", "graphsampler", "--data", "digits:moment", *TINY])
    assert done.code == 0, done.err
    return str(done.document["checkpoint"])


def test_a_picture_is_drawn(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    done = ran(["explain", checkpoint, "digits:moment"])
    assert (done.code, done.err) == (0, "")
    assert "kept 32 of 128 tokens" in done.out
    assert done.out.endswith("picture: explain.png\n")
    assert (tmp_path / "explain.png").read_bytes().startswith(b"\x89PNG")
    done = ran(["explain", checkpoint, "digits:moment:41", "--budget", "0.5", "--nodes", "0", "--out", "pictures/one.svg"])
    assert "kept 64 of 128 tokens" in done.out
    assert ">Graph<" not in (tmp_path / "pictures/one.svg").read_text(encoding="utf-8")


def test_all_of_it_as_data(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    found = ran(["explain", checkpoint, "digits:moment:42", "--json"]).document
    assert not (tmp_path / "explain.png").exists()
    *_, last = Digits("moment", "test").evaluation(43)
    assert (found["truth"], found["budget"], found["picture"]) == (str(int(last.label_B[-1])), 0.25, None)
    assert found["grid"] == {"frames": 8, "rows": 4, "columns": 4}
    assert sum(found["probability"].values()) == pytest.approx(1)
    assert found["probability"][found["answer"]] == max(found["probability"].values())
    assert len(found["kept"]) == 32
    utility = np.array(found["utility_by_frame_and_token"])
    assert utility.shape == (8, 16)
    kept = {t * 16 + y * 4 + x for t, y, x in found["kept"]}
    assert kept == set(np.argsort(-utility.ravel())[:32].tolist())
    listened = [sum(sum(e["weight_by_round"]) for e in found["edges"] if e["node"] == node) for node in range(32)]
    assert listened == pytest.approx([1.0] * 32, abs=1e-5), "one round, whose weights add up to 1"
    assert {e["kind"] for e in found["edges"]} <= {"self", "similar", "temporal", "both"}
    assert np.array(found["memory"]["write_gate_by_frame_and_slot"]).shape == (8, 2)
    assert len(found["chosen_nodes"]) == 3
    place = ",".join(map(str, found["kept"][5]))
    chosen = ran(["explain", checkpoint, "digits:moment:42", "--json", "--node", place, "--out", "a.pdf"]).document
    assert (chosen["chosen_nodes"], chosen["picture"]) == ([5], "a.pdf")
    assert (tmp_path / "a.pdf").is_file()
    dropped = next(f"{t},{y},{x}" for t in range(8) for y in range(4) for x in range(4) if [t, y, x] not in found["kept"])
    assert "--node must be a token that was kept" in one_line(ran(["explain", checkpoint, "digits:moment:42", "--node", dropped]), 2)


def test_a_model_without_graph_memory_and_utility_is_explained(ran: Ran) -> None:
    knobs = [word for knob in ("layers=0", "memory=0", "utility=none", "select=random") for word in ("--set", knob)]
    file = ran(["train", "graphsampler", "--data", "digits:moment", *TINY, *knobs]).document["checkpoint"]
    found = ran(["explain", file, "digits:moment", "--json", "--out", "a.png"]).document
    assert (found["edges"], found["memory"], found["utility_by_frame_and_token"]) == (None, None, None)


def test_what_can_not_be_explained_is_refused_in_one_line(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes", encoding="utf-8")
    for arguments, says, code in (
        (["digits:nothing"], "a digit task must be", 2),
        (["digits:moment:x"], "a number from 0 to 999", 2),
        (["digits:moment:1000"], "a number from 0 to 999", 2),
        (["digits:order"], "the model knows 10 classes", 2),
        (["nowhere.mp4"], "a video file", 2),
        (["notes.mp4"], "can be decoded", 3),
        (["digits:moment", "--budget", "2"], "budget must be", 2),
        (["digits:moment", "--out", "a.jpg"], ".png, .svg or .pdf", 2),
        (["digits:moment", "--nodes", "-1"], "--nodes must be", 2),
        (["digits:moment", "--node", "1,2"], "frame,row,column", 2),
        (["digits:moment", "--node", "9,0,0"], "frames with kept tokens", 2),
    ):
        assert says in one_line(ran(["explain", checkpoint, *arguments]), code)
    assert "with its .json beside it" in one_line(ran(["explain", "none.safetensors", "digits:moment"]), 2)
    other = ran(["train", "joint", "--data", "digits:moment", *TINY]).document["checkpoint"]
    assert "explain needs graphsampler" in one_line(ran(["explain", other, "digits:moment"]), 2)


def test_a_video_is_seen_as_eval_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITGS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in ("jump", "run"):
            path = tmp_path / "data" / split / label / "one.mp4"
            path.parent.mkdir(parents=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=10)
                stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                for _ in range(13):
                    pixels = np.full((32, 48, 3), rng.integers(0, 256, 3), dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
    source = VideoFolder(tmp_path / "data", "test", frames=4, height=16, width=24)
    (clips,) = source.evaluation()
    for label, clip_TCHW in zip(clips.label_B.tolist(), clips.clip_BTCHW, strict=True):
        file = tmp_path / "data/test" / source.clip.class_names[label] / "one.mp4"  # type: ignore[index]
        title, found_TCHW, frame_THWC, truth = _video(str(file), source.clip)
        assert (title, truth, frame_THWC.shape) == ("one.mp4", label, (4, 16, 24, 3))
        assert torch.equal(found_TCHW, clip_TCHW)
    elsewhere = tmp_path / "one.mp4"
    elsewhere.write_bytes(file.read_bytes())
    assert _video(str(elsewhere), Clip(frames=4, height=16, width=24, classes=2))[3] is None


def test_a_video_is_drawn(checkpoint: str, ran: Ran, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), dtype=np.uint8), format="rgb24")))
        container.mux(stream.encode())
    done = ran(["explain", checkpoint, "clip.mp4"])
    assert (done.code, done.err) == (0, "")
    assert "correct" not in done.out and "wrong" not in done.out
    assert (tmp_path / "explain.png").is_file()
