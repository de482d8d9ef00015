"""Which videos a `<split>/<class>/*.mp4` folder has, and how splits that it lacks are held out of train. Only names and sizes are looked at.

val is for choosing and test for reporting. So, without a val folder a tenth of train is held out as val; without a test folder the val folder
serves as test, and val is held out of train; with train alone, val and test are both held out. What is held out is decided by a hash of the group's
name and goes by whole groups (clips cut from one recording), class by class, so that every class is in every split where it has groups enough.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from vitgs.data.source import Split
from vitgs.data.video import EXTENSIONS
from vitgs.errors import NothingToWorkOn, UsageError

HELD_OUT = 0.1
_UCF = re.compile(r"^v_(?P<group>.+_g\d+)_c\d+$")
_LAYOUT = "use <folder>/<split>/<class>/<video>, with splits train, val and test"


@dataclass(frozen=True, kw_only=True)
class Video:
    """One file: its path below the folder, class, group of origin, the split it serves in, and its size."""

    path: str
    label: str
    group: str
    split: Split
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All videos of a folder by path, classes and groups in sorted order, and in words where the splits come from."""

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    rule: str


def listing(folder: Path) -> Listing:
    """Lists a folder; an unusable one is a `UsageError`, one without videos `NothingToWorkOn`."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing there"
        raise UsageError("a data set of videos is a folder", given=f"{folder} ({what})", remedy=_LAYOUT)
    groups = _manifest(folder)
    found: dict[Split, list[Video]] = {
        "train": _videos(folder, "train", groups),
        "val": _videos(folder, "val", groups),
        "test": _videos(folder, "test", groups),
    }
    if not any(found.values()):
        raise NothingToWorkOn(f"a data set has videos ({', '.join(sorted(EXTENSIONS))})", given=f"none in {folder}", remedy=_LAYOUT)
    if not found["train"]:
        have = ", ".join(name for name, videos in found.items() if videos)
        raise UsageError(
            "a data set of videos has a train split", given=f"only {have} in {folder}", remedy="name the folder with the training videos 'train'"
        )
    videos, rule = _completed(found)
    classes = tuple(sorted({video.label for video in videos}))
    if len(classes) < 2:
        raise UsageError("a data set has at least two classes", given=f"only {classes[0]} in {folder}", remedy=_LAYOUT)
    unseen = sorted(set(classes) - {video.label for video in videos if video.split == "train"})
    if unseen:
        raise UsageError(
            "every class has videos to train on",
            given=f"none for {', '.join(unseen)} in {folder}/train",
            remedy="add some, or remove the class from val and test",
        )
    ordered = tuple(sorted(videos, key=lambda video: video.path))
    return Listing(videos=ordered, classes=classes, groups=tuple(sorted({video.group for video in videos})), rule=rule)


def _videos(folder: Path, split: Split, groups: dict[str, str]) -> list[Video]:
    found = []
    for path in sorted((folder / split).glob("*/*")):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith(".") or not path.is_file():
            continue
        name, label, stat = path.relative_to(folder).as_posix(), path.parent.name, path.stat()
        ucf = _UCF.match(path.stem)
        group = groups.get(name) or (ucf["group"] if ucf else f"{label}/{path.stem}")
        found.append(Video(path=name, label=label, group=group, split=split, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns))
    return found


def _manifest(folder: Path) -> dict[str, str]:
    """Path -> group from an optional `manifest.csv` with the columns `path` and `group` (or `subject`)."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        column = next((name for name in ("group", "subject") if name in (rows.fieldnames or ())), None)
        return {row["path"]: row[column] for row in rows if row.get("path") and row.get(column)} if column else {}


def _completed(found: dict[Split, list[Video]]) -> tuple[list[Video], str]:
    train, val, test = found["train"], found["val"], found["test"]
    if val and test:
        return train + val + test, "train, val and test as in the folder"
    rest, held = _held_out(train, "val")
    if test:
        return rest + held + test, "val held out of train by hash of the group's name"
    if val:
        return rest + held + [
            replace(video, split="test") for video in val
        ], "val held out of train by hash of the group's name; the folder's val serves as test"
    rest, more = _held_out(rest, "test")
    return rest + held + more, "val and test held out of train by hash of the group's name"


def _held_out(train: list[Video], split: Split) -> tuple[list[Video], list[Video]]:
    total = Counter(video.label for video in train)
    by_group: dict[str, Counter[str]] = {}
    for video in train:
        by_group.setdefault(video.group, Counter())[video.label] += 1
    held: Counter[str] = Counter()
    chosen: set[str] = set()
    for group in sorted(by_group, key=lambda name: hashlib.sha256(f"{split}:{name}".encode()).hexdigest()):
        labels = by_group[group]
        wanted = any(held[label] < HELD_OUT * total[label] for label in labels)
        if wanted and all(held[label] + count < total[label] for label, count in labels.items()):
            chosen.add(group)
            held.update(labels)
    return [video for video in train if video.group not in chosen], [replace(video, split=split) for video in train if video.group in chosen]
