"""Where a model spends its MACs, as a tree of stages and modules, and how many tokens leave each of its blocks.

For people who ask why a model costs what it costs; the numbers of records come from `vitgs.measure.cost`.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vitgs.backbone.tokens import Tokens
from vitgs.measure.by_call import canonical
from vitgs.measure.cost import on_cpu
from vitgs.measure.formula import OTHER, FormulaCounter
from vitgs.measure.setting import evaluating, no_fast_path

SMALLEST = 0.005  # share of all MACs below which parts are told together
LEAST_IN_BLOCKS = 0.01  # share of all MACs below which a list of modules is no list of blocks
_EACH, _OWN = "*", "of its own"

Place = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A node of the tree: a stage, a module, several alike (`blocks x 12`), or an operator that a module runs itself. `parts` add up to `macs`."""

    name: str
    macs: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """What leaves each of the blocks `first` to `last` of a list, for one clip: `rows` of the batch times `tokens` in a row.

    `shapes` has one such pair for each time that the block runs, or its last piece where the model runs the pieces itself.
    """

    blocks: str
    first: int
    last: int
    shapes: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(rows * tokens for rows, tokens in self.shapes)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """`macs` in all, the tree under it, and the tokens behind the blocks in their order."""

    macs: int
    parts: tuple[Part, ...]
    leaving: tuple[Leaving, ...]


class _Walk(FormulaCounter):  # type: ignore[no-untyped-call]
    """Counts MACs by place: stage, path of the innermost module with blocks alike as one, and operator where the module has parts beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.by_place: Counter[Place] = Counter()
        self.alike: defaultdict[Place, set[str]] = defaultdict(set)
        self.outputs: defaultdict[str, list[tuple[str, tuple[int, int]]]] = defaultdict(list)
        self._paths = {module: path for path, module in model.named_modules()}
        lists = {path: module for path, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))}
        # Blocks are made of parts; the layers of a plain sequence are no blocks.
        self._blocks = {
            f"{path}.{at}" if path else at for path, each in lists.items() for at, block in each.named_children() if any(block.children())
        }
        self._running: list[nn.Module] = []

    def add(self, operator: str, macs: int) -> None:
        super().add(operator, macs)
        module = self._running[-1] if self._running else None
        path = self._paths.get(module, "") if module is not None else ""
        own = (f"{canonical(operator)} {_OWN}",) if module is None or any(module.children()) else ()
        self.by_place[(self._stack[-1] if self._stack else OTHER, *self.together(path), *own)] += macs

    def together(self, path: str) -> Place:
        """A module's path with blocks alike as one."""
        place: list[str] = []
        steps = path.split(".") if path else []
        for at, step in enumerate(steps):
            if ".".join(steps[: at + 1]) in self._blocks:
                place.append(_EACH)
                self.alike[tuple(place)].add(step)
            else:
                place.append(step)
        return tuple(place)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Knows which module runs, by hooks that belong to torch and not to the model."""
        handles = (
            register_module_forward_pre_hook(lambda module, inputs: self._running.append(module)),
            register_module_forward_hook(self._left, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _left(self, module: nn.Module, inputs: object, output: object) -> None:
        self._running.pop()
        x = output.x_BND if isinstance(output, Tokens) else output
        path = self._paths.get(module, "")
        if not isinstance(x, Tensor) or x.dim() != 3 or not path:
            return
        inside = [self._paths.get(outer, "") for outer in self._running]
        block, within = self._block_of(path)
        if block and not any(self._block_of(outer)[0] for outer in inside):
            self.outputs[block].append((within, (x.shape[0], x.shape[1])))

    def _block_of(self, path: str) -> tuple[str, str]:
        # The innermost list's: a list of towers is not the blocks in them.
        steps = path.split(".")
        for end in range(len(steps), 0, -1):
            if ".".join(steps[:end]) in self._blocks:
                return ".".join(steps[:end]), ".".join(steps[end:])
        return "", ""


def anatomy(model: nn.Module, clip_1TCHW: Tensor, run: Mapping[str, object], *, device: str) -> Anatomy:
    """Of `model(clip_1TCHW, **run)`, on the device that `vitgs.measure.cost.count` found enough for it: "meta" or "cpu"."""
    on = copy.deepcopy(model).to("meta") if device == "meta" else on_cpu(model)
    dtype = next((p.dtype for p in on.parameters() if p.is_floating_point()), clip_1TCHW.dtype)
    walk = _Walk(on)
    with evaluating(on), torch.no_grad(), no_fast_path(), walk.following(), walk:
        on(clip_1TCHW.to(device, dtype), **run)
    places = walk.by_place if walk.staged else Counter({place[1:]: macs for place, macs in walk.by_place.items()})
    return Anatomy(macs=walk.macs, parts=_parts(places, walk, walk.macs, 1 if walk.staged else 0), leaving=tuple(_leaving(walk)))


def _parts(places: Mapping[Place, int], walk: _Walk, total: int, stages: int, above: Place = ()) -> tuple[Part, ...]:
    """The parts one step below `above`; `stages` is how many steps of a place are no module's."""
    found: defaultdict[str, dict[Place, int]] = defaultdict(dict)
    for place, macs in places.items():
        if len(place) > len(above):
            found[place[len(above)]][place] = macs
    parts: list[Part] = []
    small: list[Part] = []
    for step, below in found.items():
        here, macs = (*above, step), sum(below.values())
        name = "" if step == _EACH else step
        times = [len(walk.alike[here[stages:]])] if step == _EACH else []
        # A chain without forks is one part: `vit.embed.patch`.
        while len(here) > stages and len(forks := {place[: len(here) + 1] for place in below}) == 1 and len(next(iter(forks))) > len(here):
            here = next(iter(forks))
            if here[-1] == _EACH:
                times.append(len(walk.alike[here[stages:]]))
            else:
                name = f"{name}.{here[-1]}" if name and not here[-1].endswith(_OWN) else (name or here[-1])
        part = Part(name=" x ".join([name or "each", *map(str, times)]), macs=macs, parts=_parts(below, walk, total, stages, here))
        (parts if macs >= SMALLEST * total or not above else small).append(part)
    if len(small) == 1:
        parts.append(small.pop())
    if small and parts:
        parts.append(Part(name=f"{len(small)} smaller parts", macs=sum(part.macs for part in small)))
    return tuple(parts)


def _leaving(walk: _Walk) -> Iterator[Leaving]:
    blocks: defaultdict[str, list[tuple[int, tuple[tuple[int, int], ...]]]] = defaultdict(list)
    for block, outputs in walk.outputs.items():
        if any(other.startswith(f"{block}.") for other in walk.outputs):
            continue  # a tower: its own blocks tell
        # A block whose pieces its model runs itself never leaves as a whole: then what its last piece gives.
        last = "" if any(not within for within, _ in outputs) else outputs[-1][0]
        name, _, index = block.rpartition(".")
        blocks[name].append((int(index), tuple(shape for within, shape in outputs if within == last)))
    for name, found in blocks.items():
        depth = name.count(".") + 1 if name else 0
        in_list = sum(macs for place, macs in walk.by_place.items() if place[1 : depth + 1] == walk.together(name))
        if in_list < LEAST_IN_BLOCKS * walk.macs:
            continue
        # One line for neighbours that give the same.
        for shapes, run in itertools.groupby(sorted(found), key=lambda entry: entry[1]):
            same = [index for index, _ in run]
            yield Leaving(blocks=name, first=same[0], last=same[-1], shapes=shapes)
