"""An outcome in words: one line for each finding, what was timed, what was left out and why, and the verdict last. The same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from vitgs.gate.calibrate import Calibrated
from vitgs.gate.drive import Compared, Report
from vitgs.gate.timed import Timed
from vitgs.measure.shares import clopper_pearson
from vitgs.numbers import percent

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
_WORDS = {
    "slower": "SLOWER",
    "faster": "FASTER",
    "same": "no change beyond the threshold",
    "open": "no slowdown shown, none excluded",
    "noisy": "too noisy to judge",
}
_KINDS = {"regression": "WORSE", "allowed": "more, allowed", "improvement": "BETTER", "unknown": "not counted"}


def tables(report: Report) -> list[Table]:
    """Title, header and rows of each table that has rows."""
    found = _tables(report, _KINDS)
    if report.drift:
        since = f" since {report.drift.revision[:10]} (told, never a regression)"
        found += [(title + since, header, rows) for title, header, rows in _tables(report.drift, {**_KINDS, "regression": "more"})]
    return [table for table in found if table[2]]


def _tables(of: Report | Compared, kinds: Mapping[str, str]) -> list[Table]:
    counted = [(kinds[f.kind], f.case, f.quantity, f.change, f.place, f.detail) for f in of.findings]
    left_out = [*of.left_out.items(), *((name, "calibrated as too noisy to be timed here") for name in of.refused)]
    times = [(_WORDS[t.outcome], t.case, _ratio(t), f"{percent(t.threshold)} %", _rounds(t)) for t in of.timed]
    return [
        ("Counted", ("", "case", "quantity", "base -> head", "where", "what"), list(counted)),
        ("Timed", ("", "case", "head / base [95 %]", "threshold", "rounds"), list(times)),
        ("Left out", ("case", "why"), list(left_out)),
    ]


def verdict(report: Report) -> str:
    """The last line."""
    worse = [f"{f.case}: {f.quantity} {f.change}{f' in {f.place}' if f.place else ''}" for f in report.findings if f.kind == "regression"]
    worse += [f"{t.case}: {percent(t.ratio - 1)} % slower" for t in report.timed if t.outcome == "slower"]
    better = sum(f.kind == "improvement" for f in report.findings) + sum(t.outcome == "faster" for t in report.timed)
    gained = (f"; {better} improvement{'s' * (better > 1)}" if better else "") + _drifted(report.drift)
    if worse:
        return f"regression: {'; '.join(worse)}{gained}"
    where = f"in {len(report.compared)} case{'s' * (len(report.compared) > 1)}, {'counted alone' if report.tier == 'exact' else 'counted and timed'}"
    if report.unfit:
        return f"unfit: every case was too noisy to be timed on this machine (see gate calibrate, doctor){gained}"
    undecided = [t.case for t in report.timed if t.outcome in ("open", "noisy")] + list(report.refused)
    doubt = f"; time can't tell of {', '.join(undecided)}" if undecided else ""
    return f"no regression {where}{doubt}{gained}"


def _drifted(drift: Compared | None) -> str:
    """What has become slower since the older revision, for the last line."""
    slower = [f"{t.case} {percent(t.ratio - 1)} % slower" for t in drift.timed if t.outcome == "slower"] if drift else []
    return f"; since {drift.revision[:10]}: {', '.join(slower)}" if drift and slower else ""


def calibration_table(found: Calibrated) -> Table:
    """What each case can show on this machine."""
    rows: list[tuple[str, ...]] = [
        (
            name, f"{percent(case.noise_floor, 2)} %", f"{percent(case.smallest)} % [{percent(case.smallest_low)}, {percent(case.smallest_high)}]",
            _alarms(case.alarms, found.runs), "refused: too noisy" if case.refused else "",
        )
        for name, case in found.cases.items()
    ]  # fmt: skip
    return "Calibration", ("case", "noise floor", "smallest slowdown found in 9 of 10 [95 %]", "false alarms [95 %]", ""), rows


def _alarms(hits: int, runs: int) -> str:
    low, high = clopper_pearson(hits, runs)
    return f"{hits} of {runs} [{percent(low)}, {percent(high)}] %"


def calibration_verdict(found: Calibrated) -> str:
    """The false alarms with their interval."""
    rounds = next((case.rounds_a_run for case in found.cases.values()), 0)
    interval = f"[{percent(found.low)}, {percent(found.high)}] % with 95 % confidence, before confirmation; {rounds} rounds a run"
    return f"false alarms: {found.alarms} of {found.runs} runs of head against head, {interval}"


def _ratio(timed: Timed) -> str:
    return f"{timed.ratio:.3f} [{timed.low:.3f}, {timed.high:.3f}]"


def _rounds(timed: Timed) -> str:
    again = f" + {len(timed.again_ms)} to confirm" if timed.again_ms else ""
    return f"{len(timed.samples_ms)}{again}{', not confirmed' if timed.unconfirmed else ''}"
