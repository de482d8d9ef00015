"""What is read of a long clip against the search that reads nothing: the same edges, on full and thin grids, in windows, and without a grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitgs.graphsampler import edges as edges_module
from vitgs.graphsampler import long_search
from vitgs.graphsampler.edges import Edges, build_edges, neighbours
from vitgs.graphsampler.long_search import FRAME_CELLS, nearest_on_grid, steps

FRAMES, SIDE = 20, 6


def kept(share: float, *, empty: range = range(0)) -> Tensor:
    """Positions of patches kept at random, more of them in some frames than in others, `(1, S, 3)`; none of the frames in `empty`."""
    generator = torch.Generator().manual_seed(0)
    time, y, x = torch.cartesian_prod(torch.arange(FRAMES), torch.arange(SIDE), torch.arange(SIDE)).unbind(1)
    uneven_T = 1.0 if share == 1 else 0.7 + 0.6 * torch.rand(FRAMES, generator=generator)
    chosen = torch.rand(len(time), generator=generator) <= share * torch.as_tensor(uneven_T).expand(FRAMES)[time]
    chosen &= ~torch.isin(time, torch.tensor(list(empty), dtype=torch.long))
    return torch.stack([time, y, x], dim=1)[chosen].float().unsqueeze(0)


def squared(position_1S3: Tensor, edges: Edges, temporal: int) -> Tensor:
    """How far the nearest in time and place are, `(1, S, E)`."""
    apart = neighbours(position_1S3, edges.node_BSE)[..., -temporal:, :] - position_1S3.unsqueeze(2)
    return (apart * torch.tensor([FRAME_CELLS, 1.0, 1.0])).square().sum(dim=3)


def both_ways(position_1S3: Tensor, window: int, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Edges, Edges], list[bool]]:
    """Edges found by reading and without, by small blocks, and whether a clip could be read, each time it was tried."""
    appearance = torch.randn(1, position_1S3.shape[1], 8, generator=torch.Generator().manual_seed(1))
    read: list[bool] = []
    see = long_search.see

    def watched(position_1S3: Tensor, temporal: int, chunk: int, window: int) -> long_search.Seen | None:
        seen = see(position_1S3, temporal, chunk, window)
        read.append(seen is not None)
        return seen

    monkeypatch.setattr(edges_module, "see", watched)
    monkeypatch.setattr(edges_module, "CACHED", 2_000)
    found = []
    for long_run in (1, 10**9):
        monkeypatch.setattr(edges_module, "LONG_RUN", long_run)
        with torch.no_grad():
            found.append(build_edges(appearance, position_1S3, k=3, temporal=2, chunk=-(-position_1S3.shape[1] // FRAMES), window=window))
    return (found[0], found[1]), read


def check_same(position_1S3: Tensor, found: tuple[Edges, Edges]) -> None:
    """The same most similar nodes, and temporal neighbours that are as near: which of equally near ones is open."""
    assert torch.equal(found[0].node_BSE[..., :4], found[1].node_BSE[..., :4])
    assert torch.equal(found[0].valid_BSE[..., :4], found[1].valid_BSE[..., :4])
    assert torch.equal(squared(position_1S3, found[0], 2), squared(position_1S3, found[1], 2))
    for edges in found:
        alike = edges.node_BSE[..., 1:4]
        twice = ((edges.node_BSE[..., 4:].unsqueeze(3) == alike.unsqueeze(2)) & edges.valid_BSE[..., 1:4].unsqueeze(2)).any(dim=3)
        assert torch.equal(edges.valid_BSE[..., 4:], ~twice)


@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.25])
def test_a_clip_that_is_read_has_the_same_edges(share: float, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    position = kept(share)
    found, read = both_ways(position, window, monkeypatch)
    assert read == [True]
    check_same(position, found)


def test_where_there_is_no_grid_or_none_near_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    between, twice, far = kept(0.6), kept(0.6), kept(0.6)
    between[0, :, 1:] += 0.25
    twice[0, 1] = twice[0, 0]
    far[..., 0] *= 20
    for position in (between, twice, far):
        found, read = both_ways(position, 0, monkeypatch)
        assert read == [False]
        check_same(position, found)


def test_a_gap_of_frames_is_looked_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # What lies at its edges has its neighbours on one side alone.
    position = kept(0.6, empty=range(5, 9))
    found, read = both_ways(position, 0, monkeypatch)
    assert read == [True]
    check_same(position, found)


def test_too_many_neighbours_are_not_looked_up() -> None:
    position_S3 = kept(1.0)[0]
    assert nearest_on_grid(position_S3, len(steps(long_search.REACHES[0])) + 1, 36, 0) is None


def test_steps_lead_into_other_frames_the_shortest_first() -> None:
    step_O3 = steps(18).float()
    length_O = (step_O3 * torch.tensor([FRAME_CELLS, 1.0, 1.0])).square().sum(dim=1)
    assert torch.equal(length_O, length_O.sort().values) and float(length_O.max()) <= 18 and bool((step_O3[:, 0] != 0).all())
    assert len(step_O3) == 2 * 9 and len({tuple(step) for step in step_O3.tolist()}) == len(step_O3)
