"""What the search for neighbours reads of a clip where values may be read, so that over a long run of candidates it keeps no mask of pairs.

Frames and windows are closed by slices, and the nearest in time and place are looked up on the grid of patches, not among all candidates. It finds
what `edges.py` finds by shapes alone; among equally near nodes it may take another.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

# What a frame away counts for among temporal neighbours, in cells.
FRAME_CELLS = 4.0
# How far the nearest are looked for on the grid, in squared cells: for all nodes, then for those that found too few.
REACHES = (18, 48, 144)
# Most cells of a grid, and most steps on it, in all nodes' mean, that are tried at once.
MOST_CELLS, MOST_STEPS = 2**24, 64


@dataclass(frozen=True)
class Seen:
    """What was read of one clip: where each of its frames starts, its end last, and the nodes nearest to each node in time and place, `(1, S, E)`."""

    bounds: Sequence[int]
    nearest_1SE: Tensor


def see(position_1S3: Tensor, temporal: int, chunk: int, window: int) -> Seen | None:
    """Reads one clip, whose nodes are in time order; None where its nearest nodes are not to be had from a grid."""
    nearest_SE = nearest_on_grid(position_1S3[0], temporal, chunk, window)
    if nearest_SE is None:
        return None
    lengths = torch.unique_consecutive(position_1S3[0, :, 0], return_counts=True)[1]
    return Seen([0, *lengths.cumsum(0).tolist()], nearest_SE.unsqueeze(0))


def close(score_1QW: Tensor, first: int, low: int, seen: Seen, chunk: int, window: int) -> None:
    """Sets the scores of nodes from `first` on and candidates from `low` on to the lowest where both are of a frame, or too many chunks apart."""
    (queries, candidates), lowest = score_1QW.shape[1:], torch.finfo(score_1QW.dtype).min
    last = bisect_right(seen.bounds, first + queries - 1)
    for frame in range(bisect_right(seen.bounds, first), last + 1):
        start, end = seen.bounds[frame - 1], seen.bounds[frame]
        score_1QW[:, max(start - first, 0) : end - first, max(start - low, 0) : max(end - low, 0)] = lowest
    if not window:
        return
    for start in range(first // chunk * chunk, first + queries, chunk):
        rows = slice(max(start - first, 0), start + chunk - first)
        before, behind = start - window * chunk - low, start + (window + 1) * chunk - low
        if before > 0:
            score_1QW[:, rows, :before] = lowest
        if behind < candidates:
            score_1QW[:, rows, behind:] = lowest


@cache
def steps(limit: int) -> Tensor:
    """Steps (frames, rows, columns) into other frames of at most `limit` squared cells, the shortest first, `(O, 3)`; a frame has `FRAME_CELLS`."""
    far = range(-int(limit**0.5), int(limit**0.5) + 1)
    found = [((FRAME_CELLS * dt) ** 2 + dy**2 + dx**2, dt, dy, dx) for dt, dy, dx in product(far, repeat=3) if dt]
    return torch.tensor([step[1:] for step in sorted(found) if step[0] <= limit], device="cpu")


def nearest_on_grid(position_S3: Tensor, count: int, chunk: int, window: int) -> Tensor | None:
    """The `count` nearest nodes of other frames at most `window` chunks away (0: any), `(S, count)`.

    Steps are tried in order of their length, so that no node that is left out is nearer. None where nodes don't lie in cells of their own, and where
    too many find too few nearby, or one within the widest of `REACHES`.
    """
    cell_S3, device = position_S3.round().long(), position_S3.device
    if bool((cell_S3 != position_S3).any()) or count > len(steps(REACHES[0])):
        return None
    margin_3 = steps(REACHES[-1]).amax(dim=0)
    cell_S3 = cell_S3 - cell_S3.amin(dim=0) + margin_3
    frames, height, width = (cell_S3.amax(dim=0) + margin_3 + 1).tolist()
    if frames * height * width > MOST_CELLS:
        return None
    stride_3, node_S = torch.tensor((height * width, width, 1), device=device), torch.arange(len(cell_S3), device=device)
    cell_S = (cell_S3 * stride_3).sum(dim=1)
    node_C = torch.full((frames * height * width,), -1, device=device).scatter_(0, cell_S, node_S)
    if int((node_C >= 0).sum()) < len(cell_S):
        return None
    longest = int(cell_S3[:, 0].bincount().max())

    def look(node_R: Tensor, step_O3: Tensor) -> tuple[Tensor, Tensor]:
        found_RO = node_C[cell_S[node_R].unsqueeze(1) + (step_O3 * stride_3).sum(dim=1)]
        there_is_RO = found_RO >= 0
        # Steps pass fewer nodes than these, which mostly is within the window.
        if window and (int(step_O3[:, 0].max()) + 1) * longest > window * chunk:
            there_is_RO &= (found_RO // chunk - (node_R // chunk).unsqueeze(1)).abs() <= window
        first = (there_is_RO * torch.arange(len(step_O3), 0, -1, dtype=torch.float32, device=device)).topk(count, dim=1)
        return found_RO.gather(1, first.indices), (first.values > 0).all(dim=1)

    nearest_SE, lost_R = cell_S.new_empty(len(cell_S), count), node_S
    for reach in REACHES:
        step_O3 = steps(reach)
        if len(lost_R) * len(step_O3) > MOST_STEPS * len(cell_S):
            return None
        nearest_SE[lost_R], enough_R = look(lost_R, step_O3)
        lost_R = lost_R[~enough_R]
        if not len(lost_R):
            return nearest_SE
    return None
