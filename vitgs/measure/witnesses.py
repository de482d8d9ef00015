"""Two public counters, fvcore and ptflops, beside ours: they leave things out (fused attention above all), and the record names what.

Asked only on request: both are slow, and both are optional dependencies. ptflops is run with its `aten` back end, which patches nothing;
its default back end replaces functions of torch for the whole process.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitgs.measure.formula import FormulaCounter
from vitgs.measure.setting import evaluating, no_fast_path

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
_COSTLY = re.compile(r"attention|matmul|einsum|mm$|conv|linear|gru|lstm|rnn|cdist")  # names that fvcore gives to operators that cost MACs


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What a public counter said: MACs, or None with the reason; and the counted-by-us operators that it has no formula for."""

    macs: int | None
    missing: tuple[str, ...] = ()
    reason: str = ""

    def left_out(self, macs: int, tolerance: float) -> tuple[str, ...]:
        """What the row must say about this witness; empty when it agrees."""
        if self.macs is None:
            return (self.reason,)
        if abs(self.macs - macs) <= tolerance * max(macs, self.macs):
            return self.missing
        return self.missing or (f"differs by {self.macs / max(macs, 1) - 1:+.1%}, no operator named",)


class _Bound(nn.Module):
    """A model with its run knobs fixed, because both witnesses call models with tensors only."""

    def __init__(self, model: nn.Module, run: Mapping[str, object]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.model(clip, **self.run)
        return logits


def ask(model: nn.Module, clip_1TCHW: Tensor, run: Mapping[str, object]) -> dict[str, Witness]:
    """Both witnesses, on CPU."""
    bound = _Bound(model, run)
    with evaluating(bound), torch.no_grad(), no_fast_path():
        # Operators that cost MACs here on CPU (attention is fused, on the meta device it isn't): tells which omissions matter.
        with FormulaCounter() as ours:
            bound(clip_1TCHW)
        with _quiet():
            return {"fvcore": _fvcore(bound, clip_1TCHW), "ptflops": _ptflops(bound, clip_1TCHW, ours.by_operator)}


def _fvcore(bound: nn.Module, clip: Tensor) -> Witness:
    try:
        fvcore: Any = importlib.import_module("fvcore.nn")
    except ImportError as error:
        return Witness(macs=None, reason=f"not counted: {error}")
    analysis = fvcore.FlopCountAnalysis(bound, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    # fvcore counts a few FLOPs a value for norms and resizing, which no MAC count has: set to nothing, so that the same thing is compared.
    analysis.set_op_handle(**{f"aten::{name}": lambda inputs, outputs: 0 for name in _ELEMENTWISE})
    try:
        total, unsupported = int(analysis.total()), analysis.unsupported_ops()
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError) as error:  # its tracer and its formulas fail on some models
        return Witness(macs=None, reason=f"not counted: {type(error).__name__} in fvcore")
    return Witness(macs=total, missing=tuple(sorted(name for name in unsupported if _COSTLY.search(name))))


def _ptflops(bound: nn.Module, clip: Tensor, heavy: Mapping[str, int]) -> Witness:
    try:
        ptflops: Any = importlib.import_module("ptflops")
        operators: Any = importlib.import_module("ptflops.aten_ops")
    except ImportError as error:
        return Witness(macs=None, reason=f"not counted: {error}")
    known = {packet._qualified_op_name for packet in operators.ATEN_OPS_MAPPING}
    # Its own formulas without the bias, which it alone would count as MACs.
    unbiased = {
        torch.ops.aten.addmm: lambda inputs, outputs: operators.addmm_flop((None, *inputs[1:]), outputs),
        torch.ops.aten.convolution: lambda inputs, outputs: operators.conv_flop((*inputs[:2], None, *inputs[3:]), outputs),
    }
    macs, _ = ptflops.get_model_complexity_info(
        bound,
        (1,),
        input_constructor=lambda _: {"clip": clip},
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        custom_modules_hooks=unbiased,
        ost=io.StringIO(),
    )
    if macs is None:
        return Witness(macs=None, reason="not counted: ptflops failed on this model")
    return Witness(macs=int(macs), missing=tuple(sorted(name for name in heavy if name not in known)))


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
