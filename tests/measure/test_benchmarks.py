"""The pure parts of the programs that measure the measurement: rates, simulated noise, verdicts and the words of the tables."""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import counters, interval_coverage, load, self_ratio
from tests.benchmarks.noise import SETTINGS, Machine, Noise, true_log_median
from tests.benchmarks.rates import rate
from vitgs.errors import UsageError


def test_a_rate_has_the_interval_of_clopper_and_pearson() -> None:
    # The quantiles 0.025 of beta(95, 6) and 0.975 of beta(96, 5); for no hit of n the upper end is 1 - 0.025 ** (1 / n).
    found = rate(95, 100)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.95, 0.8872, 0.9836)
    none = rate(0, 10)
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert str(found) == "95.0 % (88.7–98.4)"
    with pytest.raises(UsageError, match="11 of 10"):
        rate(11, 10)


def test_a_rate_outside_its_band_says_so_and_whether_chance_may_be_why() -> None:
    assert rate(95, 100).outside(0.93, 0.97) == ""
    assert rate(92, 100).outside(0.93, 0.97) == "below 93 %, its interval reaches the band"
    assert rate(800, 1000).outside(0.93, 0.97) == "below 93 %"
    assert rate(1000, 1000).outside(0.93, 0.97) == "above 97 %"


def _durations(noise: Noise, seed: int, count: int) -> list[int]:
    machine = Machine(noise, random.Random(seed))
    for _ in range(count):
        machine.work("a", 10.0)
    began = [*machine.began_ns["a"], machine.now_ns]
    return [after - before for before, after in itertools.pairwise(began)]


@pytest.mark.parametrize("noise", SETTINGS, ids=lambda noise: noise.name)
def test_noise_is_the_same_for_the_same_seed_and_has_the_median_that_it_is_said_to_have(noise: Noise) -> None:
    assert _durations(noise, 3, 50) == _durations(noise, 3, 50)
    assert _durations(noise, 3, 50) != _durations(noise, 4, 50)
    # Four seeds of 2,000 calls last at least four periods of the drift each, or 400 times what the wander remembers.
    seen = statistics.median(d for seed in range(4) for d in _durations(noise, seed, 2000))
    whole = [noise.drift * math.sin(2 * math.pi * (i + 0.5) / 64) for i in range(64)]
    assert seen / 1e7 == pytest.approx(math.exp(true_log_median(noise, whole)), rel=0.012)


def test_the_median_of_hits_alone_is_exact() -> None:
    noise = Noise(name="half", jitter=0.01, hit_share=0.5, hit_median=1.0, hit_spread=0.5)
    # Half of the calls are hit, all of those far above the rest: the median lies above nearly all that are not.
    assert true_log_median(noise, [0.0]) > 2 * 0.01
    assert true_log_median(Noise(name="none", jitter=0.02), [0.0]) == pytest.approx(0.0, abs=1e-6)
    assert true_log_median(Noise(name="none", jitter=0.02), [0.3]) == pytest.approx(0.3, abs=1e-6)


def test_a_simulated_timing_runs_the_real_clock_and_repeats() -> None:
    found = interval_coverage.simulate(SETTINGS[0], 5)
    assert found == interval_coverage.simulate(SETTINGS[0], 5)
    assert found.rounds >= interval_coverage.MIN_BLOCKS
    assert found.latency[0] <= found.latency[1] <= found.latency[2]
    assert abs(found.ratio[1] - 1) < 0.02
    assert interval_coverage.simulate(SETTINGS[4], 5, rounds=20).rounds == 20


def _outcome(latency: tuple[float, float, float], *, unstable: bool = False) -> interval_coverage.Outcome:
    return interval_coverage.Outcome(latency=latency, ratio=(0.99, 1.0, 1.01), at_all_times=1.05, rounds=12, unstable=unstable)


def test_coverage_is_counted_and_what_is_outside_is_said() -> None:
    outcomes = [_outcome((0.98, 1.0, 1.02))] * 90 + [_outcome((1.01, 1.02, 1.03), unstable=True)] * 10
    row = interval_coverage.summary(SETTINGS[0], interval_coverage.OWN, outcomes)
    assert (row["latency"]["hits"], row["latency"]["truth_below"], row["latency"]["truth_above"], row["unstable"]) == (90, 10, 0, 10)
    assert (row["latency_at_all_times"]["hits"], row["latency_by_end"]["unstable"]["hits"]) == (0, 0)
    assert interval_coverage.missed(row) == ["latency below 93 %, its interval reaches the band", "ratio above 97 %, its interval reaches the band"]
    fixed = interval_coverage.summary(SETTINGS[0], "12 fixed", outcomes)
    assert interval_coverage.missed(fixed) == []
    text = interval_coverage.table([row, fixed], {"trials": 100})
    assert "0 of 2 rates are inside. Outside: quiet: latency below 93 %" in text
    assert "| quiet | 12 fixed | 90.0 % (82.4–95.1) | 100.0 % (96.0–100.0) | 0.0 % (0.0–3.6) | 100.0 % (96.4–100.0) | 10 / 0, 0 / 0 |" in text


def _row(fvcore: int | None, named: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    uncounted = ["fvcore: not counted: TypeError in fvcore"] if fvcore is None else []
    return {
        "name": "n", "cell": {"system": "joint", "size": "Ti", "frames": 8}, "status": "measured", "reason": "", "content": False, "device": "meta",
        "params": 5_000_000, "macs": 1_000_000, "counters": {"torch": 1_000_000, "formula": 1_000_000, "fvcore": fvcore, "ptflops": 1_000_000},
        "uncounted": uncounted, "named_macs": {"fvcore": named or {}, "ptflops": {}}, "cpu_s": 2.0,
    } | more  # fmt: skip


ATTENTION: dict[str, Any] = {"aten::scaled_dot_product_attention": {"missing_macs": 300_000, "how": ""}}


@pytest.mark.parametrize(
    ("row", "verdict", "words"),
    [
        (_row(995_000), "agree", ""),
        (_row(700_000, ATTENTION), "named", "fvcore: scaled_dot_product_attention 30.0 %"),
        (_row(700_000), "failed", "fvcore: with these 70.0 % of ours: not explained"),
        (_row(600_000, ATTENTION), "failed", "fvcore: scaled_dot_product_attention 30.0 %, with these 90.0 % of ours: not explained"),
        (_row(1_300_000), "failed", "fvcore: with these 130.0 % of ours: not explained"),
        (_row(None), "silent", "fvcore: not counted: TypeError in fvcore"),
        (_row(1_000_000, uncounted=["torch and formula: aten::linalg_inv_ex"]), "failed", "torch and formula: aten::linalg_inv_ex"),
        (_row(1_000_000, content=True), "agree", "on one clip of noise, random weights"),
        ({"cell": {"system": "joint", "size": "Ti", "frames": 8}, "status": "refused", "reason": "no such size"}, "refused", "no such size"),
    ],
)
def test_a_cell_is_judged_by_whether_the_named_operators_make_up_the_difference(row: dict[str, Any], verdict: str, words: str) -> None:
    assert (counters.verdict(row), counters.told(row)) == (verdict, words)


def test_our_own_counters_have_to_agree() -> None:
    row = _row(1_000_000, macs=None, reason="the counters disagree")
    row["counters"]["torch"] = 900_000
    assert counters.verdict(row) == "failed"
    assert counters.told(row) == "the counters disagree"


def test_the_table_of_counters_sums_up_and_says_what_is_to_come() -> None:
    settings = {"resolution": 224, "classes": 400, "versions": {"torch": "2", "fvcore": "1", "ptflops": "0"}}
    text = counters.table(
        [_row(700_000, ATTENTION), _row(None)],
        settings,
        [{"system": "joint", "size": size, "frames": frames} for size in ("Ti", "S") for frames in (8, 16)],
    )
    assert text.splitlines()[2].startswith("Sizes Ti, S, 8 and 16 frames, 224 px, 400 classes")
    assert "* cells: 4, of which 2 are counted; **the rest is to come**" in text
    assert "* a witness could not count the model: 1 (joint in 1)" in text
    assert "| joint | Ti | 8 | 1.000 MMACs | 5.00 M | 0 | 700 kMACs (70.0 %) | 1.00 MMACs (100.0 %) |" in text
    assert "| **silent** |" in text
    assert "python -m tests.benchmarks.counters --systems joint --sizes Ti S --frames 8 16" in text


def _asked(folder: Path, *systems: str, resolution: int = 32) -> argparse.Namespace:
    out, table = folder / "counters.json", folder / "counters.md"
    return argparse.Namespace(systems=list(systems), sizes=["Ti"], frames=[8], resolution=resolution, classes=10, out=out, table=table)


def test_counting_some_cells_leaves_the_other_rows_and_marks_those_of_an_earlier_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def counted(context: object, system: str, *cell: object) -> dict[str, Any]:
        ran.append(system)
        return {key: value for key, value in _row(995_000).items() if key not in ("name", "cell")}

    monkeypatch.setattr(counters, "in_fresh_process", counted)
    monkeypatch.setattr(counters, "version_with", lambda system, roots: "first")
    assert counters.run(_asked(tmp_path, "vit_mean", "joint"))
    assert counters.run(_asked(tmp_path, "vit_mean", "joint"))
    assert ran == ["vit_mean", "joint"]
    assert "earlier code" not in (tmp_path / "counters.md").read_text(encoding="utf-8")
    monkeypatch.setattr(counters, "version_with", lambda system, roots: "second" if system == "joint" else "first")
    assert counters.run(_asked(tmp_path, "tome"))
    text = (tmp_path / "counters.md").read_text(encoding="utf-8")
    assert "cells: 3, of which 3 are counted\n" in text
    assert "**counted by an earlier code: 1**" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| system")]
    assert [(row.split(" | ")[0], row.endswith("agree, earlier code |")) for row in rows] == [
        ("| joint", True),
        ("| tome", False),
        ("| vit_mean", False),
    ]
    assert counters.run(_asked(tmp_path, "joint"))
    assert ran == ["vit_mean", "joint", "tome", "joint"]
    assert "earlier code" not in (tmp_path / "counters.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="resolution 32"):
        counters.run(_asked(tmp_path, "joint", resolution=64))


def _comparison(low: float, high: float, *flags: str) -> dict[str, Any]:
    return {"ratio": {"value": (low + high) / 2, "low": low, "high": high}, "flags": list(flags)}


SELF = {
    "system": "vit_mean", "size": "pico", "frames": 8, "resolution": 32, "threads": 2, "machine": "m", "seconds": 2.5, "load": 1, "anchor": "twin",
    "witnesses": False,
}  # fmt: skip


def test_flagged_comparisons_are_told_apart_from_those_that_have_to_hold() -> None:
    found = [_comparison(0.99, 1.01)] * 19 + [_comparison(1.01, 1.02)] + [_comparison(1.2, 1.6, "unstable", "contaminated")] * 3
    told = self_ratio.summary(found)
    assert (told["unflagged"]["hits"], told["unflagged"]["trials"], told["unflagged"]["one_below"]) == (19, 20, 1)
    assert (told["all"]["hits"], told["flags"]) == (19, {"unstable": 3, "contaminated": 3})
    assert self_ratio.missed(told, 1) == []
    text = self_ratio.table(found, SELF)
    assert "* As asked." in text
    assert "* Flagged: 3 of 23 (contaminated 3, unstable 3)." in text
    assert "1 core burnt beside it" in text
    assert "| without a flag | 20 | 95.0 % (75.1–99.9) | 1 / 0 | 1.00 |" in text


def test_wide_intervals_and_poor_coverage_are_not_as_asked() -> None:
    wide = self_ratio.summary([_comparison(0.9, 1.1)] * 10)
    assert self_ratio.missed(wide, 0) == ["holds 1 above 98 %, its interval reaches the band", "median half-width 10.0 %, above 2 %"]
    flagged = [_comparison(0.9, 1.1, "unstable")]
    assert self_ratio.missed(self_ratio.summary(flagged), 1) == []
    assert self_ratio.missed(self_ratio.summary(flagged), 0)
    assert "* Every row is flagged." in self_ratio.table(flagged, SELF)


def test_no_load_starts_nothing_and_more_than_the_cores_is_refused() -> None:
    with load.burning(0) as cores:
        assert cores == []
    with pytest.raises(UsageError, match="--load"), load.burning(100_000):
        pass
