"""Rows survive what happens to files: cut lines, full disks, several writers; and what can't be read is an error that names its place."""

from __future__ import annotations

import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from vitgs.errors import BrokenOff, UsageError
from vitgs.record import Clip, Job, Record, record_line
from vitgs.store.frame import to_frame
from vitgs.store.records import CUT_MARK, append, read, read_all


def row(seed: int = 0, attempt: int = 1) -> Record:
    job = Job(
        kind="eval", suite="s", profile="p", system="joint", size="test", style="digits", clip=Clip(frames=2, height=16, width=16, classes=3),
        knobs={"frames": 0}, run={"budget": 0.5}, seed=seed, data="digits:moment", options={"split": "val"},
    )  # fmt: skip
    result = {"top1": {"value": 0.5, "low": 0.4, "high": 0.6, "samples": []}, "clips": 10, "correct1": ["AA=="], "cost": {"macs": 7}}
    return Record(job=job, attempt=attempt, status="measured", flags=("unstable",), result=result, code_version="v")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "machine" / "suite.jsonl"
    assert read(file) == []
    written = [row(seed) for seed in range(3)]
    for record in written:
        append(file, record)
    assert read(file) == written
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [record.id for record in written]


@pytest.mark.parametrize("length", [1, 40, -1])
def test_a_cut_last_line_is_reported_and_never_touched(tmp_path: Path, length: int) -> None:
    file = tmp_path / "s.jsonl"
    append(file, row(0))
    cut = record_line(row(1))[:length]
    with file.open("a") as stream:
        stream.write(cut)
    before = file.read_text()
    contents = read_all(file)
    assert (contents.records, contents.cut) == ((row(0),), (f"{file}:2",))
    append(file, row(2))
    assert file.read_text() == f"{before}{CUT_MARK}\n{record_line(row(2))}\n"
    contents = read_all(file)
    assert (contents.records, contents.cut) == ((row(0), row(2)), (f"{file}:2",))


def test_a_line_that_lacks_only_its_end_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(record_line(row(0)))
    assert read_all(file).cut == ()
    append(file, row(1))
    assert read(file) == [row(0), row(1)]


def test_a_garbled_line_elsewhere_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(f"{record_line(row(0))}\n{record_line(row(1))[:50]}\n{record_line(row(2))}\n")
    with pytest.raises(UsageError, match=r"s\.jsonl:2"):
        read(file)
    file.write_text('{"format": 1}\n')
    with pytest.raises(UsageError, match=r"KeyError at .*s\.jsonl:1"):
        read(file)


def test_a_newer_format_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(record_line(row(0)) + "\n" + record_line(row(1)).replace('"format":1', '"format":9') + "\n")
    with pytest.raises(UsageError, match=r"given: 9 at .*s\.jsonl:2; upgrade"):
        read(file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_breaks_off(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.symlink_to("/dev/full")
    with pytest.raises(BrokenOff, match="free space, then run the same command again") as caught:
        append(file, row())
    assert caught.value.exit_code == 5


def _append_under_limit(file: str, limit_bytes: int, answer: multiprocessing.SimpleQueue[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        append(Path(file), row(1))
    except BrokenOff as error:
        answer.put(str(error))


def test_a_row_that_fits_only_partly_leaves_the_others_whole(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    append(file, row(0))
    size = file.stat().st_size
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    process = context.Process(target=_append_under_limit, args=(str(file), size + 100, answer))
    process.start()
    process.join()
    assert "free space" in answer.get()
    assert read_all(file).records == (row(0),)
    append(file, row(1))
    assert read(file) == [row(0), row(1)]


def _append_many(file: str, first: int) -> None:
    for seed in range(first, first + 10):
        append(Path(file), row(seed))


def test_several_writers_keep_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(str(file), 100 * i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(record.job.seed for record in read(file)) == [100 * i + k for i in range(3) for k in range(10)]


def test_the_table_has_a_column_for_each_knob_and_number() -> None:
    table = to_frame([row(0), row(1)])
    first = table.iloc[0]
    assert list(table["seed"]) == [0, 1]
    assert (first["knob.frames"], first["run.budget"], first["split"], first["flags"]) == (0, 0.5, "val", "unstable")
    assert (first["top1"], first["top1.low"], first["top1.high"], first["cost.macs"]) == (0.5, 0.4, 0.6, 7)
