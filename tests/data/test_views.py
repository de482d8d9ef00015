"""What of a video a view or a training clip shows: places in segments, windows, crops."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vitgs.data import open_data, sampling, transforms
from vitgs.data.folder import VideoFolder
from vitgs.errors import UsageError
from vitgs.record import Views


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frame t of 8 is of grey 20 + 25 t, and 10 brighter in class b."""
    monkeypatch.setenv("VITGS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val", "test"):
        for offset, label in enumerate("ab"):
            for n in range(3):
                path = tmp_path / "data" / split / label / f"{n}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                with av.open(str(path), "w") as container:
                    stream = container.add_stream("mpeg4", rate=10)
                    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 2_000_000
                    for t in range(8):
                        pixels = np.full((32, 48, 3), 20 + 25 * t + 10 * offset, dtype=np.uint8)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    container.mux(stream.encode())
    return tmp_path / "data"


def _times(source: VideoFolder) -> set[tuple[int, ...]]:
    """The frames that its evaluation clips show."""
    (clips,) = source.evaluation()
    grey_BT = (clips.clip_BTCHW.mean((2, 3, 4)) * 0.5 + 0.5) * 255 - 10 * clips.label_B[:, None]
    return {tuple(row) for row in ((grey_BT - 20) / 25).round().int().tolist()}


def test_clips_of_a_video_share_no_frame(data: Path) -> None:
    source = VideoFolder(data, "val", frames=4, height=16, width=16, normal="half")
    assert source.most_views == Views(clips=2, crops=3)
    assert [_times(view) for view in source.seen(Views(clips=2))] == [{(0, 2, 4, 6)}, {(1, 3, 5, 7)}]
    (one,) = source.seen(Views())
    assert _times(one) == _times(source) == {(1, 3, 5, 7)}


def test_views_show_the_same_videos_in_the_same_order(data: Path) -> None:
    source = VideoFolder(data, "val", frames=2, height=16, width=24)
    views = source.seen(Views(clips=2, crops=3))
    assert len(views) == 6
    parts = [next(iter(view.evaluation(4, seed=1))) for view in views]
    assert all(torch.equal(part.label_B, parts[0].label_B) and torch.equal(part.group_B, parts[0].group_B) for part in parts)
    (plain,) = source.evaluation(4, seed=1)
    (one,) = source.seen(Views())[0].evaluation(4, seed=1)
    assert torch.equal(plain.clip_BTCHW, one.clip_BTCHW)


def test_each_view_shows_its_own_crop_of_its_own_frames(data: Path) -> None:
    source = VideoFolder(data, "val", frames=2, height=16, width=24, normal="half")
    count, stored, height, width, channels = source.frames.frame_NFHWC.shape
    place_FW = 50 * np.arange(stored)[:, None] + np.arange(width)
    ramp_NFHWC = np.broadcast_to(place_FW[None, :, None, :, None], (count, stored, height, width, channels)).astype(np.uint8)
    source.__dict__["frames"] = dataclasses.replace(source.frames, frame_NFHWC=ramp_NFHWC)
    found = []
    for view in source.seen(Views(clips=2, crops=3)):
        (clips,) = view.evaluation()
        place_BTW = ((clips.clip_BTCHW[:, :, 0, 0] * 0.5 + 0.5) * 255).round().int()
        assert (place_BTW == place_BTW[:1]).all() and (place_BTW.diff(dim=2) == 1).all()
        found.append([divmod(first, 50) for first in place_BTW[0, :, 0].tolist()])
    free = width - 24
    assert free > height - 16
    assert found == [[(t, first) for t in times] for times in ((0, 2), (1, 3)) for first in (0, free // 2, free)]


@pytest.mark.parametrize(
    ("views", "says"),
    [
        (Views(clips=3), "at most 2 clips of a video share no frame; given: 3x1; use 2x1"),
        (Views(clips=2, crops=2), "has 1 or 3 crops; given: 2x2; use 2x3"),
        (Views(crops=5), "has 1 or 3 crops"),
    ],
)
def test_views_that_a_video_does_not_have(data: Path, views: Views, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        VideoFolder(data, "val", frames=2, height=16, width=16).seen(views)
    assert "\n" not in str(caught.value)


def test_places_in_a_segment() -> None:
    assert sampling.uniform(16, 4, 0, 1).tolist() == sampling.uniform(16, 4).tolist() == [2, 6, 10, 14]
    assert [sampling.uniform(16, 4, i, 2).tolist() for i in range(2)] == [[1, 5, 9, 13], [3, 7, 11, 15]]
    assert sorted(np.concatenate([sampling.uniform(16, 4, i, 4) for i in range(4)]).tolist()) == list(range(16))


@pytest.mark.parametrize(("height", "width", "along"), [(16, 16, 2), (16, 30, 2), (30, 16, 1)])
def test_crops_lie_along_the_longer_free_margin(height: int, width: int, along: int) -> None:
    shape = (2, transforms.margin(height), transforms.margin(width), 3)
    place_THWC = np.broadcast_to(np.arange(shape[along], dtype=np.uint8).reshape([-1 if axis == along else 1 for axis in range(4)]), shape)
    first = [int(transforms.one_of_three(place_THWC, height, width, place).min()) for place in range(3)]
    free = shape[along] - (height if along == 1 else width)
    assert first == [0, free // 2, free]
    assert all(transforms.one_of_three(place_THWC, height, width, place).shape == (2, height, width, 3) for place in range(3))
    assert np.array_equal(transforms.one_of_three(place_THWC, height, width, 1), transforms.centre_crop(place_THWC, height, width))


def test_a_window_of_the_video() -> None:
    rng = np.random.default_rng(0)
    for scale, length in ((0.75, 12), (0.5, 8)):
        drawn = np.stack([sampling.scaled(16, 8, scale, rng) for _ in range(300)])
        assert (np.diff(drawn) > 0).all()
        assert (np.ptp(drawn, axis=1) < length).all()
        assert drawn.min() == 0 and drawn.max() == 15
    assert {int(row[0]) for row in drawn} == set(range(9))  # half the video starts anywhere in its first half


def test_the_whole_video_takes_the_random_numbers_of_segments() -> None:
    ours, plain = np.random.default_rng(3), np.random.default_rng(3)
    for total, frames in ((16, 8), (10, 4), (3, 5)):
        assert np.array_equal(sampling.scaled(total, frames, 1.0, ours), sampling.segments(total, frames, plain))
    assert ours.random() == plain.random()


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -0.5), (1.5,), (float("nan"),)])
def test_scales_are_shares(scales: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        sampling.check_scales(scales)


def test_training_clips_at_several_scales(data: Path) -> None:
    def folder(*scales: float) -> VideoFolder:
        return VideoFolder(data, "train", frames=4, height=16, width=16, normal="half", flip=False, scales=scales)

    whole, multi = folder(1.0), folder(1.0, 0.75, 0.5)
    plain = open_data(str(data), "train", frames=4, height=16, width=16)
    assert whole.describe()["sampling"] == plain.describe()["sampling"]
    assert whole.describe()["sampling"]["train"] == "random frame of each segment"
    assert multi.describe()["sampling"]["train"].endswith("of a random window, as long as the video times one of 1, 0.75, 0.5")
    assert torch.equal(multi.batch(6, 0).clip_BTCHW, multi.batch(6, 0).clip_BTCHW)
    assert not torch.equal(multi.batch(6, 0).clip_BTCHW, whole.batch(6, 0).clip_BTCHW)
    half = folder(0.5).batch(64, 0)
    time_BT = (((half.clip_BTCHW.mean((2, 3, 4)) * 0.5 + 0.5) * 255 - 10 * half.label_B[:, None] - 20) / 25).round()
    assert (time_BT.diff(dim=1) == 1).all()  # 4 frames of a window of 4
    assert set(time_BT[:, 0].int().tolist()) == set(range(5))
    assert list(map(len, multi.evaluation())) == list(map(len, whole.evaluation()))
    assert all(torch.equal(a.clip_BTCHW, b.clip_BTCHW) for a, b in zip(multi.evaluation(), whole.evaluation(), strict=True))
    with pytest.raises(UsageError, match=r"less than 1/2 of a video repeats some; given: 0\.25"):
        folder(1.0, 0.25)


def test_views_are_counted() -> None:
    assert (str(Views(clips=2, crops=3)), Views(clips=2, crops=3).count, str(Views())) == ("2x3", 6, "1x1")
    for part in ("clips", "crops"):
        with pytest.raises(UsageError, match="at least one clip of one crop"):
            dataclasses.replace(Views(), **{part: 0})
