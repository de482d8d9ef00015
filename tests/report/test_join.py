"""Rows become points, and no row disappears."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.report.synthetic import BASE, records, write
from vitgs.errors import NothingToWorkOn
from vitgs.report.answer import answers
from vitgs.report.best import best, leaders_by_system
from vitgs.report.points import Book, Point
from vitgs.report.render import load_book
from vitgs.store import same


def one(book: Book, system: str, data: str, **knobs: object) -> Point:
    (found,) = (
        p
        for p in book.points
        if p.configuration.system == system
        and p.data == data
        and p.configuration.rule != "paper"
        and knobs.items() <= {**dict(p.configuration.knobs), **dict(p.configuration.run)}.items()
    )
    return found


def test_a_point_has_its_train_eval_and_measure_rows(book: Book) -> None:
    p = one(book, "tome", "order", r=2)
    assert p.top1.seeds == (0, 1)
    assert p.split == "test"
    assert p.val.estimate.value is not None
    assert p.top1.estimate.low is not None
    assert p.top1.estimate.high is not None
    assert p.top1.estimate.value is not None
    assert p.top1.estimate.low < p.top1.estimate.value < p.top1.estimate.high
    assert p.cost.macs
    assert p.cost.latency_ms.value
    assert p.cost.conversion
    assert p.training.core_seconds
    assert len(p.training.curves) == 2
    assert (p.chance, p.ceiling) == (0.1, 0.5)
    assert p.cost.energy_j_per_clip.value is None
    assert "counter" in p.cost.energy_j_per_clip.reason
    assert (p.name.series, p.name.setting) == ("tome", "r 2")


def test_the_anchor_is_vit_mean_at_full_compute(book: Book) -> None:
    assert one(book, "vit_mean", "moment", frames=0).cost.flop_speedup == pytest.approx(1.0)
    assert one(book, "vit_mean", "moment", frames=2).cost.flop_speedup == pytest.approx(8.0, rel=1e-3)


def test_a_lever_of_the_anchor_does_not_stand_for_it(tmp_path: Path) -> None:
    rows = [row for row in records() if row.job.system != "vit_mean" or row.job.knobs.get("frames") == 2]
    book = load_book([write(tmp_path, rows)], current=None)
    assert one(book, "vit_mean", "moment", frames=2).cost.flop_speedup == pytest.approx(8.0, rel=1e-3)
    assert not any(answer.anchored for answer in answers(book))


def test_failed_skipped_and_oom_rows_stay(book: Book) -> None:
    assert sorted((row.system, row.status) for row in book.lost) == [("joint", "failed"), ("timesformer", "failed"), ("tome", "skipped")]
    assert next(row for row in book.lost if row.system == "timesformer").flags == ("oom",)


def test_a_later_attempt_replaces_a_failed_one(tmp_path: Path) -> None:
    rows = records(BASE[:2], ("moment",), 1)
    again = next(row for row in rows if row.status == "measured" and row.job.kind == "measure")
    failed = dataclasses.replace(again, status="failed", reason="killed", result={})
    book = load_book([write(tmp_path, [failed, dataclasses.replace(again, attempt=2), *(row for row in rows if row is not again)])], current=None)
    assert next(row for row in book.lost if row.reason == "killed").later == "replaced by attempt 2, measured"
    assert all(p.cost.macs for p in book.points)


def test_of_a_contaminated_job_the_clean_row_counts_and_the_others_stay(tmp_path: Path) -> None:
    rows = records(BASE)
    first = next(r for r in rows if r.job.kind == "measure" and r.job.system == "joint" and r.status == "measured")
    slow = {**first.result, "latency_ms": {**first.result["latency_ms"], "value": 1e6}}
    spoilt = [dataclasses.replace(first, attempt=n, flags=("contaminated",), result=slow) for n in (1, 3)]
    clean = dataclasses.replace(first, attempt=2)
    book = load_book([write(tmp_path, [*(r for r in rows if r is not first), spoilt[0], clean, spoilt[1]])], current=None)
    values = [p.cost.latency_ms.value for p in book.points if p.configuration.system == "joint"]
    assert clean.result["latency_ms"]["value"] in values
    assert 1e6 not in values
    shown = [(row.status, row.attempt, row.later) for row in book.lost if row.system == "joint" and row.kind == "measure"]
    assert shown == [("contaminated", n, "replaced by attempt 2, measured") for n in (1, 3)]


def test_stale_rows_are_shown_and_marked(results: Path) -> None:
    book = load_book([results], current=lambda system, kind: "new" if (system, kind) == ("tome", "measure") else None)
    assert {p.configuration.system for p in book.points if "stale" in p.flags} == {"tome"}
    assert [row.later for row in book.lost if row.status == "stale"] == ["still shown, marked stale"] * 4


def test_rows_of_an_older_version_that_gave_the_same_are_fresh(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "SAME", {"new": "c0de"})
    book = load_book([results], current=lambda system, kind: "new" if (system, kind) == ("tome", "measure") else None)
    assert not any("stale" in p.flags for p in book.points)


def test_one_seed_is_preliminary(tmp_path: Path, book: Book) -> None:
    assert book.preliminary == ()
    assert load_book([write(tmp_path, records(BASE[:2], ("moment",), 1))], current=None).preliminary == ("all systems have one seed",)


def test_two_machines_are_not_mixed(tmp_path: Path) -> None:
    rows = records(BASE[:2], ("moment",), 1)
    write(tmp_path, rows, "one")
    book = load_book([write(tmp_path, rows, "two")], current=None)
    assert list(book.machines) == ["one", "two"]
    assert len(book.of("one", "moment")) == len(book.of("two", "moment")) == 8


def test_times_of_two_machines_in_one_folder_are_not_put_side_by_side(tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(row, environment={**row.environment, "machine": "b" if row.job.system == "graphsampler" else "a"})
        for row in records(BASE, ("moment",), 1)
    ]
    book = load_book([write(tmp_path, rows)], current=None)
    assert any("trained on several machines" in note and "b: graphsampler" in note for note in book.notes)
    assert any("machine a" in note and "measure rows at other settings" in note for note in book.notes)
    of = {name: [p for p in book.points if p.configuration.system == name] for name in ("graphsampler", "joint")}
    assert of["graphsampler"]
    assert all(p.cost.latency_ms.value is None and p.top1.estimate.value is not None for p in of["graphsampler"])
    assert any(p.cost.latency_ms.value for p in of["joint"])
    alone = load_book([write(tmp_path / "alone", [row for row in rows if row.job.system != "graphsampler"])], current=None)
    assert not any("several machines" in note for note in alone.notes)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "machine").mkdir(), lambda folder: write(folder, [])])
def test_nothing_there_says_what_to_do(tmp_path: Path, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(NothingToWorkOn, match="vitgs-bench sweep --suite budget") as error:
        load_book([tmp_path])
    assert error.value.exit_code == 3


def test_best_holds_limits_and_names_ties(book: Book) -> None:
    free, limited, impossible, energy = (
        best(book.points, max_gmacs=g, max_energy_j=j)[0] for g, j in ((None, None), (0.03, None), (1e-6, None), (None, 1.0))
    )
    assert free.point
    assert free.replay.startswith("vitgs-bench replay")
    assert free.probability is not None
    assert limited.point
    assert limited.point.cost.macs
    assert limited.point.cost.macs <= 0.03e9
    assert limited.point.configuration.system == "graphsampler"
    assert limited.excluded > 0
    assert impossible.point is None
    assert impossible.reason == "no configuration is within the limits"
    assert energy.point is None
    assert energy.unmeasured == 44


def test_best_holds_a_time_limit_at_the_upper_end(book: Book) -> None:
    p = one(book, "graphsampler", "moment", budget=0.125)
    assert p.cost.latency_ms.value is not None
    assert p.cost.latency_ms.high is not None
    between = (p.cost.latency_ms.value + p.cost.latency_ms.high) / 2
    assert best([p], max_latency_ms=between)[0].point is None
    assert best([p], max_latency_ms=p.cost.latency_ms.high)[0].point is p


def test_rows_at_equal_core_seconds_are_apart(tmp_path: Path) -> None:
    rows = records(BASE[:2], ("moment",), 1)
    shorter = [
        dataclasses.replace(r, job=dataclasses.replace(r.job, options={**r.job.options, "equal": "core_seconds"}))
        for r in rows
        if r.job.kind == "eval"
    ]
    book = load_book([write(tmp_path, [*rows, *shorter])], current=None)
    assert {p.top1.seeds for p in book.points} == {(0,)}
    assert all((p.equal_seconds.estimate.value, p.equal_val.estimate.value) == (p.top1.estimate.value, p.val.estimate.value) for p in book.points)


def test_rows_of_another_recipe_are_not_seeds(tmp_path: Path) -> None:
    rows = records(BASE[:2], ("moment",), 2)
    older = []
    for row in rows:
        if row.job.kind == "train":
            recipe = {**row.job.options.get("recipe", {}), "lr": 0.5}
            older.append(dataclasses.replace(row, job=dataclasses.replace(row.job, options={**row.job.options, "recipe": recipe})))
    renamed = {new.job.seed: new.job.id for new in older}
    for row in rows:
        if row.job.kind == "eval":
            options = {**row.job.options, "train_job": renamed[row.job.seed]}
            older.append(dataclasses.replace(row, started_utc="2025-01-01T00:00:00Z", job=dataclasses.replace(row.job, options=options)))
    alone = load_book([write(tmp_path / "a", rows)], current=None)
    mixed = load_book([write(tmp_path / "b", [*older, *rows])], current=None)
    assert [p.top1.seeds for p in mixed.points] == [p.top1.seeds for p in alone.points]
    assert [p.top1.estimate.value for p in mixed.points] == [p.top1.estimate.value for p in alone.points]
    assert any("earlier recipes" in note for note in mixed.notes)


def test_one_profile_is_compared_and_all_stay_in_the_book(tmp_path: Path) -> None:
    full = records(BASE[:2], ("moment",), 2)
    short = [dataclasses.replace(r, job=dataclasses.replace(r.job, profile="short")) for r in records(BASE[:2], ("moment",), 1)]
    book = load_book([write(tmp_path, [*short, *full])], current=None)
    assert {p.configuration.profile for p in book.points if p.top1.seeds} >= {"short", full[0].job.profile}
    (machine,) = book.machines
    assert {p.configuration.profile for p in book.of(machine, "moment")} == {full[0].job.profile}


def test_a_start_from_digits_on_real_video_is_said(tmp_path: Path) -> None:
    rows = [dataclasses.replace(r, job=dataclasses.replace(r.job, start="shared")) for r in records(BASE[:2], ("videos",), 2)]
    assert any("still digits" in reason for reason in load_book([write(tmp_path, rows)], current=None).preliminary)


def test_leaders_are_ordered_by_their_best_point_whatever_their_worst_is(book: Book) -> None:
    (machine,) = book.machines
    leaders = leaders_by_system(book.of(machine, "moment"))
    values = [p.choosing for p in leaders if p.choosing is not None]
    assert values == sorted(values, reverse=True)
    assert len({p.configuration.system for p in leaders}) == len(leaders) > 4
    for p in leaders:
        assert p.choosing == max(q.choosing or 0.0 for q in book.of(machine, "moment") if q.configuration.system == p.configuration.system)
