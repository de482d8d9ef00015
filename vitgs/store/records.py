"""The results files: one JSON object a line, append-only, on the disk before the job counts as done. They are the truth that a sweep resumes from.

A writer that is killed, or a disk that is full, can leave the last line cut. Such a line is not a row and is not touched: the next writer ends it
with CUT_MARK, so that every reader knows what it is. Any other line that can't be read is an error that names it, for it means that rows were lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitgs.errors import BrokenOff, UsageError
from vitgs.record import Record, record_from, record_line

CUT_MARK = " #cut"
GATE = "gate.jsonl"  # the gate's own file, which lies beside the rows and is none of them
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The rows of a file in their order, and the places (`file:line`) of lines that were cut while being written."""

    records: tuple[Record, ...] = ()
    cut: tuple[str, ...] = ()


def files(folder: Path) -> list[Path]:
    """The results files of a machine's folder; none where there is no folder."""
    return sorted(file for file in folder.glob("*.jsonl") if file.name != GATE)


def read(path: Path) -> list[Record]:
    """The rows of a file; none when there is no file."""
    return list(read_all(path).records)


def read_all(path: Path) -> Contents:
    """The rows, and which lines were cut."""
    if not path.is_file():
        return Contents()
    *lines, last = path.read_bytes().split(b"\n")
    records, cut = [], []
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        if line.endswith(CUT_MARK.encode()):
            cut.append(place)
        elif line.strip():
            records.append(_parsed(line, place))
    if last.strip():
        if _is_whole(last):
            records.append(_parsed(last, f"{path}:{len(lines) + 1}"))
        else:
            cut.append(f"{path}:{len(lines) + 1}")
    return Contents(records=tuple(records), cut=tuple(cut))


def append(path: Path, record: Record) -> None:
    """Adds a row and returns once it is on the disk. Several processes may do so at once. A full disk is `BrokenOff`; the rows stay whole."""
    line = record_line(record).encode() + b"\n"
    with no_room_is_known(path):
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write_whole(descriptor, _ending(descriptor) + line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(path.parent)


def write_beside(path: Path, text: str) -> None:
    """A small file beside the rows, whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with no_room_is_known(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def no_room_is_known(path: Path) -> Iterator[None]:
    """A full disk, a quota or a limit on files becomes the one-line error that says how to go on; so does a folder that can't be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            rule = "results must fit on the disk"
            raise BrokenOff(rule, given=f"{path}: {os.strerror(error.errno or 0)}", remedy="free space, then run the same command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            rule = "results must be writable"
            raise UsageError(rule, given=f"{path}: {os.strerror(error.errno or 0)}", remedy="give another folder with --out") from error
        raise


def _write_whole(descriptor: int, data: bytes) -> None:
    """One write in all but the rarest case. What a failed one left is taken back where that is possible: nobody has read it as a row."""
    before = os.fstat(descriptor).st_size
    rest = data
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def _ending(descriptor: int) -> bytes:
    """What has to come before the next row: nothing, or the end of a line that was cut."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return b""
    tail = b""
    while size and b"\n" not in tail:
        step = min(size, 65536)
        size -= step
        tail = os.pread(descriptor, step, size) + tail
    return b"\n" if _is_whole(tail.rpartition(b"\n")[2]) else CUT_MARK.encode() + b"\n"


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parsed(line: bytes, place: str) -> Record:
    try:
        data = json.loads(line)
        return record_from(data)
    except UsageError as error:
        raise UsageError(error.rule, given=f"{error.given} at {place}", remedy=error.remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "restore the file from a copy, or move that line out of it"
        raise UsageError("every line of a results file must be a record", given=f"{type(error).__name__} at {place}", remedy=remedy) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
