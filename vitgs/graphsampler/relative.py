"""Where and when a neighbour is, seen from a node: pure functions, and a table of what they give on a small grid of patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vitgs.backbone.runs import may_read
from vitgs.graphsampler.bags import flat_rows

# Relative features in units of order 1: frames, half cells, and velocity in twelfths of a cell a frame. Smaller units made the graph useless.
RELATIVE_SCALE = (1.0, 2.0, 2.0, 12.0, 12.0, 1.0)
RELATIVE = len(RELATIVE_SCALE)
# Most steps from cell to cell of a grid for which a table is kept.
MOST_STEPS = 2**15


@dataclass(frozen=True)
class Grid:
    """The frames, rows and columns in whose cells nodes lie."""

    frames: int
    rows: int
    columns: int

    @property
    def spans(self) -> tuple[int, int, int]:
        """How many steps there are along each axis, forth, back and none."""
        return 2 * self.frames - 1, 2 * self.rows - 1, 2 * self.columns - 1


def relative_features(position_BS3: Tensor, other_BSE3: Tensor) -> Tensor:
    """(dt, dy, dx, dy/dt, dx/dt, squared distance) scaled to order 1 and squashed gently, `(B, S, E, 6)`."""
    delta = other_BSE3 - position_BS3.unsqueeze(2)
    dt, dyx = delta[..., :1], delta[..., 1:]
    velocity = dyx / dt.masked_fill(dt == 0, 1.0)
    squared = dyx.square().sum(dim=-1, keepdim=True)
    return _asinh(torch.cat([dt, dyx, velocity, squared], dim=-1) * delta.new_tensor(RELATIVE_SCALE))


def _asinh(x: Tensor) -> Tensor:
    """log(x + sqrt(x^2 + 1)), also of small and of negative x. On a CPU 2 to 5 times as fast as torch's own: see DECISIONS.md."""
    size, squared = x.abs(), x.square()
    return torch.copysign(torch.log1p(size + squared / (1 + torch.sqrt(1 + squared))), x)


@cache
def table(grid: Grid, dtype: torch.dtype) -> Tensor:
    """The relative features of all steps on a grid, `(steps, 6)`; that of no step lies in the middle."""
    steps_X3 = torch.cartesian_prod(*(torch.arange(span, device="cpu", dtype=dtype) - span // 2 for span in grid.spans))
    return relative_features(steps_X3.new_zeros(1, 1, 3), steps_X3.view(1, 1, -1, 3))[0, 0]


def looked_up(position_BS3: Tensor, node_BSE: Tensor, grid: Grid) -> Tensor | None:
    """The relative features of neighbours in cells of the grid, `(B, S, E, 6)`, the same to the last bit; None where no table is to be had."""
    frames, rows, columns = grid.spans
    if frames * rows * columns > MOST_STEPS or not may_read(position_BS3):
        return None
    place_BS = (position_BS3.long() * torch.tensor((rows * columns, columns, 1))).sum(dim=2)
    other_X = place_BS.flatten().index_select(0, flat_rows(node_BSE, place_BS.shape[1]).flatten())
    step_BSE = other_X.view_as(node_BSE) - (place_BS - frames * rows * columns // 2).unsqueeze(2)
    return table(grid, position_BS3.dtype).index_select(0, step_BSE.flatten()).view(*node_BSE.shape, RELATIVE)
