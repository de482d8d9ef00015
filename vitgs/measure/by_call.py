"""Our MACs under the names that public counters know: the operator that a model called (`linear`, `matmul`), not those that it is made of."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from vitgs.measure.formula import FormulaCounter

ATTENTION = "scaled_dot_product_attention"


class ByCall(FormulaCounter):  # type: ignore[no-untyped-call]
    """`by_call` holds MACs by the operator called; in inference mode only, where composite operators arrive whole."""

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
