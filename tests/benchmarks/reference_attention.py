"""The cheap attentions beside the packages that have them: one attention layer over the tokens of a clip, the same weights.

The packages (`pip install linformer performer-pytorch nystrom-attention`) are no dependency; a pair without its package is left out with a line.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.pair import Pair
from vitgs.backbone import sizes
from vitgs.backbone.attention import Attention
from vitgs.backbone.cheap_attention import FavorMix, LinformerMix, NystromMix
from vitgs.record import Size

FRAMES, PATCH = 8, 16
RANK, FEATURES, ITERATIONS, TAPS = 64, 128, 6, 33
TOKENS_A_LANDMARK = 28


class Layer(nn.Module):
    """Projections, a cheap attention and the output's projection, as a block of ours has them; `run`: the run knobs of `mix`."""

    def __init__(self, row: Size, mix: nn.Module, run: dict[str, int]) -> None:
        super().__init__()
        self.attention, self.mix, self.run = Attention(row.width, row.heads), mix, run

    def forward(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.attention.output(self.mix(*self.attention.project(x_BND), None, **self.run))
        return out

    def take(self, qkv: Tensor, output: nn.Linear) -> None:
        """The package's projections, which have no biases on q, k and v."""
        self.attention.qkv.weight.copy_(qkv)
        self.attention.qkv.bias.zero_()
        self.attention.output.load_state_dict(output.state_dict())


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {name} is not installed ({error})", file=sys.stderr)
        return None


@torch.no_grad()
def pairs(size: str, resolution: int) -> Iterator[Pair]:
    """Linformer, Performer and Nystrom attention over all tokens of a clip of 8 frames."""
    row = sizes.size(size)
    tokens, head = FRAMES * (resolution // PATCH) ** 2, row.width // row.heads
    shape = (tokens, row.width)
    torch.manual_seed(0)
    if package := _package("linformer"):
        other = package.LinformerSelfAttention(row.width, tokens, k=RANK, heads=row.heads).eval()
        mix = LinformerMix(tokens, RANK, one_for_both=False, init="means")
        ours = Layer(row, mix, {}).eval()
        ours.take(torch.cat([other.to_q.weight, other.to_k.weight, other.to_v.weight]), other.to_out)
        mix.load_state_dict({"keys": other.proj_k, "values": other.proj_v})
        yield Pair(system="linformer (one attention layer)", reference="linformer 0.2.3", shape=shape, ours=ours, theirs=other)
    if package := _package("performer_pytorch"):
        other = package.SelfAttention(row.width, heads=row.heads, dim_head=head, nb_features=FEATURES).eval()
        favor = FavorMix(head, FEATURES)
        ours = Layer(row, favor, {"features": FEATURES}).eval()
        ours.take(torch.cat([other.to_q.weight, other.to_k.weight, other.to_v.weight]), other.to_out)
        favor.directions.copy_(other.fast_attention.projection_matrix)
        yield Pair(system="performer (one attention layer)", reference="performer-pytorch 1.1.4", shape=shape, ours=ours, theirs=other)
    if package := _package("nystrom_attention"):
        landmarks = tokens // TOKENS_A_LANDMARK  # runs of equal length: the package fills up with zeros where they aren't
        other = package.NystromAttention(
            row.width, dim_head=head, heads=row.heads, num_landmarks=landmarks, pinv_iterations=ITERATIONS, residual_conv_kernel=TAPS
        ).eval()
        nystrom = NystromMix(row.heads, TAPS)
        ours = Layer(row, nystrom, {"landmarks": landmarks, "iterations": ITERATIONS}).eval()
        ours.take(other.to_qkv.weight, other.to_out[0])
        nystrom.load_state_dict({"residual.weight": other.res_conv.weight})
        yield Pair(system="nystrom (one attention layer)", reference="nystrom-attention 0.0.14", shape=shape, ours=ours, theirs=other)
