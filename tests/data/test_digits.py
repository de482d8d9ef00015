"""The embedded data: same seed, same bytes; no image in two splits; and clips that hold exactly what their label says, by the stated ceilings."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitgs.data.digits import Digits, Stills, named_task, pixels
from vitgs.data.digits_images import COUNTS, images
from vitgs.data.digits_tasks import PAINTERS, direction_paths, link_offsets, start_pairs
from vitgs.data.source import SPLITS, Clips, Split
from vitgs.data.task import DIRECTIONS, STILL_SHARES, STILLS, TASKS, Task
from vitgs.errors import UsageError
from vitgs.record import Views

ALL = [*TASKS.values(), STILLS]


def _quiet(task: Task) -> Task:
    return replace(task, noise=0.0, fragments=0, scrambled=0)


def _hash(clips: Clips) -> str:
    parts = (clips.clip_BTCHW.contiguous(), clips.label_B, clips.group_B)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def _bag_accuracy(outcomes: Iterable[tuple[tuple[Hashable, ...], int]]) -> float:
    """Accuracy of the best guess from the unordered bag of frames, over equally likely (frames in order, label)."""
    seen: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for frames, label in outcomes:
        seen[frozenset(Counter(frames).items())][label] += 1
    return sum(max(labels.values()) for labels in seen.values()) / sum(sum(labels.values()) for labels in seen.values())


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_same_seed_same_bytes(task: Task) -> None:
    first, again, other = Digits(task, "train"), Digits(task, "train"), Digits(task, "val")
    assert _hash(first.batch(24, 5)) == _hash(again.batch(24, 5))
    assert _hash(first.batch(24, 5)) != _hash(first.batch(24, 6))
    assert _hash(first.batch(24, 5)) != _hash(other.batch(24, 5))
    assert [_hash(part) for part in first.evaluation(60)] == [_hash(part) for part in again.evaluation(60)]


def test_same_bytes_in_a_new_process() -> None:
    code = (
        "import hashlib\nfrom vitgs.data import open_data\n"
        "b = open_data('digits:order', 'val').batch(8, 3)\n"
        "print(hashlib.sha256(b.clip_BTCHW.contiguous().numpy().tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert out == hashlib.sha256(Digits("order", "val").batch(8, 3).clip_BTCHW.contiguous().numpy().tobytes()).hexdigest()


def test_splits_share_no_image() -> None:
    parts = {split: set(images(split).index_N.tolist()) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == COUNTS == {"train": 997, "val": 300, "test": 500}
    assert len(set.union(*parts.values())) == 1797
    content = {split: {image.tobytes() for image in images(split).pixels_Nhw} for split in SPLITS}
    assert all(not content[a] & content[b] for a, b in itertools.combinations(SPLITS, 2))
    for split in SPLITS:
        share = np.bincount(images(split).label_N, minlength=10) / len(parts[split])
        assert share.min() > 0.09
        assert share.max() < 0.11


@pytest.mark.parametrize("split", SPLITS)
def test_groups_are_images_of_the_split_with_the_labels_digit(split: Split) -> None:
    part = images(split)
    label_of = dict(zip(part.index_N.tolist(), part.label_N.tolist(), strict=True))
    for name, labels_per_digit in (("appearance", 1), ("moment", 1), ("stills", STILL_SHARES**2)):
        clips = Digits(name, split).batch(50, 0)
        assert [label_of[group] for group in clips.group_B.tolist()] == (clips.label_B // labels_per_digit).tolist()
    source = Digits("link", split)
    clips = source.batch(50, 0)
    assert [label_of[group] for group in clips.group_B.tolist()] == (clips.label_B // 2).tolist()


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
@pytest.mark.parametrize("frames", [8, 16])
def test_shape_type_and_balance(task: Task, frames: int) -> None:
    task = task if task.name == "stills" else replace(task, frames=frames)
    source = Digits(task, "train")
    clips = source.batch(3 * source.clip.class_count, 1)
    assert clips.clip_BTCHW.shape == (len(clips), *source.clip.shape)
    assert clips.clip_BTCHW.dtype == torch.float32
    assert clips.label_B.dtype == clips.group_B.dtype == torch.int64
    assert torch.equal(clips.clip_BTCHW[:, :, 0], clips.clip_BTCHW[:, :, 2])
    assert np.bincount(clips.label_B).tolist() == [3] * source.clip.class_count
    assert abs(float(clips.clip_BTCHW.mean())) < 0.3
    assert 0.5 < float(clips.clip_BTCHW.std()) < 1.2
    assert source.clip.class_names is not None
    assert len(set(source.clip.class_names)) == source.clip.class_count
    assert source.describe()["digest"] == task.digest


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_batches_of_one_and_clutter_that_never_comes(task: Task) -> None:
    source = Digits(replace(task, scrambled_share=0.0), "test")
    assert all(torch.isfinite(source.batch(1, seed).clip_BTCHW).all() for seed in range(6))


def test_evaluation_is_a_prefix_and_balanced() -> None:
    source = Digits("order", "test")
    short, long = list(source.evaluation(50)), list(source.evaluation(120))
    assert [sum(map(len, parts)) for parts in (short, long)] == [50, 120]
    assert torch.equal(torch.cat([part.clip_BTCHW for part in short]), torch.cat([part.clip_BTCHW for part in long])[:50])
    assert set(np.bincount(torch.cat([part.label_B for part in long]))) == {10}
    assert _hash(short[0]) != _hash(next(source.evaluation(50, seed=1)))


def test_digest_follows_every_setting() -> None:
    task = TASKS["moment"]
    changed = [replace(task, noise=0.3), replace(task, grid_px=4), replace(task, frames=16), replace(task, flash_frames=1), TASKS["appearance"]]
    assert len({task.digest, *(other.digest for other in changed)}) == 6


def test_direction_goes_from_edge_to_edge_and_never_wraps() -> None:
    task = TASKS["direction"]
    label_B = np.repeat(np.arange(8), 30)
    y_BT, x_BT = direction_paths(task, label_B, np.random.default_rng(0))
    for label, y_T, x_T in zip(label_B, y_BT, x_BT, strict=True):
        dy, dx = np.sign(y_T[-1] - y_T[0]), np.sign(x_T[-1] - x_T[0])
        said = DIRECTIONS[label].split()
        assert (dy, dx) == (("down" in said) - ("up" in said), ("right" in said) - ("left" in said))
        for path_T, sign in ((y_T, dy), (x_T, dx)):
            assert set(path_T % task.grid_px) == {0}
            assert (np.diff(path_T) * sign >= 0).all()
            assert {path_T[0], path_T[-1]} == {0, 16} if sign else len(set(path_T)) == 1


def test_direction_ceiling_is_what_a_bag_oracle_reaches() -> None:
    for frames in (7, 8, 16):
        task = replace(TASKS["direction"], frames=frames)
        label_B = np.repeat(np.arange(8), 400)
        paths = direction_paths(task, label_B, np.random.default_rng(1))
        # Each place along the still axis once for each direction, as an exact enumeration needs.
        unique = {(int(label), tuple(zip(y_T, x_T, strict=True))) for label, y_T, x_T in zip(label_B, *paths, strict=True)}
        weight = {label: sum(other == label for other, _ in unique) for label in range(8)}
        outcomes = [(path, label) for label, path in unique for _ in range(20 // weight[label])]
        assert _bag_accuracy(outcomes) == task.frame_average_ceiling == 0.5


@pytest.mark.parametrize("frames", [8, 12, 16])
def test_order_keeps_the_gap_and_its_ceiling(frames: int) -> None:
    task = replace(TASKS["order"], frames=frames)
    starts = start_pairs(task)
    assert ((starts[:, 1] - starts[:, 0] - task.flash_frames) >= frames // 4).all()
    assert starts.min() == 0
    assert starts.max() == frames - task.flash_frames
    outcomes = []
    for (first, second), (label, pair) in itertools.product(starts.tolist(), enumerate(task.pairs)):
        clip: list[int | None] = [None] * frames
        for start, identity in zip((first, second), pair, strict=True):
            clip[start : start + task.flash_frames] = [identity] * task.flash_frames
        outcomes.append((tuple(clip), label))
    assert _bag_accuracy(outcomes) == task.frame_average_ceiling == 0.5


def test_events_last_as_long_as_they_should() -> None:
    for name, events in (("moment", 1), ("order", 2)):
        task = _quiet(replace(TASKS[name], frames=16))
        clips = Digits(task, "train").batch(60, 0)
        shown_BT = (pixels(clips.clip_BTCHW)[:, :, 0] > 0.1).flatten(2).any(-1)
        assert shown_BT.sum(1).tolist() == [events * task.flash_frames] * 60
        assert (shown_BT.diff(dim=1, prepend=torch.zeros(60, 1, dtype=torch.bool)) & shown_BT).sum(1).tolist() == [events] * 60


HARDER_LINK = replace(TASKS["link"], objects=3, identities=10)


@pytest.mark.parametrize("link", [TASKS["link"], HARDER_LINK], ids=["two digits", "three digits"])
@pytest.mark.parametrize("frames", [8, 16])
def test_link_geometry(frames: int, link: Task) -> None:
    task = _quiet(replace(link, frames=frames))
    clips = Digits(task, "train").batch(60, 0)
    cells = (pixels(clips.clip_BTCHW)[:, :, 0] > 0.3).reshape(60, frames, 4, 8, 4, 8).any(5).any(3)  # B, T, row, column
    assert (cells.sum((2, 3)) == task.objects).all()
    assert (cells.sum(3) <= 1).all()
    for label, cells_TYX in zip(clips.label_B.tolist(), cells, strict=True):
        column_TO = torch.stack([row_TX.int().argmax(1) for row_TX in cells_TYX.unbind(1) if row_TX.any()], dim=1)
        moved_O = column_TO[-1] - column_TO[0]
        assert sorted(moved_O.abs().tolist()) == [0] * (task.objects - 1) + [2]
        assert (moved_O.sum() > 0) == (label % 2 == 1)
        assert (column_TO.max(0).values - column_TO.min(0).values).tolist() == [2] * task.objects
        assert column_TO.diff(dim=0).abs().max() == 1


@pytest.mark.parametrize("link", [TASKS["link"], HARDER_LINK], ids=["two digits", "three digits"])
@pytest.mark.parametrize("frames", [4, 6, 8, 10, 16, 32])
def test_link_ceilings(frames: int, link: Task) -> None:
    task = replace(link, frames=frames)
    there_T, back_T = link_offsets(task)
    assert Counter(there_T.tolist()) == Counter(back_T.tolist())
    assert back_T.tolist() == back_T[::-1].tolist()
    assert (task.travel_cells - there_T).tolist() == there_T[::-1].tolist()
    joint, apart = [], []
    senses, rooms = itertools.product((False, True), repeat=task.objects), itertools.product((0, 1), repeat=task.objects)
    for mover, rightward, room in itertools.product(range(task.objects), senses, rooms):
        offsets = [there_T if i == mover else back_T for i in range(task.objects)]
        columns = [room[i] + offset_T if rightward[i] else 3 - room[i] - offset_T for i, offset_T in enumerate(offsets)]
        label = 2 * mover + rightward[mover]
        joint.append((tuple(zip(*(column_T.tolist() for column_T in columns), strict=True)), label))
        apart.append((tuple(tuple(sorted(column_T.tolist())) for column_T in columns), label))
    assert _bag_accuracy(joint) <= 0.5 == task.frame_average_ceiling
    assert frames != 8 or _bag_accuracy(joint) == 0.5
    # Here "frames" are the histograms of the digits, tagged by position, so nothing is unordered that the model could tell apart.
    assert _bag_accuracy((tuple(enumerate(places)), label) for places, label in apart) == pytest.approx(task.marginal_ceiling)


def test_scrambled_digits_have_a_digits_pixels() -> None:
    part = images("train")
    scrambled = part.scrambled(200, 1, np.random.default_rng(0))
    known = {np.sort(image.ravel()).tobytes() for image in part.pixels_Nhw}
    whole = {image.tobytes() for image in part.pixels_Nhw}
    assert all(np.sort(image.ravel()).tobytes() in known for image in scrambled)
    assert not any(image.tobytes() in whole for image in scrambled)


def test_stills_hold_large_and_small_digits() -> None:
    clips = Stills("train", _quiet(STILLS)).batch(200, 0)
    extent = (pixels(clips.clip_BTCHW)[:, 0, 0] > 0.1).any(2).sum(1)
    assert clips.clip_BTCHW.shape == (200, 1, 3, 32, 32)
    assert 60 < int((extent <= 8).sum()) < 140
    assert int(extent.max()) <= 16


def test_a_stills_label_says_where_its_digit_is() -> None:
    clips = Stills("train", _quiet(STILLS)).batch(320, 0)
    bright = pixels(clips.clip_BTCHW)[:, 0, 0] > 0.05
    row, column = clips.label_B % STILL_SHARES**2 // STILL_SHARES, clips.label_B % STILL_SHARES
    for share, axis in ((row, 2), (column, 1)):
        lines = bright.any(axis)
        first = lines.int().argmax(1)
        assert float(torch.corrcoef(torch.stack([share.float(), first.float()]))[0, 1]) > 0.85


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("order", {"frames": 4}),
        ("moment", {"frames": 1}),
        ("link", {"frames": 7}),
        ("link", {"height": 16}),
        ("appearance", {"height": 8}),
        ("appearance", {"identities": 11}),
        ("moment", {"grid_px": 0}),
    ],
)
def test_impossible_settings_are_told(task: str, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="given"):
        Task(**{**asdict(TASKS[task]), **settings})


def test_unknown_names_are_told() -> None:
    with pytest.raises(UsageError, match="did you mean moment"):
        named_task("momnet")
    with pytest.raises(UsageError, match="known: test, train, val"):
        Digits("moment", "dev")
    with pytest.raises(UsageError, match="batch"):
        Digits("moment", "train").batch(0, 0)


def test_every_task_has_a_painter() -> None:
    assert set(PAINTERS) == {*TASKS, "stills"}


def test_there_is_one_view() -> None:
    source = Digits("order", "val")
    assert source.seen(Views()) == (source,)
    with pytest.raises(UsageError, match=r"digits:order has one view.*given: 1x3"):
        source.seen(Views(crops=3))
