"""Two public counters, fvcore and ptflops, beside ours: they leave things out (fused attention above all), and the record names what.

Asked only on request: both are slow, and both are optional dependencies. ptflops is run with its `aten` back end, which patches nothing;
its default back end replaces functions of torch for the whole process. Both leave hooks on what they count, so they get a copy.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitgs.measure.by_call import ByCall, canonical
from vitgs.measure.setting import evaluating, no_fast_path
from vitgs.numbers import percent

NAMES = ("fvcore", "ptflops")
NOTICED = 1e-4  # of all MACs: an operator that a witness counts otherwise by less needs no name
_ELEMENTWISE = (
    "batch_norm",
    "group_norm",
    "layer_norm",
    "instance_norm",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "adaptive_avg_pool2d",
    "grid_sampler",
)
_COSTLY = re.compile(
    r"^(?!.*upsample).*(attention|matmul|einsum|mm$|conv|linear|gru|lstm|rnn|cdist)"
)  # names that fvcore gives to operators that cost MACs
# What deep copies, fvcore's tracer and its formulas raise on some models.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a witness lacks of an operator: MACs by our formula (below 0 where it counts more), beside the `counted` that it does have.

    Of an operator that both of ours count, and alike, the witness may have another opinion: it is named. What a witness counts alone, ours may have
    forgotten: that explains nothing.
    """

    macs: int
    counted: int = 0

    @property
    def explains(self) -> bool:
        return self.macs + self.counted > 0

    @property
    def how(self) -> str:
        """What the witness did with it, when it did count it."""
        if not self.counted:
            return ""
        ours = self.macs + self.counted
        return f" ({percent(self.counted / ours, 0)} % of it counted)" if ours else " (counted by it alone)"


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What a public counter said: MACs, or None with the reason; and by operator what it lacks."""

    macs: int | None
    left_out: Mapping[str, Missing] = field(default_factory=dict)
    reason: str = ""

    def said(self, macs: int, tolerance: float) -> tuple[str, ...]:
        """What the row must say about this witness, ours being `macs`; empty when it agrees and knows every operator."""
        if self.macs is None:
            return (self.reason,)
        named = tuple(f"{operator}{missing.how}" for operator, missing in self.left_out.items())
        return named if self.explained(macs, tolerance) else (*named, self.open(macs))

    def explained(self, macs: int, tolerance: float) -> bool:
        """Whether it agrees with ours, alone or with what it lacks by name; a witness that could not count says nothing against us."""
        return self.macs is None or near(self.macs, macs, tolerance) or near(self._with_named, macs, tolerance)

    def open(self, macs: int) -> str:
        """The difference that no name explains, in words."""
        known = [operator for operator, missing in self.left_out.items() if missing.explains]
        named = f" with {', '.join(known)} added" if known else ""
        alone = [operator for operator, missing in self.left_out.items() if not missing.explains]
        of = f"counts {', '.join(alone)}, which ours don't" if alone else "no operator named"
        return f"differs by {self._with_named / max(macs, 1) - 1:+.1%}{named}, {of}"

    @property
    def _with_named(self) -> int:
        return (self.macs or 0) + sum(missing.macs for missing in self.left_out.values() if missing.explains)


def near(one: int, other: int, tolerance: float) -> bool:
    """Whether two counts differ by no more than this share of the larger."""
    return abs(one - other) <= tolerance * max(one, other)


class _Bound(nn.Module):
    """A model with its run knobs fixed, because both witnesses call models with tensors only."""

    def __init__(self, model: nn.Module, run: Mapping[str, object]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.model(clip, **self.run)
        return logits


class _PlainSizes(TorchFunctionMode):
    """Sizes as numbers while a model is traced, as everywhere else: the tracer gives tensors, which `round()` and others refuse."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (Tensor.shape.__get__, Tensor.size) and isinstance(found, tuple):  # type: ignore[attr-defined]
            return torch.Size([int(size) for size in found])
        return int(found) if func in (Tensor.size, Tensor.numel, Tensor.nelement) else found


def ask(model: nn.Module, clip_1TCHW: Tensor, run: Mapping[str, object], *, tolerance: float) -> dict[str, Witness]:
    """Both witnesses, on CPU; `model` stays as it is."""
    try:
        bound = _Bound(_copied(model), run)
    except _FAILURES as error:
        return dict.fromkeys(NAMES, Witness(macs=None, reason=f"not counted: the model can't be copied ({type(error).__name__})"))
    with evaluating(bound), no_fast_path():
        # Our own count on CPU (attention is fused, on the meta device it isn't): tells which omissions matter, and how much.
        with torch.inference_mode(), ByCall() as ours:
            bound(clip_1TCHW)
        with torch.no_grad(), _quiet():
            by_fvcore = _fvcore(bound, clip_1TCHW, ours.by_call, tolerance)
            return {"fvcore": by_fvcore, "ptflops": _ptflops(bound, clip_1TCHW, ours.by_operator, tolerance)}


def _copied(model: nn.Module) -> nn.Module:
    # The parameters themselves are shared: a copy costs no memory to speak of.
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _fvcore(bound: nn.Module, clip: Tensor, calls: Mapping[str, int], tolerance: float) -> Witness:
    try:
        fvcore: Any = importlib.import_module("fvcore.nn")
    except ImportError as error:
        return Witness(macs=None, reason=f"not counted: {error}")
    analysis = fvcore.FlopCountAnalysis(bound, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    # fvcore counts a few FLOPs a value for norms and resizing, which no MAC count has: set to nothing, so that the same thing is compared.
    analysis.set_op_handle(**{f"aten::{name}": lambda inputs, outputs: 0 for name in _ELEMENTWISE})
    try:
        with _PlainSizes():
            total, unsupported, by_operator = int(analysis.total()), analysis.unsupported_ops(), analysis.by_operator()
    except _FAILURES as error:
        return Witness(macs=None, reason=f"not counted: {type(error).__name__} in fvcore")
    theirs: Counter[str] = Counter()
    for name, macs in by_operator.items():
        theirs[canonical(name)] += int(macs)
    unknown = {canonical(name): name for name in sorted(unsupported, reverse=True) if _COSTLY.search(name)}
    return Witness(macs=total, left_out=_lacking(total, calls, theirs, unknown, tolerance))


def _lacking(total: int, ours: Mapping[str, int], theirs: Counter[str], unknown: Mapping[str, str], tolerance: float) -> dict[str, Missing]:
    """What a witness has no formula for (`unknown`, to the name to give it); where that leaves more open, each operator that it counts otherwise."""

    def missing(name: str) -> Missing:
        return Missing(macs=ours.get(name, 0) - theirs[name], counted=theirs[name])

    lacks, whole = {name: missing(name) for name in unknown}, sum(ours.values())
    if not near(total + sum(lack.macs for lack in lacks.values()), whole, tolerance):
        others = {name: missing(name) for name in {*ours, *theirs} - set(unknown)}
        lacks |= {name: other for name, other in others.items() if abs(other.macs) > NOTICED * whole}
    return {unknown.get(name, name): lack for name, lack in sorted(lacks.items())}


def _ptflops(bound: nn.Module, clip: Tensor, heavy: Mapping[str, int], tolerance: float) -> Witness:
    try:
        ptflops: Any = importlib.import_module("ptflops")
        operators: Any = importlib.import_module("ptflops.aten_ops")
    except ImportError as error:
        return Witness(macs=None, reason=f"not counted: {error}")
    counted: Counter[str] = Counter()

    def told(packet: Any, formula: Callable[[Any, Any], int]) -> Callable[[Any, Any], int]:
        def macs(inputs: Any, outputs: Any) -> int:
            found = formula(inputs, outputs)
            counted[packet._qualified_op_name] += found
            return found

        return macs

    # Its own formulas without the bias, which it alone would count as MACs.
    unbiased = {
        torch.ops.aten.addmm: lambda inputs, outputs: operators.addmm_flop((None, *inputs[1:]), outputs),
        torch.ops.aten.convolution: lambda inputs, outputs: operators.conv_flop((*inputs[:2], None, *inputs[3:]), outputs),
    }
    formulas = {**operators.ATEN_OPS_MAPPING, **unbiased}
    macs, _ = ptflops.get_model_complexity_info(
        bound,
        (1,),
        input_constructor=lambda _: {"clip": clip},
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        custom_modules_hooks={packet: told(packet, formula) for packet, formula in formulas.items()},
        ost=io.StringIO(),
    )
    if macs is None:
        return Witness(macs=None, reason="not counted: ptflops failed on this model")
    known = {packet._qualified_op_name for packet in formulas}
    unknown = {name: name for name in heavy if name not in known}
    return Witness(macs=int(macs), left_out=_lacking(int(macs), heavy, counted, unknown, tolerance))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # fvcore imports torch.jit.script and traces (deprecated, and data-dependent branches warn); ptflops prints. None of it concerns the user.
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
