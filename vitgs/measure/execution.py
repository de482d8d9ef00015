"""How a model runs while it is timed: as it is, compiled by torch, or its kernels captured in a CUDA graph and replayed.

Compiling and capturing are apart from the first call, and what comes out must be what the model itself gives: a fast wrong answer is no speed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitgs.errors import UnfitMachine, UsageError
from vitgs.measure.setting import synchronise
from vitgs.measure.soundness import NotMeasurable

Forward = Callable[[Tensor], Tensor]
# Largest difference from the model's own logits, as a share of the largest of these: sums taken in another order, over the depth of a transformer.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
MOST_SHAPES = 64  # torch gives up compiling one function for ever more shapes, silently: enough for all batches of a search, both models
CAPTURE_WARMUP = 3


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`backend`: of `torch.compile`, None to run the model as it is. `cuda_graphs`: capture and replay, for models without host decisions."""

    backend: str | None = None
    cuda_graphs: bool = False


EAGER = Execution()


def check(execution: Execution, device: torch.device) -> None:
    """Raises, in one line, where this device or machine can't do it."""
    if execution.cuda_graphs and device.type != "cuda":
        raise UsageError("CUDA graphs need a CUDA device", given=device.type, remedy="leave --cuda-graphs out, or measure with --device cuda")
    if execution.backend == "inductor" and (lacking := _lacking(device)):
        raise UnfitMachine("torch.compile must find its tools", given=lacking, remedy="install them, or leave --compile out")


def _lacking(device: torch.device) -> str:
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "no triton"
    default = "clang++" if sys.platform == "darwin" else "g++"
    compilers = [os.environ.get("CXX") or default] if device.type == "cpu" else [os.environ.get("CC") or "gcc", "clang", "cc"]
    return "" if any(map(shutil.which, compilers)) else f"no C{'++' if device.type == 'cpu' else ''} compiler ({', '.join(compilers)})"


class Runner:
    """One model under one execution, made ready for each batch before it is timed there. To be used inside `torch.inference_mode()`."""

    def __init__(self, model: nn.Module, run: Mapping[str, object], execution: Execution, device: torch.device) -> None:
        self._model, self._run, self._execution, self._device = model, run, execution, device
        self._ready: dict[int, Forward] = {}
        self._graphs = 0
        self._facts: dict[str, Any] = {"compile_s": {}, "graphs": {}, "graph_breaks": {}, "capture_s": {}, "largest_difference": {}}

    @property
    def facts(self) -> dict[str, Any]:
        """By batch: seconds of compiling (the first call less the second; fewer where the compiler finds files of an earlier run), graphs, graph
        breaks, seconds of capturing, largest difference from the model's own logits (a share)."""
        return {name: dict(values) for name, values in self._facts.items() if values}

    def ready(self, batches: Sequence[Tensor]) -> Forward:
        """The call for such batches; compared with the model itself on the first two."""
        size = len(batches[0])
        if size not in self._ready:
            self._ready[size] = self._plain if self._execution == EAGER else self._prepared(batches[:2], size)
        return self._ready[size]

    def _plain(self, clips_BTCHW: Tensor) -> Tensor:
        logits: Tensor = self._model(clips_BTCHW, **self._run)
        return logits

    def _prepared(self, batches: Sequence[Tensor], size: int) -> Forward:
        wanted = [self._plain(clips).clone() for clips in batches]
        forward: Forward = self._plain
        if self._execution.backend is not None:
            forward = self._compiled(batches[0], size)
        if self._execution.cuda_graphs:
            began_s = time.perf_counter()
            forward = captured(forward, batches[0], self._device)
            self._facts["capture_s"][size] = time.perf_counter() - began_s
        self._facts["largest_difference"][size] = max(agree(forward(clips), logits) for clips, logits in zip(batches, wanted, strict=True))
        return forward

    def _compiled(self, clips_BTCHW: Tensor, size: int) -> Forward:
        made = torch.compile(self._model, backend=self._backend, dynamic=False)

        def forward(clips: Tensor) -> Tensor:
            logits: Tensor = made(clips, **self._run)
            return logits

        before = self._graphs
        with _quiet_compiler():
            first_s, second_s = (self._seconds(forward, clips_BTCHW) for _ in range(2))
        graphs = self._graphs - before
        if not graphs:
            raise NotMeasurable("torch.compile must compile something of a model", given="no graph", remedy="leave --compile out for this model")
        self._facts["compile_s"][size] = max(first_s - second_s, 0.0)
        self._facts["graphs"][size], self._facts["graph_breaks"][size] = graphs, graphs - 1
        return forward

    def _backend(self, module: Any, inputs: Any) -> Any:
        """The backend itself; torch keeps apart what different backend objects compiled, so no model gets another's graph, and all are counted."""
        self._graphs += 1
        compiler: Any = torch._dynamo.lookup_backend(str(self._execution.backend))
        return compiler(module, inputs)

    def _seconds(self, forward: Forward, clips: Tensor) -> float:
        synchronise(self._device)
        began_s = time.perf_counter()
        forward(clips)
        synchronise(self._device)
        return time.perf_counter() - began_s


def captured(forward: Forward, clips_BTCHW: Tensor, device: torch.device) -> Forward:
    """`forward` as one CUDA graph for clips of this shape; its result is overwritten by the next call."""
    with torch.cuda.device(device):
        held, side, graph = clips_BTCHW.clone(), torch.cuda.Stream(device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(CAPTURE_WARMUP):  # libraries choose their kernels and get their work space now, which a capture can't
                forward(held)
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(graph):
            logits = forward(held)

    def replayed(clips: Tensor) -> Tensor:
        held.copy_(clips)
        graph.replay()
        return logits

    return replayed


def agree(given: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest wanted logit; above what rounding explains, the model is not measurable this way."""
    if given.shape != wanted.shape:
        raise _differs(f"shape {tuple(given.shape)}, not {tuple(wanted.shape)}")
    scale = float(wanted.float().abs().max()) or 1.0
    difference = float((given.float() - wanted.float()).abs().max()) / scale
    if not difference <= TOLERANCE[wanted.dtype]:  # NaN must not pass
        raise _differs(f"a difference of {difference:.3g} of the largest logit, above {TOLERANCE[wanted.dtype]:g} for {wanted.dtype}")
    return difference


def _differs(how: str) -> NotMeasurable:
    rule = "a compiled or captured model must give the logits of the model itself"
    return NotMeasurable(rule, given=how, remedy="measure it without --compile and --cuda-graphs")


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """The compiler may warn about a model's code, and must fail where it would silently stop compiling."""
    import torch._dynamo

    patch: Any = torch._dynamo.config.patch
    with warnings.catch_warnings(), patch(recompile_limit=MOST_SHAPES, fail_on_recompile_limit_hit=True):
        warnings.simplefilter("ignore")
        yield
