"""Our own count of multiply-accumulates (MACs) from the shapes of the operators that run, written independently of torch's counter, which it checks.

Counted: matrix products, convolutions and attention, dense and unmasked as in the literature (a mask doesn't make fused attention cheaper).
Not counted, by every counter's convention: elementwise arithmetic, norms, softmax, biases, sorting and gathering; those cost time and no MACs.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitgs.backbone import stages

Shape = Sequence[int]

OTHER = "other"


def product_macs(left: Shape, right: Shape) -> int:
    """`(..., m, k) @ (..., k, n)`, or a matrix by a vector `(m, k) @ (k,)`, or two vectors."""
    return math.prod(left) * (right[-1] if len(right) > 1 else 1)


def convolution_macs(x: Shape, weight: Shape, out: Shape, *, transposed: bool) -> int:
    """Each output value (each input value, when transposed) meets one filter: `weight` is (out, in / groups, *kernel)."""
    return math.prod(x if transposed else out) * math.prod(weight[1:])


def attention_macs(query: Shape, key: Shape, value: Shape) -> int:
    """Scores and weighted sum: `(..., N, d)` against `(..., S, d)` and `(..., S, e)`; grouped heads are those of the query."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def distance_macs(left: Shape, right: Shape) -> int:
    """All pairwise distances of `(..., P, d)` and `(..., R, d)`: one multiply-accumulate for each coordinate."""
    return math.prod(left) * right[-2]


def _first_two(args: Sequence[Any], out: Tensor) -> int:
    return product_macs(args[0].shape, args[1].shape)


def _last_two(args: Sequence[Any], out: Tensor) -> int:
    return product_macs(args[1].shape, args[2].shape)


def _convolution(args: Sequence[Any], out: Tensor) -> int:
    return convolution_macs(args[0].shape, args[1].shape, out.shape, transposed=bool(args[6]))


def _plain_convolution(args: Sequence[Any], out: Tensor) -> int:
    return convolution_macs(args[0].shape, args[1].shape, out.shape, transposed=False)


def _attention(args: Sequence[Any], out: Tensor) -> int:
    return attention_macs(args[0].shape, args[1].shape, args[2].shape)


def _distance(args: Sequence[Any], out: Tensor) -> int:
    return distance_macs(args[0].shape, args[1].shape)


FORMULAS: Mapping[str, Callable[[Sequence[Any], Tensor], int]] = {
    **dict.fromkeys(("aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot", "aten::_int_mm", "aten::_scaled_mm"), _first_two),
    **dict.fromkeys(("aten::addmm", "aten::baddbmm", "aten::addmv", "aten::addbmm"), _last_two),
    **dict.fromkeys(("aten::convolution", "aten::_convolution", "aten::convolution_overrideable"), _convolution),
    **dict.fromkeys(("aten::_slow_conv2d_forward", "aten::cudnn_convolution", "aten::mkldnn_convolution"), _plain_convolution),
    **dict.fromkeys(
        (
            "aten::scaled_dot_product_attention",
            "aten::_scaled_dot_product_attention_math_for_mps",
            "aten::_scaled_dot_product_cudnn_attention",
            "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
    **dict.fromkeys(("aten::_cdist_forward", "aten::_euclidean_dist"), _distance),
}

# Operators that do arithmetic worth counting and that no formula here describes: a model that runs one is not fully counted, and its cost says so.
UNDESCRIBED = frozenset(
    {
        "aten::_native_multi_head_attention",
        "aten::_transformer_encoder_layer_fwd",
        "aten::_efficient_attention_forward",
        "aten::_flash_attention_forward",
        "aten::mkldnn_rnn_layer",
        "aten::_cudnn_rnn",
        "aten::_fft_r2c",
        "aten::_fft_c2c",
        "aten::_fft_c2r",
        "aten::grid_sampler_2d",
        "aten::grid_sampler_3d",
        "aten::_trilinear",
    }
)


def _undescribed(name: str) -> bool:
    namespace, _, operator = name.partition("::")
    return name in UNDESCRIBED or (operator.startswith("linalg_") and "norm" not in operator) or namespace not in ("aten", "prim", "prims")


class FormulaCounter(TorchDispatchMode):
    """Counts under `with`. `by_operator` and `by_stage` hold MACs; `undescribed` the operators that have arithmetic but no formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_operator: Counter[str] = Counter()
        self.by_stage: defaultdict[str, int] = defaultdict(int)
        self.undescribed: set[str] = set()
        self.staged = False
        self._stack: list[str] = []
        self._listening: list[AbstractContextManager[None]] = []

    @property
    def macs(self) -> int:
        return self.by_operator.total()

    def enter(self, name: str) -> None:
        """A stage begins; own MACs go to the innermost stage."""
        self.staged = True
        self._stack.append(name)

    def exit(self, name: str) -> None:
        self._stack.pop()

    def __enter__(self) -> Self:
        # Entered again for each composite operator; the stages are listened to once.
        listening = contextlib.nullcontext() if self._listening else stages.recording(self)
        listening.__enter__()
        self._listening.append(listening)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._listening.pop().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name: str = func._schema.name
        formula = FORMULAS.get(name)
        if formula is None:
            # Composite operators (linear, einsum, a recurrent layer) arrive whole in inference mode: count what they are made of.
            with self:
                made_of = func.decompose(*args, **kwargs)
            if made_of is not NotImplemented:
                return made_of
            if _undescribed(name):
                self.undescribed.add(name)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        first = result if isinstance(result, Tensor) else result[0]
        self.add(name, formula(_positional(func, args, kwargs), first))
        return result

    def add(self, operator: str, macs: int) -> None:
        """So many MACs by this operator, at the place where the model is."""
        self.by_operator[operator] += macs
        self.by_stage[self._stack[-1] if self._stack else OTHER] += macs


def _positional(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    if not kwargs:
        return args
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)
    return tuple(given.get(a.name, a.default_value if a.has_default_value() else None) for a in func._schema.arguments)


def operator_packets(names: Sequence[str]) -> dict[str, Any]:
    """The operators of that name which this torch has."""
    found = {name: getattr(torch.ops.aten, name.removeprefix("aten::"), None) for name in names}
    return {name: packet for name, packet in found.items() if packet is not None}
