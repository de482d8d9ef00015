"""`gate run` and `gate calibrate`: every exit code, every refusal in one line, and a whole run over two revisions of a tiny repository."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from tests.cli.command import Done, Ran, one_line
from tests.gate.repository import SUITE, WORSE, commit, git, repository
from vitgs.gate import cases, drive, history, sides, timed
from vitgs.measure.host import Finding

SIDES: tuple[Literal["base", "head"], ...] = ("base", "head")
READING = {
    "quantities": {"MACs": {"total": 100, "by_place": {"mlp": 100}}, "operators": {"total": 2, "by_place": {"mlp": 2}}},
    "operators": {"aten::mm": 2},
    "attention": [],
}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Two commits, and a suite beside them."""
    folder = repository(tmp_path / "repo")
    commit(folder, {"README": "a"})
    (tmp_path / "tiny.toml").write_text(SUITE)
    return folder


class Canned:
    """A worker without a process: what each side says of a case is set beforehand. A text is why it is lacking, an exception is raised."""

    says: ClassVar[Mapping[tuple[str, str], Any]] = {}

    def __init__(self, tree: sides.Tree) -> None:
        self.side = tree.side

    def tell(self, do: str, case: Mapping[str, Any]) -> None:
        assert (do, case["system"]) == ("exact", "tiny")

    def hear(self, name: str) -> Any:
        said = self.says.get((self.side, name), READING)
        if isinstance(said, str):
            raise sides.Lacks(f"the {self.side} must have the case", given=said, remedy="give was")
        if isinstance(said, Exception):
            raise said
        return said

    def ask(self, do: str, case: Mapping[str, Any]) -> Any:
        assert do == "breaks"
        return self.says.get((self.side, "breaks"), {"total": 0, "by_place": {}})


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> type[Canned]:
    monkeypatch.setattr(drive, "both", lambda base, head: contextlib.nullcontext((Canned(base), Canned(head))))
    monkeypatch.setattr(Canned, "says", {})
    return Canned


def more(quantity: str, total: int) -> dict[str, Any]:
    """A reading with more (or less) of something."""
    reading = copy.deepcopy(READING)
    reading["quantities"][quantity] = {"total": total, "by_place": {"mlp": total}}  # type: ignore[index]
    return reading


def times(monkeypatch: pytest.MonkeyPatch, ratios: Sequence[float]) -> None:
    """The timed tier sees these ratios, round after round."""

    def workers(base: sides.Tree, head: sides.Tree, cases: Mapping[str, Any], *, cores: Sequence[int]) -> timed.Sampler:
        turns = iter(range(10**6))
        return lambda names: {name: (10.0, 10.0 * ratios[next(turns) % len(ratios)]) for name in names}

    monkeypatch.setattr(timed, "workers", workers)


def gate(ran: Ran, repo: Path, *more_options: str, base: str = "HEAD~1") -> Done:
    return ran(["gate", "run", "--base", base, "--repo", str(repo), "--suite", str(repo.parent / "tiny.toml"), *more_options])


def test_0_no_regression(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, [1.0, 1.001, 0.999])
    done = gate(ran, repo)
    assert (done.code, done.out.splitlines()[-1]) == (0, "no regression in 1 case, counted and timed")
    assert "not calibrated on this machine" in done.out and "no change beyond the threshold" in done.out


def test_1_by_counting(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    canned.says = {("head", "tiny"): more("MACs", 130)}
    done = gate(ran, repo, "--tier", "exact")
    assert (done.code, done.out.splitlines()[-1]) == (1, "regression: tiny: MACs 100 -> 130 in mlp")
    document = gate(ran, repo, "--tier", "exact", "--json").document
    assert document["regressed"] and document["report"]["findings"][0]["place"] == "mlp"
    assert gate(ran, repo, "--tier", "exact", "--allow", "macs").code == 0
    marked = gate(ran, repo, "--tier", "exact", "--markdown").out
    assert "| WORSE | tiny | MACs | 100 -> 130 | mlp |  |" in marked and "**regression: " in marked


def test_only_a_head_with_graph_breaks_is_a_reason_to_ask_the_base_for_its_own(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    one, two = ({"total": n, "by_place": {"forward in model.py": n}, "reasons": ["print"]} for n in (1, 2))
    canned.says = {("base", "breaks"): one, ("head", "breaks"): two}
    told = gate(ran, repo, "--tier", "exact")
    assert told.code == 1 and "graph breaks" in told.out and "1 -> 2" in told.out and "forward in model.py" in told.out
    canned.says = {("base", "breaks"): one, ("head", "breaks"): one}
    assert gate(ran, repo, "--tier", "exact").code == 0
    canned.says = {("base", "breaks"): one}  # it has none any more: the base isn't asked
    assert "graph breaks" not in gate(ran, repo, "--tier", "exact").out


def test_1_by_time(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, [1.1, 1.101, 1.099])
    done = gate(ran, repo)
    assert done.code == 1 and "SLOWER" in done.out and "tiny: 10.0 % slower" in done.out


def test_an_improvement_is_told_and_passes(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, [0.8, 0.801, 0.799])
    canned.says = {("head", "tiny"): more("MACs", 50)}
    done = gate(ran, repo)
    assert done.code == 0 and "FASTER" in done.out and "BETTER" in done.out
    assert done.out.splitlines()[-1] == "no regression in 1 case, counted and timed; 2 improvements"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tier", "some"], "--tier must be exact or all"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--cases", "tine"], "did you mean tiny"),
        (["--allow", "operator"], "did you mean operators"),
        (["--suite", "tiny"], "known: gate"),
    ],
)
def test_2_wrong_usage(ran: Ran, repo: Path, options: list[str], told: str) -> None:
    assert told in one_line(gate(ran, repo, *options), 2)


def test_2_a_dirty_head(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    (repo / "README").write_text("changed")
    assert "M README; commit or stash, or give --allow-dirty" in one_line(gate(ran, repo, "--tier", "exact"), 2)
    done = gate(ran, repo, "--tier", "exact", "--allow-dirty")
    assert done.code == 0 and "note: the head has changes that are not committed" in done.out


def test_2_a_head_without_a_case_of_the_suite(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    canned.says = {("head", "tiny"): "no system tiny"}
    done = gate(ran, repo, "--tier", "exact")
    assert (done.code, done.out) == (2, "") and "no system tiny" in done.err.splitlines()[-1]


def test_3_no_base(ran: Ran, repo: Path) -> None:
    assert "git fetch it, or name a branch, tag or commit" in one_line(gate(ran, repo, base="nowhere"), 3)
    git(repo.parent, "clone", "-q", "--depth", "1", f"file://{repo}", "shallow")
    assert "fetch-depth: 0" in one_line(gate(ran, repo.parent / "shallow", base=git(repo, "rev-parse", "HEAD~1")), 3)
    (repo.parent / "plain").mkdir()
    assert "work in a clone" in one_line(gate(ran, repo.parent / "plain", base="HEAD"), 3)


def test_3_no_common_case(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    canned.says = {("base", "tiny"): "no system tiny"}
    done = gate(ran, repo)
    assert (done.code, done.out) == (3, "")
    assert "must have a case in common; given: tiny: not in the base (no system tiny); give was" in done.err.splitlines()[-1]


def test_4_too_noisy(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, [0.6, 1.0, 1.7])
    done = gate(ran, repo, "--seconds", "1")
    assert done.code == 4 and done.out.splitlines()[-1].startswith("unfit: ")


def test_what_time_cannot_tell_is_said(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, [1.0, 1.02, 1.04])
    done = gate(ran, repo, "--seconds", "1000")
    assert (done.code, done.out.splitlines()[-1]) == (0, "no regression in 1 case, counted and timed; time can't tell of tiny")


def test_4_a_clock_that_stands_still(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    still = Finding(check="clock", level="unfit", seen="it stands still", remedy="check the clock source")
    monkeypatch.setattr("vitgs.measure.doctor_cpu.clock", lambda host: still)
    done = gate(ran, repo)
    assert (done.code, done.out) == (4, "") and "it stands still; check the clock source" in done.err.splitlines()[-1]


def test_calibration_is_kept_and_used(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    suite = ["--repo", str(repo), "--suite", str(repo.parent / "tiny.toml")]
    times(monkeypatch, [1.0, 1.03, 0.97])
    done = ran(["gate", "calibrate", "--rounds", "24", "--rounds-a-run", "12", *suite])
    assert done.code == 0 and done.out.splitlines()[-1].startswith("false alarms: 0 of 2 runs of head against head, [0.0, 84.2] %")
    (known,) = history.load_calibration(history.folder()).values()
    assert 0.02 < known["noise_floor"] < 0.05 and "0 of 2 [0.0, 84.2] %" in done.out
    (judged,) = gate(ran, repo, "--json").document["report"]["timed"]
    assert judged["threshold"] == pytest.approx(known["noise_floor"])
    times(monkeypatch, [0.6, 1.0, 1.7])
    assert ran(["gate", "calibrate", "--rounds", "24", *suite]).code == 4
    done = gate(ran, repo)
    assert done.code == 4 and "calibrated as too noisy to be timed here" in done.out
    assert "one run's" in one_line(ran(["gate", "calibrate", "--rounds", "2", *suite]), 2)
    assert "at least 12" in one_line(ran(["gate", "calibrate", "--rounds-a-run", "2", *suite]), 2)


def test_calibration_is_for_as_many_rounds_as_a_run_has_time_for(ran: Ran, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = ["--repo", str(repo), "--suite", str(repo.parent / "tiny.toml"), "--rounds", "36"]
    times(monkeypatch, [1.0, 1.01, 0.99])
    assert "; 36 rounds a run" in ran(["gate", "calibrate", *suite]).out  # no time at all a round: as many as there are
    assert "; 8 rounds a run" in ran(["gate", "calibrate", "--seconds", "1e-6", *suite]).out


def test_slow_drift_since_the_last_tag_is_told_and_fails_nothing(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    git(repo, "tag", "v1", "HEAD~1")
    base = git(repo, "rev-parse", "HEAD")
    commit(repo, {"README": "c"})
    turns: list[str] = []

    def workers(base: sides.Tree, head: sides.Tree, cases: Mapping[str, Any], *, cores: Sequence[int]) -> timed.Sampler:
        turns.append(git(base.folder, "rev-parse", "HEAD"))
        return lambda names: {name: (10.0, 10.0 * (1.0 if len(turns) == 1 else 1.1)) for name in names}

    monkeypatch.setattr(timed, "workers", workers)
    done = gate(ran, repo, "--drift", "tag", "--json", base=base)
    v1 = git(repo, "rev-parse", "v1")
    assert (done.code, turns) == (0, [base, v1])
    report = done.document["report"]
    assert (report["drift"]["revision"], report["drift"]["timed"][0]["outcome"], report["timed"][0]["outcome"]) == (v1, "slower", "same")
    assert done.document["verdict"].endswith(f"; since {v1[:10]}: tiny 10.0 % slower")
    marked = gate(ran, repo, "--drift", "v1", "--tier", "exact", "--markdown", base=base)
    assert (marked.code, "not compared with an older" in marked.out) == (0, False)


def test_no_tag_to_look_back_to_is_a_note(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    done = gate(ran, repo, "--drift", "tag", "--tier", "exact")
    assert done.code == 0 and "note: not compared with an older revision: a tag before the head must be in this clone" in done.out
    git(repo, "tag", "v1", "HEAD~1")
    assert "v1, which is the base" in gate(ran, repo, "--drift", "tag", "--tier", "exact").out


def test_every_run_is_in_the_history(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    canned.says = {("head", "tiny"): more("MACs", 130)}
    gate(ran, repo, "--tier", "exact")
    gate(ran, repo, "--tier", "exact", "--allow", "MACs")
    rows = history.rows(history.folder() / history.ROWS)
    assert [row["regressed"] for row in rows] == [True, False]
    gate(ran, repo, "--tier", "exact", "--out", str(repo.parent / "elsewhere"))
    assert len(history.rows(history.folder(repo.parent / "elsewhere") / history.ROWS)) == 1
    assert rows[0]["report"]["base"] == git(repo, "rev-parse", "HEAD~1") and rows[0]["environment"]["cpu"]


def test_two_revisions_by_real_workers(ran: Ran, repo: Path) -> None:
    """The head has one more product, a system under a new name, and a new one: what can be compared is, the rest is told."""
    suite = repo.parent / "tiny.toml"
    second = SUITE.partition("[[cases]]")[2].replace('"tiny"', '"new"', 2).replace('system = "new"', 'system = "new"\nwas = "old"')
    third = SUITE.partition("[[cases]]")[2].replace('"tiny"', '"newcomer"', 2)
    own = '[[cases]]\nname = "own"\nfactory = "vitgs.models:made"\n'
    suite.write_text(f"{SUITE}\n[[cases]]{second}\n[[cases]]{third}\n{own}")
    commit(repo, WORSE)
    done = gate(ran, repo, "--tier", "exact", "--json")
    assert done.code == 1
    report = done.document["report"]
    worse = {(f["case"], f["quantity"]): f["head"] - f["base"] for f in report["findings"]}
    assert worse["tiny", "MACs"] == worse["new", "MACs"] == 8 * 8
    assert worse["own", "parameters"] == 2
    assert report["compared"] == ["tiny", "new", "own"]
    assert "no system newcomer" in report["left_out"]["newcomer"] and 'was = "its name there"' in report["left_out"]["newcomer"]
    assert len(git(repo, "worktree", "list").splitlines()) == 1
    assert not json.loads(json.dumps(report))["head_dirty"]


def test_a_base_that_does_not_import(ran: Ran, repo: Path) -> None:
    broken = commit(repo, {"vitgs/__init__.py": "raise RuntimeError('half a commit')"})
    commit(repo, {"vitgs/__init__.py": ""})
    done = gate(ran, repo, "--tier", "exact", base=broken)
    assert (done.code, done.out) == (3, "") and "half a commit" in done.err.splitlines()[-1]


def test_a_head_that_fails_is_a_no(ran: Ran, repo: Path, canned: type[Canned]) -> None:
    canned.says = {("head", "tiny"): sides.Fails("the head must run the case tiny", given="TypeError", remedy="mend it first")}
    done = gate(ran, repo, "--tier", "exact")
    assert (done.code, done.out) == (1, "") and done.err.splitlines()[-1].endswith("given: TypeError; mend it first")
    canned.says = {("base", "tiny"): sides.Fails("the base must run the case tiny", given="TypeError", remedy="name a base that works")}
    done = gate(ran, repo, "--tier", "exact")
    assert done.code == 3 and "tiny: fails in the base (TypeError)" in done.err


def test_a_base_that_dies_while_it_is_timed_is_no_regression(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(names: Sequence[str]) -> Mapping[str, timed.Pair]:
        error = sides.Fails("the base must run the case tiny", given="killed", remedy="name a base that works")
        error.side = "base"
        raise error

    monkeypatch.setattr(timed, "workers", lambda *_, cores: fails)
    done = gate(ran, repo)
    assert (done.code, done.out) == (3, "") and "given: killed; name a base that works" in done.err.splitlines()[-1]


def test_a_round_of_real_workers_in_a_tree_without_this_project(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\n\ndef made():\n    print('said')\n    return torch.nn.Linear(2, 2), torch.zeros(1, 2)\n")
    case = cases.GateCase(name="own", factory="mine:made")
    base, head = (sides.Tree(side=side, folder=tmp_path, python=sys.executable) for side in SIDES)
    base_ms, head_ms = timed.workers(base, head, {"own": case})(["own"])["own"]
    assert base_ms > 0 and head_ms > 0


def test_the_history_as_a_page(ran: Ran, repo: Path, canned: type[Canned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "gate.html"
    assert "gate run --base REV first" in one_line(ran(["gate", "history", "--page", str(page)]), 3)
    times(monkeypatch, [1.1, 1.101, 1.099])
    gate(ran, repo)
    assert ran(["gate", "history", "--page", str(page)]).code == 0
    assert "tiny: 10.0 % slower" in page.read_text(encoding="utf-8")
