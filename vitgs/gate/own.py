"""The gate as a function, for anybody's models: two cases, in this process.

    from vitgs.gate import Case, compare

    found = compare(Case(make=before), Case(make=after))   # before() -> (module, input)
    assert not found.regressed, found

The exact tier needs seconds. The timed tier is asked for with `seconds`; both models then share this process, so that what differs between two
processes (the placing of memory, above all) is not averaged over as `gate run` does it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitgs.gate import exact, timed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Case:
    """`make()` returns a module and its input: one tensor, or a tuple of the module's arguments. It is called with the same random seed each time."""

    make: Callable[[], tuple[nn.Module, Any]]
    name: str = "model"
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What differs; `timed` is None where no time was asked for."""

    findings: tuple[exact.Finding, ...]
    timed: timed.Timed | None = None

    @property
    def regressed(self) -> bool:
        """Whether anything is worse, by either tier."""
        return any(f.kind == "regression" for f in self.findings) or (self.timed is not None and self.timed.outcome == "slower")


def compare(base: Case, head: Case, *, seconds: float = 0.0, threshold: float = 0.02, allowed: Collection[str] = ()) -> Outcome:
    """What `head` does more of than `base`; with `seconds`, also whether it is slower by more than `threshold`.

    `threshold` is wider than the 1 % of the suite `gate`, since one process is one placing of memory. `allowed`: quantities that may grow
    ("parameters", say).
    """
    findings = exact.compare(head.name, _read(base), _read(head), allowed=allowed)
    if seconds <= 0:
        return Outcome(findings=tuple(findings))
    (judged,) = timed.judge(_sampler(base, head), {head.name: threshold}, seconds=seconds)
    return Outcome(findings=tuple(findings), timed=judged)


def _read(case: Case) -> dict[str, Any]:
    from vitgs.backbone import stages
    from vitgs.gate import graphs, probe

    model, given = _made(case)
    found = probe.examine(model, given, stages.recording)
    return {**found, "quantities": found["quantities"] | {"graph breaks": graphs.breaks(model, given)}}


def _made(case: Case) -> tuple[nn.Module, tuple[tuple[Any, ...], Mapping[str, Any]]]:
    import torch
    from torch.utils._pytree import tree_map_only

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model, example = case.make()
    args = tree_map_only(torch.Tensor, lambda t: t.to(case.device), example if isinstance(example, tuple) else (example,))
    return model.to(case.device).eval(), (args, {})


def _sampler(base: Case, head: Case) -> timed.Sampler:
    from vitgs.gate.blocks import Warm

    rng = random.Random(0)
    sides = {"base": Warm(*_made(base), device=base.device), "head": Warm(*_made(head), device=head.device)}

    def sample(names: Sequence[str]) -> dict[str, timed.Pair]:
        return {name: timed.paired(lambda side: sides[side].block(timed.CALLS), rng, seconds=timed.SHORTEST_S) for name in names}

    return sample
