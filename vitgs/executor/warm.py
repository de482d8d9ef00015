"""What the server of forks imports once, so that each job's process has it without paying: seconds of imports otherwise, for jobs of seconds.

Only imports and syntax trees: nothing here may start a thread or touch a device, for a forked process would get neither in order.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings

from vitgs import registry
from vitgs.errors import VitgsError
from vitgs.record import Kind
from vitgs.store.code import code_version

# What these otherwise import on first use: the digits, the optimiser's first step, the counters.
_LATE = ("vitgs.run", "sklearn.datasets", "torch._dynamo", "fvcore.nn", "ptflops.aten_ops")
_KINDS: tuple[Kind, ...] = ("train", "eval", "measure")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _module in _LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(_module)
for _system in registry.names():
    for _kind in _KINDS:
        with contextlib.suppress(VitgsError, SyntaxError):
            code_version(_system, _kind)
