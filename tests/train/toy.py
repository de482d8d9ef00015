"""A data set and a system small enough to train in a second: which of four quadrants is bright."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitgs.backbone.sizes import Style
from vitgs.spec import Clip, Knob, Size, System


@dataclass(frozen=True, kw_only=True)
class ToyClips:
    clip_BTCHW: Tensor
    label_B: Tensor
    group_B: Tensor


class Quadrants:
    """Four classes, one bright quadrant; the group of a clip is its label's half."""

    clip = Clip(frames=1, height=4, width=4, channels=1, classes=4)
    digest = "quadrants"

    def __init__(self, split: str) -> None:
        self.split = split

    def batch(self, size: int, seed: int) -> ToyClips:
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(4, (size,), generator=generator)
        clip = torch.randn(size, 1, 1, 4, 4, generator=generator) * 0.3
        for i, quadrant in enumerate(label.tolist()):
            y, x = divmod(quadrant, 2)
            clip[i, ..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += 1
        return ToyClips(clip_BTCHW=clip, label_B=label, group_B=torch.arange(size) // 2)

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[ToyClips]:
        whole = self.batch(count or 100, 10_000 + seed)
        for first in range(0, len(whole.label_B), 40):
            part = slice(first, first + 40)
            yield ToyClips(clip_BTCHW=whole.clip_BTCHW[part], label_B=whole.label_B[part], group_B=whole.group_B[part])


class Linear(nn.Module):
    """One layer; `scale` stands for a run knob."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, scale: float) -> None:
        super().__init__()
        self.head = nn.Linear(16, clip.class_count)
        self.scale = scale
        self.seen: list[float] = []

    def forward(self, clip_BTCHW: Tensor, scale: float | None = None) -> Tensor:
        self.seen.append(self.scale if scale is None else scale)
        out: Tensor = self.head(clip_BTCHW.flatten(1) * self.seen[-1])
        return out


SYSTEM = System(
    name="linear",
    group="test",
    paper="",
    construct=Linear,
    space={"scale": Knob(values=(1.0, 2.0), default=1.0, when="run")},
    paper_rule={"scale": 2.0},
)
