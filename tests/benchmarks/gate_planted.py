"""Slowdowns of a known size that are really worked off: a linear layer more, on so many tokens, and a repository whose head has it.

How many tokens make 3 % of a case's time is measured on the machine as it is then: the case with and without the layer, same weights, in pairs of
blocks in random order in one process. A gate's worker imports this file, too: `planted.py` of the repository names its models from here.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.gate.repository import commit, git
from vitgs import registry
from vitgs.gate import cases
from vitgs.gate.cases import GateSuite
from vitgs.gate.decide import Located, located
from vitgs.record import Clip

WIDTH = 64
FIRST_TOKENS = 1000
PAIRS, CALLS = 1200, 1  # of single calls, as the gate itself has them
NEAR, TRIES = 0.003, 5  # a slowdown within .3 points of the one wanted is that one


class Slowed(nn.Module):
    """`model(clip, **options)`, and one linear layer more on `tokens` tokens of width 64, whose mean goes into the logits; none with 0."""

    def __init__(self, model: nn.Module, options: Mapping[str, Any], tokens: int) -> None:
        super().__init__()
        self.model, self.options = model, dict(options)
        self.extra = nn.Linear(WIDTH, WIDTH) if tokens else None
        self.register_buffer("tokens_ND", torch.ones(tokens, WIDTH), persistent=False)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(clip_BTCHW, **self.options)
        return logits if self.extra is None else logits + self.extra(self.tokens_ND).mean()


def made(case: str, tokens: Mapping[str, int], suite: str = "gate") -> tuple[nn.Module, Tensor]:
    """A case of the gate's suite with its clip, slowed by the layer on so many tokens if `tokens` names the case."""
    (known,) = cases.chosen(cases.load(suite), [case])
    clip = Clip(frames=known.frames, height=known.height, width=known.width, classes=known.classes)
    model = registry.get(known.system).build(known.size, clip, known.style, **known.build)
    shape = (known.batch, known.frames, 3, known.height, known.width)
    return Slowed(model, known.run, tokens.get(case, 0)), torch.randn(shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A layer on `tokens` tokens makes a case slower by `share` (.05 is 5 %), measured with a 95 % interval over `pairs` pairs of blocks."""

    tokens: int
    share: float
    low: float
    high: float
    pairs: int


def plant(share: float, measure: Callable[[int], Sequence[float]], *, first: int = FIRST_TOKENS) -> Planted:
    """How many tokens make that share: `first`, then as many more or fewer as it was off, until it is near. `measure(tokens)`: log-ratios."""
    tokens = first
    for attempt in range(TRIES + 1):
        logs = measure(tokens)
        where = located(logs)
        reached = math.expm1(where.centre)
        if abs(reached - share) <= NEAR or attempt == TRIES:
            break
        # Too small to tell from noise: far more. The first try tells the slope, later ones correct it.
        tokens = max(1, round(tokens * min(max(share / max(reached, share / 10), 0.05), 10)))
    return _planted(tokens, where, len(logs))


def _planted(tokens: int, where: Located, pairs: int) -> Planted:
    low, high = where.limits()
    return Planted(tokens=tokens, share=math.expm1(where.centre), low=math.expm1(low), high=math.expm1(high), pairs=pairs)


def measured(case: str, tokens: int, *, pairs: int = PAIRS, seed: int = 0) -> list[float]:
    """Log-ratios slowed / plain of pairs of blocks; both share the model, so nothing but the layer differs."""
    from vitgs.gate.blocks import Warm

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    plain, clip = made(case, {})
    assert isinstance(plain, Slowed)
    slowed = Slowed(plain.model, plain.options, tokens)
    rng = random.Random(seed)
    sides = {name: Warm(model.eval().requires_grad_(False), ((clip,), {}), device="cpu") for name, model in (("plain", plain), ("slowed", slowed))}
    logs = []
    for _ in range(pairs):
        took = {name: sides[name].block(CALLS)[0] for name in rng.sample(sorted(sides), len(sides))}
        logs.append(math.log(took["slowed"] / took["plain"]))
    return logs


def repository(folder: Path, suite: GateSuite) -> tuple[str, Path]:
    """Makes a repository with the suite's cases as models of its own; its first commit, and the suite's file beside it."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    factories = "".join(f'\n[[cases]]\nname = "{case.name}"\nfactory = "planted:{case.name}"\n' for case in suite.cases)
    file = folder.parent / "planted.toml"
    file.write_text(f"threshold = {suite.threshold}\n{factories}", encoding="utf-8")
    return commit(folder, {"planted.py": _models(suite, {}), "run": "base\n"}), file


def head(folder: Path, base: str, suite: GateSuite, run: str, tokens: Mapping[str, int]) -> None:
    """Makes the head: the base, with the layer in the cases that `tokens` names; without any, a commit that changes no code."""
    git(folder, "checkout", "-q", "--detach", base)
    commit(folder, {"planted.py": _models(suite, tokens), "run": f"{run}\n"})


def _models(suite: GateSuite, tokens: Mapping[str, int]) -> str:
    functions = "".join(f"\n\ndef {case.name}():\n    return made({case.name!r}, TOKENS)\n" for case in suite.cases)
    return f"from tests.benchmarks.gate_planted import made\n\nTOKENS = {json.dumps(dict(tokens))}\n{functions}"
