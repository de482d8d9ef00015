"""The answer in words: the best system at each level of compute on each data set, as far as the intervals allow one to say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vitgs.numbers import interval, significant
from vitgs.report.best import leaders_by_system
from vitgs.report.compare import Verdict, better_rule, equal_macs, tied_with
from vitgs.report.points import ANCHOR, METHOD, Book, Point

# Halves with a fifth of room: a system that keeps an eighth of the tokens pays for choosing them.
SHARES = ((0.15, "15 %"), (0.3, "30 %"), (0.6, "60 %"), (1.0, "100 %"))


@dataclass(frozen=True, kw_only=True)
class Level:
    """The best at no more than `macs`. `ties` can't be told from `leader`."""

    share: str
    macs: float
    leader: Point | None
    ties: tuple[Point, ...]

    @property
    def leader_text(self) -> str:
        return "–" if self.leader is None else self.leader.name.full

    @property
    def top1_text(self) -> str:
        if self.leader is None:
            return "–"
        e = self.leader.top1.estimate
        return interval(e.value, e.low, e.high, scale=100)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One data set on one machine: the levels, and the verdicts at equal compute."""

    machine: str
    data: str
    anchored: bool
    levels: tuple[Level, ...]
    verdicts: tuple[Verdict, ...]


def answers(book: Book) -> list[Answer]:
    """An answer for each machine and data set that has accuracies and compute."""
    found = []
    for machine in book.machines:
        for data in book.data_sets:
            points = [p for p in better_rule(book.of(machine, data)) if p.cost.macs is not None and p.top1.estimate.value is not None]
            if points:
                found.append(_answer(machine, data, points))
    return found


def _answer(machine: str, data: str, points: Sequence[Point]) -> Answer:
    anchor = max((p.cost.macs or 0.0 for p in points if p.configuration.system == ANCHOR), default=None)
    full = anchor if anchor is not None else max(p.cost.macs or 0.0 for p in points)
    levels = tuple(_level(points, share * full, text) for share, text in SHARES)
    verdicts = tuple(equal_macs(points))
    return Answer(
        machine=machine,
        data=data,
        anchored=anchor is not None,
        levels=levels,
        verdicts=verdicts,
    )


def _level(points: Sequence[Point], macs: float, share: str) -> Level:
    # A hair of room, so that the anchor itself is within its own compute.
    leaders = leaders_by_system([p for p in points if (p.cost.macs or 0.0) <= macs * (1 + 1e-9)])
    return Level(share=share, macs=macs, leader=leaders[0] if leaders else None, ties=tuple(tied_with(leaders[0], leaders[1:])) if leaders else ())


def paragraph(found: Sequence[Answer]) -> str:
    """The findings of all data sets, level by level, levels with the same findings together; then the method's at equal compute."""
    if not found:
        return ""
    several = len({answer.machine for answer in found}) > 1
    together: dict[str, list[str]] = {}
    for i, (_, share) in enumerate(SHARES):
        where: dict[str, list[str]] = {}
        for answer in found:
            where.setdefault(_finding(answer.levels[i]), []).append(answer.data + (f" ({answer.machine})" if several else ""))
        together.setdefault("; ".join(f"{finding} on {_listed(names)}" for finding, names in where.items()), []).append(share)
    whole = f"{ANCHOR}'s compute" if all(answer.anchored for answer in found) else "the dearest system's compute"
    sentences = [f"Within {_listed(shares)} of {whole}, {text}." for text, shares in together.items()]
    return " ".join(filter(None, (*sentences, method_summary(found))))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _finding(level: Level) -> str:
    if level.leader is None:
        return "no system has a point"
    if not level.ties:
        return f"{level.leader.configuration.system} is the most accurate"
    names = [level.leader.configuration.system, *(p.configuration.system for p in level.ties)]
    return f"{_listed(names)} tie" if len(names) <= 3 else f"{names[0]} ties with {len(names) - 1} others"


def method_summary(found: Sequence[Answer]) -> str:
    """One sentence on the method at equal compute over all data sets; empty where it was not run."""
    words = Counter(verdict.word for answer in found for verdict in answer.verdicts if any(v.ours for v in answer.verdicts))
    compared = words["above"] + words["tie"] + words["below"]
    if not compared:
        return ""
    parts = [
        f"{text} in {'all' if words[word] == compared else words[word]}"
        for word, text in (("above", "above"), ("tie", "tied"), ("below", "below"))
        if words[word]
    ]
    unmatched = f"; {words['no point that cheap']} cheaper points have no counterpart" if words["no point that cheap"] else ""
    return f"At equal compute or less, {METHOD} is {', '.join(parts)} of {compared} comparisons with other systems{unmatched}."


def level_macs_text(level: Level) -> str:
    """`≤ 1.23 GMACs`."""
    return f"≤ {significant(level.macs * 1e-9)} GMACs"
