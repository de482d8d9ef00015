"""How many MACs a public counter lost at which operator: what our formula counts under the names that the counter gives, as calls arrive."""

from __future__ import annotations

import copy
import importlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from vitgs.measure import witnesses
from vitgs.measure.cost import TOLERANCE, Cost
from vitgs.measure.formula import FormulaCounter
from vitgs.measure.setting import evaluating, no_fast_path
from vitgs.numbers import percent

WITNESSES = ("fvcore", "ptflops")
ATTENTION = "scaled_dot_product_attention"
NOTICED = 1e-4  # of all MACs: an operator that differs by less needs no name


class Named(TypedDict):
    """An operator's part in a counter's difference to ours; `how`: what the counter did, when it did count it."""

    missing_macs: int
    how: str


class ByCall(FormulaCounter):  # type: ignore[no-untyped-call]
    """Counts under the operator that a model called, not under those that it is made of: `linear`, `matmul`, `scaled_dot_product_attention`.

    In inference mode only, where composite operators arrive whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_call: Counter[str] = Counter()
        self._depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        before, self._depth = self.macs, self._depth + 1
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
            if self._depth == 0 and self.macs > before:
                self.by_call[canonical(func._schema.name)] += self.macs - before


def canonical(name: str) -> str:
    """One name for what torch, its tracer and fvcore call differently: `aten::_convolution`, `aten::conv2d` and `conv` are `conv`."""
    bare = re.sub(r"^\w+::_*", "", name)
    if "scaled_dot_product" in bare:
        return ATTENTION
    return "conv" if re.fullmatch(r"conv(olution.*|\dd)?", bare) else bare


def by_call(model: nn.Module, clip_1TCHW: Tensor, run: Mapping[str, object]) -> Counter[str]:
    """Our MACs by the operator called; `model` and clip on the same device."""
    counter = ByCall()
    with evaluating(model), no_fast_path(), torch.inference_mode(), counter:
        model(clip_1TCHW, **run)
    return counter.by_call


def by_fvcore(model: nn.Module, clip_1TCHW: Tensor) -> Counter[str]:
    """fvcore's MACs by operator, set up as the witness is."""
    with evaluating(model), torch.no_grad(), no_fast_path(), witnesses._quiet():
        fvcore: Any = importlib.import_module("fvcore.nn")
        analysis = fvcore.FlopCountAnalysis(model, clip_1TCHW).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        found: Counter[str] = Counter()
        for name, macs in analysis.tracer_warnings("none").by_operator().items():
            if name not in witnesses._ELEMENTWISE:
                found[canonical(name)] += int(macs)
    return found


def differs(witness: str, found: Cost) -> bool:
    """Whether the witness counted, and something else than our formula."""
    macs, ours = found.counters[witness], found.counters["formula"]
    return macs is not None and ours is not None and abs(macs - ours) > TOLERANCE * max(macs, ours)


def named_macs(model: nn.Module, clip_1TCHW: Tensor, found: Cost) -> dict[str, dict[str, Named]]:
    """By witness, what each operator costs by our formula that the witness named as unknown to it; empty for a witness that agrees or is silent.

    Where that leaves more than 1 % open and the witness is fvcore, each operator that it counts otherwise than we do is named with what it counted.
    """
    odd = [witness for witness in WITNESSES if differs(witness, found)]
    if not odd:
        return {witness: {} for witness in WITNESSES}
    # Shapes are enough, except where values decide them.
    there, clip = (model, clip_1TCHW) if found.device == "cpu" else (copy.deepcopy(model).to("meta"), clip_1TCHW.to("meta"))
    calls = by_call(there, clip, {})
    return {witness: _named(witness, calls, model, clip_1TCHW, found) if witness in odd else {} for witness in WITNESSES}


def _named(witness: str, calls: Mapping[str, int], model: nn.Module, clip_1TCHW: Tensor, found: Cost) -> dict[str, Named]:
    said = [line.removeprefix(f"{witness}: ") for line in found.uncounted if line.startswith(f"{witness}: ")]
    known = {operator: canonical(operator) for operator in said if canonical(operator) in calls}
    named = {operator: Named(missing_macs=calls[name], how="") for operator, name in known.items()}
    macs, ours = found.counters[witness], found.counters["formula"]
    assert macs is not None and ours is not None  # only witnesses that differ come here
    rest = ours - macs - sum(entry["missing_macs"] for entry in named.values())
    if witness == "fvcore" and abs(rest) > TOLERANCE * ours:
        theirs = by_fvcore(model, clip_1TCHW)
        for name, count in calls.items():
            if name not in known.values() and abs(count - theirs[name]) > NOTICED * ours:
                named[name] = Named(missing_macs=count - theirs[name], how=f" ({percent(theirs[name] / count, 0)} % of it counted)")
    return named
