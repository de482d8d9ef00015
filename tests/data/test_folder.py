"""Folders of videos: splits held out by group, frames that are the ones asked for, and broken files that are told and never replaced."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vitgs.data import open_data, sampling
from vitgs.data.folder import VideoFolder
from vitgs.data.listing import listing
from vitgs.data.video import Undecodable, decode
from vitgs.errors import NothingToWorkOn, UsageError, VitgsError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITGS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _video(path: Path, frames: int = 6, *, height: int = 32, width: int = 48, first: int = 20, step: int = 30) -> None:
    """Frame t is of one grey, first + step x t, so that a decoded frame tells its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        for t in range(frames):
            pixels = np.full((height, width, 3), first + step * t, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _touch(folder: Path, split: str, label: str, names: list[str]) -> None:
    (folder / split / label).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / split / label / name).write_bytes(b"not read when listed")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for i, label in enumerate(("jump", "run")):
            for n in range(count):
                _video(folder / split / label / f"{label}{n}.mp4", first=20 + 30 * i)
    return folder


def test_clips_of_a_folder(data: Path) -> None:
    source = open_data(str(data), "train", frames=3, height=16, width=16)
    assert source.clip.class_names == ("jump", "run")
    assert source.counts == {"train": 6, "val": 2, "test": 2}
    clips = source.batch(4, 0)
    assert clips.clip_BTCHW.shape == (4, 3, 3, 16, 16)
    assert clips.clip_BTCHW.dtype == torch.float32
    assert torch.equal(clips.clip_BTCHW, source.batch(4, 0).clip_BTCHW)
    assert not torch.equal(source.batch(6, 0).label_B, source.batch(6, 1).label_B) or not torch.equal(clips.clip_BTCHW, source.batch(4, 1).clip_BTCHW)
    assert len(source.batch(9, 0)) == 9
    evaluated = list(source.evaluation())
    assert sorted(torch.cat([part.label_B for part in evaluated]).tolist()) == [0, 0, 0, 1, 1, 1]
    assert len(set(torch.cat([part.group_B for part in evaluated]).tolist())) == 6
    assert sum(map(len, source.evaluation(2))) == 2


def test_testing_takes_the_middle_frames_and_normalises(data: Path) -> None:
    source = VideoFolder(data, "test", frames=3, height=16, width=16, normal="half")
    (clips,) = source.evaluation()
    grey_BT = (clips.clip_BTCHW.mean((2, 3, 4)) * 0.5 + 0.5) * 255
    for label, grey_T in zip(clips.label_B.tolist(), grey_BT, strict=True):
        assert ((grey_T - (20 + 30 * label)) / 30).round().int().tolist() == [1, 3, 5]


def test_broken_files_are_left_out_and_listed(data: Path) -> None:
    whole = (data / "train/run/run0.mp4").read_bytes()
    (data / "train/run/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (data / "train/run/empty.mp4").write_bytes(b"")
    (data / "train/run/notes.mp4").write_text("these are notes")
    (data / "train/run/.hidden.mp4").write_text("not a video")
    (data / "train/run/readme.txt").write_text("not a video")
    source = VideoFolder(data, "train", frames=2, height=16, width=16)
    said = source.describe()
    assert [entry["video"] for entry in said["left_out"]] == ["train/run/cut.mp4", "train/run/empty.mp4", "train/run/notes.mp4"]
    assert all(entry["reason"] for entry in said["left_out"])
    assert said["warning"].startswith("3 of 9 videos can't be decoded, first train/run/cut.mp4")
    assert said["counts"]["train"] == 9
    assert said["decoded"] == sum(map(len, source.evaluation())) == 6


def test_a_damaged_frame_condemns_the_video(tmp_path: Path) -> None:
    _video(tmp_path / "sound.mp4", 4)
    with av.open(str(tmp_path / "silent.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(Undecodable, match="no video stream"):
        decode(tmp_path / "silent.mkv", lambda total: sampling.uniform(total, 2), 16, 16)
    decoded = decode(tmp_path / "sound.mp4", lambda total: sampling.uniform(total, 8), 16, 24)
    assert decoded.total == 4
    assert decoded.index_T.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert decoded.frame_THWC.shape == (8, 16, 24, 3)


def test_nothing_decodable(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            _touch(tmp_path / "d", split, label, ["x.mp4"])
    source = VideoFolder(tmp_path / "d", "val", frames=2, height=16, width=16)
    with pytest.raises(NothingToWorkOn, match="none of 2"):
        source.batch(1, 0)


def test_cache_is_used_and_follows_the_files(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_train() -> VideoFolder:
        return VideoFolder(data, "train", frames=2, height=16, width=16)

    before = open_train().batch(3, 0)
    assert [path.name for path in (cache / "videos").iterdir() if path.name.startswith(".")] == []
    with monkeypatch.context() as patch:
        patch.setattr("vitgs.data.frame_cache.decode", None)
        assert torch.equal(open_train().batch(3, 0).clip_BTCHW, before.clip_BTCHW)
    old = open_train().digest
    _video(data / "train/run/run0.mp4", frames=5)
    assert open_train().digest != old
    assert len(open_train().batch(3, 0)) == 3
    assert len(list((cache / "videos").iterdir())) == 2


@pytest.mark.parametrize(
    ("files", "error", "hint"),
    [
        ({}, UsageError, "is a folder"),
        ({("train", "a"): ["x.txt"]}, NothingToWorkOn, "has videos"),
        ({("train", "a"): ["x.mp4", "y.avi"]}, UsageError, "two classes"),
        ({("val", "a"): ["x.mp4"], ("val", "b"): ["x.mp4"]}, UsageError, "train split"),
        ({("train", "a"): ["x.mp4"], ("train", "b"): ["x.mp4"], ("test", "c"): ["x.mp4"]}, UsageError, "to train on"),
        ({("train", "a"): ["x.mp4"], ("train", "b"): ["x.mp4"]}, NothingToWorkOn, "the val split has videos"),
    ],
)
def test_unusable_folders_are_told(tmp_path: Path, files: dict[tuple[str, str], list[str]], error: type[VitgsError], hint: str) -> None:
    for (split, label), found in files.items():
        _touch(tmp_path / "d", split, label, found)
    with pytest.raises(error, match=hint) as caught:
        VideoFolder(tmp_path / "d", "val", frames=2, height=16, width=16)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="a file"):
        open_data(str(tmp_path / "x.mp4"), "train")


def test_val_is_held_out_by_ucf_group_and_val_serves_as_test(tmp_path: Path) -> None:
    for label in ("Dive", "Row"):
        _touch(tmp_path, "train", label, [f"v_{label}_g{g:02}_c{c:02}.avi" for g in range(1, 19) for c in range(1, 5)])
        _touch(tmp_path, "val", label, [f"v_{label}_g{g:02}_c{c:02}.avi" for g in range(19, 26) for c in range(1, 5)])
    found = listing(tmp_path)
    groups = {split: {video.group for video in found.videos if video.split == split} for split in ("train", "val", "test")}
    assert not groups["train"] & groups["val"]
    assert all(video.path.startswith("val/") == (video.split == "test") for video in found.videos)
    for label in ("Dive", "Row"):
        held = sum(video.label == label and video.split == "val" for video in found.videos)
        assert 0.1 * 72 <= held < 0.1 * 72 + 4
    assert listing(tmp_path) == found
    assert "the folder's val serves as test" in found.rule


def test_train_alone_gives_three_splits(tmp_path: Path) -> None:
    for label in ("a", "b"):
        _touch(tmp_path, "train", label, [f"{n}.mp4" for n in range(30)])
    found = listing(tmp_path)
    for label in ("a", "b"):
        counts = [sum(v.split == split and v.label == label for v in found.videos) for split in ("train", "val", "test")]
        assert counts == [24, 3, 3]


def test_a_manifest_names_groups(tmp_path: Path) -> None:
    rows = ["path,class,subject"]
    for label in ("a", "b"):
        _touch(tmp_path, "train", label, [f"{n}.mp4" for n in range(12)])
        rows += [f"train/{label}/{n}.mp4,{label},person{n % 4}" for n in range(12)]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    found = listing(tmp_path)
    people = {split: {video.group for video in found.videos if video.split == split} for split in ("train", "val", "test")}
    assert [len(people[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert found.groups == ("person0", "person1", "person2", "person3")


def test_sampling() -> None:
    assert sampling.uniform(8, 4).tolist() == [1, 3, 5, 7]
    assert sampling.uniform(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.segments(10, 4, rng) for _ in range(200)])
    assert (np.diff(drawn) > 0).all()
    assert [sorted(set(column)) for column in drawn.T] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert (np.diff(sampling.segments(2, 5, rng)) >= 0).all()
    with pytest.raises(UsageError):
        sampling.uniform(0, 4)
