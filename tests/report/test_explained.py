"""The picture of one clip: what was dropped is faint and what was kept is not, every edge is there, and nothing leaves the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.text import Text

from vitgs.graphsampler.explain import KINDS, Explanation, GraphTrace, MemoryTrace
from vitgs.report.explained import FADED, SUFFIXES, Shown, draw, figure

NAMES = ("nought", "one", "two", "three", "four", "five", "a very long name of a class indeed")


def explanation(frames: int = 3, rows: int = 2, columns: int = 3, *, kept: int = 5, bare: bool = False, gated: bool = True) -> Explanation:
    """Made up: the last frame has no node, each node listens to two others by all kinds of edges."""
    generator = torch.Generator().manual_seed(0)
    position = torch.stack(torch.meshgrid(torch.arange(frames - 1), torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1).reshape(-1, 3)
    chosen = position[torch.randperm(len(position), generator=generator)[:kept].sort().values]
    index = torch.arange(kept)[:, None]
    neighbour = torch.cat([index, (index + 1) % kept, (index + 2) % kept, index], dim=1)
    kind = torch.tensor([KINDS.index("self"), KINDS.index("similar"), KINDS.index("temporal"), KINDS.index("none")]).repeat(kept, 1)
    kind[0, 1] = KINDS.index("both")
    graph = GraphTrace(neighbour_SE=neighbour, kind_SE=kind, similarity_SE=torch.rand(kept, 4), weight_LSE=torch.rand(2, kept, 4).softmax(dim=2))
    held = torch.bincount(chosen[:, 0], minlength=frames).bool()[:, None]
    gate, change = (torch.rand(frames, 2) * held for _ in range(2))
    memory = MemoryTrace(gated=gated, gate_TM=gate, change_TM=change, share_SM=torch.rand(kept, 2))
    return Explanation(
        grid=(frames, rows, columns),
        budget=0.25,
        logits_C=torch.tensor([0.0, 3.0, 2.0, 1.0, 0.5, 0.2, -1.0]),
        position_S3=chosen,
        utility_TN=None if bare else torch.rand(frames, rows * columns, generator=generator),
        graph=None if bare else graph,
        memory=None if bare else memory,
    )


def shown(found: Explanation, *, truth: int | None = 1, title: str = "digits:test, test clip 0") -> Shown:
    frames, rows, columns = found.grid
    return Shown(title=title, frame_THWC=np.zeros((frames, 8 * rows, 8 * columns, 3)), class_names=NAMES, truth=truth)


def texts(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.axes[0].findobj(Text) if isinstance(text, Text)]


def test_dropped_tokens_are_faint_and_kept_ones_as_they_are() -> None:
    found = explanation()
    drawn = figure(found, shown(found), [])
    pictures = [np.asarray(image.get_array()) for image in drawn.axes[0].images if np.asarray(image.get_array()).ndim == 3]
    assert len(pictures) == 3
    kept = {tuple(place) for place in found.position_S3.tolist()}
    for t, picture in enumerate(pictures):
        for y in range(2):
            for x in range(3):
                token = picture[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                assert np.allclose(token, 0.0 if (t, y, x) in kept else FADED)


def test_every_edge_of_the_chosen_nodes_is_drawn_thicker_for_more_attention() -> None:
    found = explanation()
    assert found.graph is not None
    curves = [patch for patch in figure(found, shown(found), [0, 3]).axes[0].patches if isinstance(patch, PathPatch)]
    assert len(curves) == 4
    weights = [float(found.graph.mean_weight_SE[node, place]) for node in (0, 3) for place in (1, 2)]
    widths = [float(curve.get_linewidth()) for curve in curves]
    assert sorted(range(4), key=weights.__getitem__) == sorted(range(4), key=widths.__getitem__)
    assert len({str(curve.get_linestyle()) for curve in curves}) == 3  # similar, temporal, both
    assert len({str(curve.get_edgecolor()) for curve in curves}) == 2


def test_it_says_what_was_kept_and_whether_the_answer_is_correct() -> None:
    found = explanation()
    said = texts(figure(found, shown(found), [0]))
    assert "answer: one (correct)" in said
    assert "5 of 18 tokens, budget 0.25. Dimmed: dropped. Bar: a frame's score, the sum of its tokens' utilities." in said
    assert "0 kept" in said
    assert "–" in said  # the memory of the frame without a node
    assert f"{found.logits_C.softmax(0)[1] * 100:.1f} %  true" in said
    wrong = texts(figure(found, shown(found, truth=6), [0]))
    assert any(text.startswith("answer: one (wrong: it is a very long name") for text in wrong)
    assert any(text.endswith("true, rank 7 of 7") for text in wrong)
    assert "answer: one" in texts(figure(found, shown(found, truth=None), [0]))


def test_what_a_model_lacks_is_not_drawn() -> None:
    found = explanation(bare=True)
    said = texts(figure(found, shown(found), [0]))
    assert {"Kept", "Answer"} <= set(said)
    assert not {"Graph", "Memory", "utility"} & set(said)
    assert "Graph" not in texts(figure(explanation(), shown(explanation()), []))


def test_a_plain_cell_has_no_gate_to_draw() -> None:
    for gated in (True, False):
        found = explanation(gated=gated)
        said = texts(figure(found, shown(found), []))
        assert ("write 1" in said) == gated and "change 1" in said
        assert any("A plain cell has no gate" in text for text in said) != gated


@pytest.mark.parametrize(("frames", "rows", "columns", "kept"), [(2, 1, 1, 1), (8, 4, 4, 30), (16, 2, 4, 20), (40, 2, 2, 30)])
@pytest.mark.parametrize("truth", [None, 6])
def test_nothing_leaves_the_page(frames: int, rows: int, columns: int, kept: int, truth: int | None) -> None:
    found = explanation(frames, rows, columns, kept=kept)
    drawn = figure(
        found, shown(found, truth=truth, title="a video with quite a long name, as they come from the web and from cameras.mp4"), found.best_nodes(4)
    )
    drawn.draw_without_rendering()
    page = drawn.bbox
    for thing in [*drawn.axes[0].texts, *drawn.axes[0].patches, *drawn.axes[0].images]:
        box = thing.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, thing
        assert page.y0 <= box.y0 and box.y1 <= page.y1, thing


def test_every_format_is_written_and_the_same_each_time(tmp_path: Path) -> None:
    found = explanation()
    for suffix in SUFFIXES:
        for name in ("first", "second"):
            draw(found, shown(found), [0], tmp_path / f"{name}{suffix}")
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("first", "second"))
        assert len(first) > 1000
        assert first == second
