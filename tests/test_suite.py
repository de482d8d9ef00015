"""TOML is read strictly, and the plan holds exactly the jobs that suite, profile and rows ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitgs.errors import UsageError
from vitgs.record import Job, Record
from vitgs.suite import Profile, load_profile, load_suite, profile_names, suite_names
from vitgs.suite.plan import Plan, Planner, planner
from vitgs.suite.tables import Tune

SUITE = """
[[systems]]
name = "joint"
[[systems]]
name = "uniform_frames"
run = { budget = [1, 0.5] }
rules = ["elastic", "paper"]
[[systems]]
name = "vit_mean"
label = "fewer frames"
build = { frames = [2, 1] }
lever = true
"""


def make(tmp_path: Path, *, suite: str = SUITE, **changes: Any) -> Planner:
    (tmp_path / "mine.toml").write_text(suite)
    data = ("digits:moment", "digits:order")
    profile = replace(Profile(name="p", size="test", data=data, seeds=2, readout="attention", train={"steps": 5}), **changes)
    return planner(load_suite(str(tmp_path / "mine.toml")), profile, threads=2)


def answer(job: Job, result: Mapping[str, Any] | None = None, *, status: Any = "measured") -> Record:
    accuracy = {"top1": {"value": 0.5}, "core_seconds": 12.34567 if job.system == "joint" else 4.0, "steps": 10} if result is None else result
    return Record(job=job, attempt=1, status=status, result=accuracy if status == "measured" else {}, reason="" if status == "measured" else "no")


def kinds(plan: Plan) -> Counter[tuple[str, str]]:
    return Counter((job.purpose, job.kind) for job in plan.jobs)


def test_a_plan_without_tuning_is_known_at_once(tmp_path: Path) -> None:
    planning = make(tmp_path)
    plan = planning.plan(planning.points, {})
    assert plan.complete
    # Trainings: joint, uniform_frames by two rules, vit_mean at two frame counts; times 2 data sets and 2 seeds.
    assert kinds(plan) == {("final", "train"): 5 * 4, ("final", "eval"): (1 + 2 * 2 + 2) * 4 * 2, ("cost", "measure"): 1 + 2 + 2}
    assert len({job.id for job in plan.jobs}) == len(plan.jobs)
    trains = {job.id: job for job in plan.jobs if job.kind == "train"}
    for job in plan.jobs:
        if job.kind == "eval":
            train = trains[job.options["train_job"]]
            assert (train.system, train.knobs, train.rule, train.data, train.seed) == (job.system, job.knobs, job.rule, job.data, job.seed)
        elif job.kind == "train":
            assert not job.options["tuned"]
    assert all(job.knobs["readout"] == "attention" for job in plan.jobs)


def test_a_profile_may_have_a_system_read_otherwise(tmp_path: Path) -> None:
    planning = make(tmp_path, readouts={"uniform_frames": "class"})
    read = {(job.system, job.knobs["readout"]) for job in planning.plan(planning.points, {}).jobs}
    assert read == {("joint", "attention"), ("vit_mean", "attention"), ("uniform_frames", "class")}
    for wrong, says in (({"uniform_frame": "class"}, "uniform_frames"), ({"uniform_frames": "clas"}, "readout must be one of")):
        with pytest.raises(UsageError, match=says):
            make(tmp_path, readouts=wrong)


def test_rules_say_how_run_knobs_are_drawn(tmp_path: Path) -> None:
    planning = make(tmp_path)
    trains = [job for job in planning.plan(planning.points, {}).jobs if job.kind == "train" and job.data == "digits:order" and job.seed == 0]
    assert {(job.system, job.rule): job.options.get("run_values") for job in trains} == {
        ("joint", "none"): None,
        ("uniform_frames", "elastic"): {"budget": [1.0, 0.5]},
        ("uniform_frames", "paper"): None,
        ("vit_mean", "none"): None,
    }
    assert len([job for job in trains if job.system == "vit_mean"]) == 2
    short = make(tmp_path, rules=("elastic",), levers=False)
    assert {(p.system, p.rule) for p in short.points} == {("joint", "none"), ("uniform_frames", "elastic")}


def test_numbers_written_differently_are_the_same_job(tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path, suite=SUITE.replace("[1, 0.5]", "[1.0, 0.5]"))
    assert [job.id for job in one.plan(one.points, {}).jobs] == [job.id for job in other.plan(other.points, {}).jobs]


def test_each_entry_gets_the_same_tuning_and_its_best_rate(tmp_path: Path) -> None:
    planning = make(tmp_path, tune=Tune(lr=(1e-3, 2e-3, 4e-3), data=("digits:moment",), steps=3))
    first = planning.plan(planning.points, {})
    assert not first.complete
    tuning = [job for job in first.jobs if job.purpose == "tune"]
    assert Counter(job.system for job in tuning if job.kind == "train") == {"joint": 3, "uniform_frames": 3, "vit_mean": 3}
    assert {job.options["split"] for job in tuning if job.kind == "eval"} == {"val"}
    assert all(job.purpose in ("tune", "cost") for job in first.jobs)
    best = {"joint": 2e-3, "uniform_frames": 4e-3, "vit_mean": 1e-3}
    rows = {job.id: answer(job, {"top1": {"value": 0.9 if job.options.get("trial_lr") == best[job.system] else 0.1}}) for job in tuning}
    second = planning.plan(planning.points, rows)
    assert second.complete
    finals = [job for job in second.jobs if job.purpose == "final" and job.kind == "train"]
    assert {(job.system, job.options["recipe"]["lr"]) for job in finals} == set(best.items())
    assert all(job.options["tuned"] and job.options["recipe"]["steps"] == 5 for job in finals)


def test_of_rates_that_tie_the_lowest_is_chosen(tmp_path: Path) -> None:
    planning = make(tmp_path, tune=Tune(lr=(1e-3, 2e-3, 4e-3), data=("digits:moment",)))
    tuning = [job for job in planning.plan(planning.points, {}).jobs if job.purpose == "tune"]
    scores = {1e-3: 0.7, 2e-3: 0.797, 4e-3: 0.8}
    rows = {job.id: answer(job, {"top1": {"value": scores[job.options["trial_lr"]]}}) for job in tuning}
    final = [job for job in planning.plan(planning.points, rows).jobs if job.purpose == "final" and job.kind == "train"]
    assert {job.options["recipe"]["lr"] for job in final} == {2e-3}


def test_a_rate_that_failed_is_not_chosen(tmp_path: Path) -> None:
    planning = make(tmp_path, tune=Tune(lr=(1e-3, 2e-3), data=("digits:moment",), steps=3))
    tuning = [job for job in planning.plan(planning.points, {}).jobs if job.purpose == "tune"]
    rows = {job.id: answer(job, status="failed" if job.options["trial_lr"] == 1e-3 else "measured") for job in tuning}
    finals = [job for job in planning.plan(planning.points, rows).jobs if job.purpose == "final" and job.kind == "train"]
    assert {job.options["recipe"]["lr"] for job in finals} == {2e-3}


def test_equal_core_seconds_follow_from_the_reference(tmp_path: Path) -> None:
    planning = make(tmp_path, equal=("steps", "core_seconds"))
    first = planning.plan(planning.points, {})
    assert not first.complete
    rows = {job.id: answer(job) for job in first.jobs}
    second = planning.plan(planning.points, rows)
    assert second.complete
    added = [job for job in second.jobs if job.id not in rows]
    trains = [job for job in added if job.kind == "train"]
    assert {job.options["equal_core_seconds"] for job in trains} == {12.35}
    assert {job.options["recipe"]["steps"] for job in trains} == {round(10 * 12.35 / 4)}
    assert {(job.system, job.seed) for job in trains} == {("uniform_frames", 0), ("vit_mean", 0)}
    assert len(trains) == (2 + 2) * 2
    assert {job.options["equal"] for job in added} == {"core_seconds"}
    more = make(tmp_path, equal=("steps", "core_seconds"), equal_seeds=3)
    further = {job.id: job for job in more.plan(more.points, rows).jobs if job.id not in rows}
    assert set(further) >= {job.id for job in added}
    assert {(job.system, job.seed) for job in further.values()} == {(name, seed) for name in ("uniform_frames", "vit_mean") for seed in range(3)}


def test_what_is_given_overrides_the_profile(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    suite, profile = load_suite(str(tmp_path / "mine.toml")), Profile(name="p", size="test", data=("digits:moment",))
    planning = planner(suite, profile, models=["vit*"], seeds=3, data=["digits:link"])
    jobs = planning.plan(planning.points, {}).jobs
    assert {job.system for job in jobs} == {"vit_mean"}
    assert {job.seed for job in jobs if job.kind == "train"} == {0, 1, 2}
    assert {job.data for job in jobs if job.kind == "train"} == {"digits:link"}
    with pytest.raises(UsageError, match="--models must name systems of suite mine"):
        planner(suite, profile, models=["tome"])
    with pytest.raises(UsageError, match="names none"):
        planner(suite, replace(profile, data=()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("titel = 'x'\n" + SUITE, r"did you mean title"),
        (SUITE.replace("label", "lable"), r"in mine\.toml, systems.*did you mean label\?"),
        ("title = 3\n" + SUITE, "title must be a text; given: 3"),
        ("sampler = 'random'\n" + SUITE, "must be one of grid, tpe, nsga2"),
        ("sampler = 'tpe'\n" + SUITE, "how many trials"),
        ("objectives = ['top2']\n" + SUITE, "must be one of top1, gmacs"),
        ("[[systems]]\nlabel = 'x'", "must have name"),
        ("title = 'x'", "at least one system"),
        ("title = ", "must be TOML"),
    ],
)
def test_a_wrong_suite_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=expected) as caught:
        load_suite(str(tmp_path / "mine.toml"))
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[train]\nsteps_ = 3", r"did you mean steps\?"),
        ("seeds = 0", "at least 1"),
        ("seeds = true", "whole number"),
        ("data = 'digits:moment'", "must be a list"),
        ("tune = 3", "must be a table"),
        ("[limits]\ntrain_s = 'x'", "train_s must be a number"),
        ("[start]\nweights = 'mine'", "one of shared, none"),
        ("size = 'Q'", "a size in mine.toml must be"),
        ("style = 'digit'", "did you mean digits"),
        ("[train]\nlr = 'a'", "lr must be a number"),
        ("[measure]\nseconds = nan", "finite number"),
        ("[measure]\nseconds = 0", "above 0"),
        ("[measure]\ndtype = 'int3'", "one of float32"),
        ("[limits]\ntrain_s = -1", "above 0"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=expected) as caught:
        load_profile(str(tmp_path / "mine.toml"))
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SUITE.replace("budget", "badget"), "did you mean budget"),
        (SUITE.replace("[2, 1]", "[-1]"), "between 0 and"),
        (SUITE.replace("run = { budget", "build = { budget"), "put it into run"),
        (SUITE.replace("[2, 1]", "[]"), "must have values"),
        (SUITE.replace('"vit_mean"', '"joint"').replace("fewer frames", "joint"), "a label of its own"),
    ],
)
def test_wrong_knobs_are_refused_before_any_work(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        _ = make(tmp_path, suite=text).points


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UsageError, match="budget"):
        load_suite("budgets")
    with pytest.raises(UsageError, match="embedded-short"):
        load_profile("embeded")


def test_all_suites_and_profiles_of_the_project_plan() -> None:
    assert {"budget", "smoke"} <= set(suite_names())
    for profile in map(load_profile, profile_names()):
        for suite in map(load_suite, suite_names()):
            planning = planner(suite, profile, data=() if profile.data else ["digits:moment"])
            assert planning.plan(planning.points, {}).jobs


def test_a_profile_may_run_fewer_models_and_the_command_line_others(tmp_path: Path) -> None:
    assert {entry.name for entry in make(tmp_path, models=("joint",)).entries} == {"joint"}
    (tmp_path / "mine.toml").write_text(SUITE)
    short = Profile(name="p", size="test", data=("digits:moment",), models=("joint",))
    assert {e.name for e in planner(load_suite(str(tmp_path / "mine.toml")), short, models=("vit_mean",)).entries} == {"vit_mean"}
