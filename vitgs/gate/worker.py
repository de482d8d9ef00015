"""The process that works in one tree, or forks into those of several: requests and answers are JSON lines. `sides` starts it.

The head's file runs in both trees. Of the tree it relies on what stays: `registry.get`, `System.build`, `Clip`; or, for models of one's own, a
function `package.module:factory` that returns a module and its input. The head's `vitgs.gate` is put into whatever `vitgs` the tree has.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from torch import nn

    from vitgs.gate.blocks import Warm

Made = tuple["nn.Module", tuple[tuple[Any, ...], Mapping[str, Any]]]


class Lacking(Exception):
    """This tree doesn't have the case: the system or the factory, or a knob that it sets."""


def serve(tree: Path, requests: TextIO, answers: TextIO) -> None:
    """Answers until the requests end. An answer is `{"ok": …}`, or `{"lacks": why}`, or `{"fails": why}`."""
    warm: dict[str, Warm] = {}
    for line in requests:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": _answer(tree, request, warm)}
        except Lacking as error:
            answer = {"lacks": _short(error)}
        except Exception as error:  # the process boundary: what went wrong is the parent's to judge
            answer = {"fails": f"{type(error).__name__}: {_short(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(tree: Path, request: Mapping[str, Any], warm: dict[str, Warm]) -> Any:
    case = request["case"]
    if request["do"] == "exact":
        from vitgs.gate import probe

        return probe.examine(*make(case, tree), _recording())
    if request["do"] == "breaks":
        from vitgs.gate import graphs

        return graphs.breaks(*make(case, tree))
    from vitgs.gate.blocks import Warm

    _settle(request.get("cores"))
    if case["name"] not in warm:
        warm[case["name"]] = Warm(*make(case, tree), device=case.get("device", "cpu"))
    _threads(case)
    return warm[case["name"]].block(request["calls"]) if request["do"] == "block" else None


def _threads(case: Mapping[str, Any]) -> None:
    import torch

    torch.set_num_threads(case.get("threads", 1))


def _settle(cores: Collection[int] | None) -> None:
    """Both sides on the same cores: others, and a host that shares them, then slow both alike."""
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core that has been taken away meanwhile: anywhere, then
            os.sched_setaffinity(0, cores)


def _recording() -> Any:
    """How the tree's models tell of their stages; None in a tree that has none. A place is told less well without, nothing else."""
    try:
        return importlib.import_module("vitgs.backbone.stages").recording
    except (ImportError, AttributeError):
        return None


def make(case: Mapping[str, Any], tree: Path) -> Made:
    """The case's model and input on its device, the same in every tree."""
    import torch
    from torch.utils._pytree import tree_map_only

    _threads(case)
    torch.manual_seed(0)
    device = case.get("device", "cpu")
    model, given = _factory(case, tree) if case.get("factory") else _system(case, tree)
    _refill(model)
    args = tree_map_only(torch.Tensor, lambda t: t.to(device), given[0])
    return model.to(device).eval().requires_grad_(False), (args, given[1])


def _system(case: Mapping[str, Any], tree: Path) -> Made:
    import torch

    registry, record = importlib.import_module("vitgs.registry"), importlib.import_module("vitgs.spec")
    _of_tree(registry, tree)
    clip = record.Clip(frames=case["frames"], height=case["height"], width=case["width"], classes=case["classes"])
    try:
        model: nn.Module = registry.get(case["system"]).build(case["size"], clip, case["style"], **_tuples(case["build"]))
    except Exception as error:
        if any(kind.__name__ in ("UsageError", "VitgsError") for kind in type(error).__mro__):
            raise Lacking(str(error)) from error
        raise
    shape = (case["batch"], case["frames"], 3, case["height"], case["width"])
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return model, ((clips,), _tuples(case["run"]))


def _factory(case: Mapping[str, Any], tree: Path) -> Made:
    name, _, attribute = case["factory"].partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise Lacking(f"no module {name}") from error
        raise
    _of_tree(module, tree)
    if not hasattr(module, attribute):
        raise Lacking(f"{name} has no {attribute}")
    model, example = getattr(module, attribute)()
    return model, (example if isinstance(example, tuple) else (example,), {})


def _of_tree(module: types.ModuleType, tree: Path) -> None:
    if not Path(module.__file__ or "/").resolve().is_relative_to(tree):
        raise ImportError(f"{module.__name__} was imported from outside the tree")


def _tuples(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in knobs.items()}


def _refill(model: nn.Module) -> None:
    """Weights by name, of the mean and spread that each was made with: another order of making them must not change what a model does."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and weight.numel() > 1:
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
                mean, spread = (float(f"{float(value):.1e}") for value in (weight.double().mean(), weight.double().std()))
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * spread + mean)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _begin(sides: Sequence[Mapping[str, Any]]) -> None:
    """This process as the worker of the only side; of several, one forked for each when torch is there."""
    if len(sides) == 1:
        return _work(**sides[0])
    with contextlib.suppress(ImportError):  # a side whose models need torch tells of it
        importlib.import_module("torch")
    gc.freeze()  # what both share stays shared: a collection doesn't touch it
    children: dict[int, Mapping[str, Any]] = {}
    for side in sides:
        if (child := os.fork()) == 0:
            _close(end for other in sides if other is not side for end in other["ends"])
            return _work(**side)
        children[child] = side
        _close(side["ends"][:1])
    for _ in sides:
        child, status = os.wait()
        _, answers, said = children[child]["ends"]
        code = os.waitstatus_to_exitcode(status)
        if code < 0 or not os.fstat(said).st_size:  # a signal is the reason, whatever was said before
            os.write(said, f"exit status {code}\n".encode())
        _close([answers])  # the parent sees the answers end only now that it can read why
    return None


def _close(ends: Iterable[int]) -> None:
    for end in ends:
        with contextlib.suppress(OSError):  # closed before
            os.close(end)


def _work(tree: str, paths: Sequence[str], ends: Sequence[int], bytecode: bool) -> None:
    """Serves one side. `bytecode`: whether Python may keep it in the tree."""
    requests, answers, said = ends
    # What models print must not be taken for answers.
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(tree)
    sys.path[:0] = paths
    sys.dont_write_bytecode = not bytecode
    # The tree's own `vitgs`, or the installed one for a tree without it; inside it the `gate` that this file belongs to.
    import vitgs

    gate = types.ModuleType("vitgs.gate")
    gate.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["vitgs.gate"] = gate
    vitgs.gate = gate
    with open(requests, encoding="utf-8") as asked, open(answers, "w", encoding="utf-8") as answered:
        serve(Path(tree).resolve(), asked, answered)


if __name__ == "__main__":
    _begin(json.loads(sys.argv[1]))
