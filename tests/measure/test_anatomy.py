"""Trees and tokens of small models, literally."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitgs import registry
from vitgs.backbone.stages import stage
from vitgs.measure.anatomy import Leaving, Part, anatomy
from vitgs.record import Clip


class Layer(nn.Module):
    """A layer with a product of its own, which leaves out every second token."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x_BND: Tensor) -> Tensor:
        x: Tensor = self.one(x_BND)
        return (x @ torch.ones(4, 4, device=x.device))[:, ::2]


class Model(nn.Module):
    """Two blocks and a head, in stages or not."""

    def __init__(self, *, staged: bool) -> None:
        super().__init__()
        self.staged = staged
        self.blocks = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Sequential(nn.Linear(4, 2))

    def forward(self, clip: Tensor) -> Tensor:
        with stage("backbone") if self.staged else stage("head"):
            x = clip.flatten(1, 3)
            for block in self.blocks:
                x = block(x)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


def test_a_tree_adds_up_and_blocks_alike_are_one() -> None:
    found = anatomy(Model(staged=True), torch.zeros(1, 1, 1, 8, 4), {}, device="meta")
    blocks = Part(name="blocks x 2", macs=384, parts=(Part(name="one", macs=192), Part(name="mm of its own", macs=192)))
    assert found.parts == (Part(name="backbone", macs=384, parts=(blocks,)), Part(name="other", macs=8, parts=(Part(name="head.0", macs=8),)))
    assert found.macs == sum(part.macs for part in found.parts) == 392
    assert found.leaving == (Leaving(blocks="blocks", first=0, last=0, shapes=((1, 4),)), Leaving(blocks="blocks", first=1, last=1, shapes=((1, 2),)))
    assert [entry.tokens for entry in found.leaving] == [4, 2]


def test_without_stages_modules_are_the_first_parts() -> None:
    found = anatomy(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 1, 1, 1, 4), {}, device="meta")
    assert found.parts == (Part(name="0", macs=32), Part(name="1", macs=16))
    assert found.leaving == ()


def _whole(part: Part) -> bool:
    return not part.parts or (sum(below.macs for below in part.parts) == part.macs and all(map(_whole, part.parts)))


@pytest.mark.parametrize(
    ("name", "leaving"),
    [
        ("vit_mean", [("vit.blocks", 2, ((8, 17),))]),
        ("dualpath", [("vit.blocks", 2, ((8, 17), (2, 17))), ("adapters", 2, ((2, 17),))]),  # run piece by piece, on two paths
    ],
)
def test_systems(name: str, leaving: list[tuple[str, int, tuple[tuple[int, int], ...]]]) -> None:
    clip = Clip(frames=8, height=32, width=32, classes=10)
    model = registry.get(name).build("test", clip, "digits").eval()
    before = [dict(module._forward_hooks) for module in model.modules()]
    found = anatomy(model, torch.zeros(1, *clip.shape), {}, device="cpu")
    assert all(map(_whole, found.parts))
    assert sum(part.macs for part in found.parts) == found.macs
    assert [(entry.blocks, entry.last - entry.first + 1, entry.shapes) for entry in found.leaving] == leaving
    assert [dict(module._forward_hooks) for module in model.modules()] == before
