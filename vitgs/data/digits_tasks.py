"""How the clips of each embedded task are painted: one function per task, vectorised over the batch.

Pictures are opaque squares, painted in order; places are multiples of the task's grid, so that nothing gives the event away by its alignment.
Shapes: B clips, T frames, M pictures, H x W pixels of a clip, h x w of a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitgs.data.digits_images import Floats, Images, Ints
from vitgs.data.task import DIGIT_PX, FRAGMENT_PX, STILL_SHARES, Task

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Rng = np.random.Generator
Painter = Callable[[Task, Images, Ints, Rng], tuple[Floats, Ints]]
_STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (dy, dx) in the order of task.DIRECTIONS


def paste(canvas_BTHW: Floats, picture_Mhw: Floats, clip_M: Ints, frame_M: Ints, y_M: Ints, x_M: Ints) -> None:
    """Paints each picture into its clip and frame with its top left corner at (y, x)."""
    windows = np.lib.stride_tricks.sliding_window_view(canvas_BTHW, picture_Mhw.shape[1:], axis=(2, 3), writeable=True)
    windows[clip_M, frame_M, y_M, x_M] = picture_Mhw


def places(task: Task, size_px: int, count: int, rng: Rng, grid_px: int | None = None) -> tuple[Ints, Ints]:
    """Random corners (y, x) on the grid for pictures of that size."""
    grid = grid_px or task.grid_px
    y_M = rng.integers(0, (task.height - size_px) // grid + 1, count) * grid
    x_M = rng.integers(0, (task.width - size_px) // grid + 1, count) * grid
    return y_M, x_M


def clutter(canvas_BTHW: Floats, task: Task, images: Images, rng: Rng, *, free_BT: Bools | None = None) -> None:
    """Fragments into every frame, then scrambled digits into the frames that are free of an event."""
    shape = canvas_BTHW.shape[:2]
    everywhere = np.ones(shape, dtype=bool)
    for _ in range(task.fragments):
        clip_M, frame_M = np.nonzero(everywhere)
        paste(canvas_BTHW, images.fragments(len(clip_M), rng), clip_M, frame_M, *places(task, FRAGMENT_PX, len(clip_M), rng))
    for _ in range(task.scrambled):
        wanted_BT = everywhere if free_BT is None else free_BT
        if task.scrambled_share < 1:
            wanted_BT = wanted_BT & (rng.random(shape) < task.scrambled_share)
        clip_M, frame_M = np.nonzero(wanted_BT)
        paste(canvas_BTHW, images.scrambled(len(clip_M), task.scale, rng), clip_M, frame_M, *places(task, task.digit_px, len(clip_M), rng))


def blank(task: Task, batch: int) -> Floats:
    return np.zeros((batch, task.frames, task.height, task.width), dtype=np.float32)


def direction_paths(task: Task, direction_B: Ints, rng: Rng) -> tuple[Ints, Ints]:
    """Corners (y_BT, x_BT) of a digit that goes from edge to edge; the way back of a path is the path backwards, place by place."""

    def along(sign_B: Ints, extent_px: int) -> Ints:
        cells = (extent_px - task.digit_px) // task.grid_px
        forth_T = np.rint(np.linspace(0, cells, task.frames)).astype(np.int64)
        still_B1 = rng.integers(0, cells + 1, len(sign_B))[:, None]
        cell_BT = np.where(sign_B[:, None] > 0, forth_T, np.where(sign_B[:, None] < 0, forth_T[::-1], still_B1))
        return cell_BT * task.grid_px

    step_B2 = np.array(_STEPS)[direction_B]
    return along(step_B2[:, 0], task.height), along(step_B2[:, 1], task.width)


def _moving(task: Task, images: Images, identity_B: Ints, direction_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    canvas = blank(task, len(identity_B))
    clutter(canvas, task, images, rng)
    place_B = images.pick(identity_B, rng)
    y_BT, x_BT = direction_paths(task, direction_B, rng)
    clip_M, frame_M = (index.ravel() for index in np.indices(y_BT.shape))
    paste(canvas, images.digits(place_B, task.scale)[clip_M], clip_M, frame_M, y_BT.ravel(), x_BT.ravel())
    return canvas, images.index_N[place_B]


def appearance(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which digit moves? The way it goes is random."""
    return _moving(task, images, label_B, rng.integers(0, len(_STEPS), len(label_B)), rng)


def direction(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which way does a digit go? Which digit it is is random."""
    return _moving(task, images, rng.integers(0, task.identities, len(label_B)), label_B, rng)


def _events(task: Task, images: Images, events: list[tuple[Ints, Ints]], rng: Rng) -> tuple[Floats, Ints]:
    """Paints events (identity_B, first frame_B), each in place of the scrambled digit; the group is the first event's image."""
    batch = len(events[0][0])
    canvas = blank(task, batch)
    frame_T = np.arange(task.frames)
    seen = [(frame_T >= start_B[:, None]) & (frame_T < start_B[:, None] + task.flash_frames) for _, start_B in events]
    clutter(canvas, task, images, rng, free_BT=~np.logical_or.reduce(seen))
    groups = []
    for (identity_B, _), seen_BT in zip(events, seen, strict=True):
        place_B = images.pick(identity_B, rng)
        y_B, x_B = places(task, task.digit_px, batch, rng)
        clip_M, frame_M = np.nonzero(seen_BT)
        paste(canvas, images.digits(place_B, task.scale)[clip_M], clip_M, frame_M, y_B[clip_M], x_B[clip_M])
        groups.append(images.index_N[place_B])
    return canvas, groups[0]


def moment(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which digit flashes for a moment?"""
    return _events(task, images, [(label_B, rng.integers(0, task.frames - task.flash_frames + 1, len(label_B)))], rng)


def start_pairs(task: Task) -> Ints:
    """All pairs of first frames of two events that fit into the clip with the gap between them, shape (pairs, 2); symmetric in time."""
    last, apart = task.frames - task.flash_frames, task.flash_frames + task.gap
    return np.array([(a, b) for a in range(last + 1) for b in range(a + apart, last + 1)])


def order(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which digit flashes first, and which second?"""
    pair_B2, start_P2 = np.array(task.pairs)[label_B], start_pairs(task)
    start_B2 = start_P2[rng.integers(0, len(start_P2), len(label_B))]
    return _events(task, images, [(pair_B2[:, i], start_B2[:, i]) for i in range(2)], rng)


def link_offsets(task: Task) -> tuple[Ints, Ints]:
    """Cells from its start, by frame, of the mover and of one that returns: both are at each cell equally often; the way back mirrors the way out."""
    steps = np.rint(np.linspace(0, task.travel_cells, task.frames // 2)).astype(np.int64)
    return steps.repeat(2), np.concatenate([steps, steps[::-1]])


def link(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which digit went away, and to which side? The others go as far and come back; each has a row of its own."""
    batch, cell_px = len(label_B), task.digit_px
    canvas = blank(task, batch)
    rows, columns = task.height // cell_px, task.width // cell_px
    row_BO = rng.permuted(np.tile(np.arange(rows), (batch, 1)), axis=1)[:, : task.objects]
    other_BO = rng.permuted(np.tile(np.arange(1, task.identities), (batch, 1)), axis=1)[:, : task.objects - 1]
    mover_B = label_B // 2
    identity_BO = np.concatenate([mover_B[:, None], (mover_B[:, None] + other_BO) % task.identities], axis=1)
    rightward_BO = rng.integers(0, 2, identity_BO.shape).astype(bool)
    rightward_BO[:, 0] = label_B % 2 == 1
    room_BO = rng.integers(0, columns - task.travel_cells, identity_BO.shape)
    there_T, back_T = link_offsets(task)
    clip_M, frame_M = (index.ravel() for index in np.indices((batch, task.frames)))
    group_B = np.zeros(batch, dtype=np.int64)
    for i in range(task.objects):
        place_B = images.pick(identity_BO[:, i], rng)
        offset_T = there_T if i == 0 else back_T
        column_BT = np.where(rightward_BO[:, i, None], room_BO[:, i, None] + offset_T, columns - 1 - room_BO[:, i, None] - offset_T)
        paste(canvas, images.digits(place_B, task.scale)[clip_M], clip_M, frame_M, row_BO[clip_M, i] * cell_px, column_BT.ravel() * cell_px)
        group_B = images.index_N[place_B] if i == 0 else group_B
    clutter(canvas, task, images, rng)  # last: it may cover a digit, so that no single frame can be relied upon
    return canvas, group_B


def _corner(extent_px: int, size_px: int, grid_px: int, share_M: Ints, rng: Rng) -> Ints:
    """A random corner on the grid in the given share (0 to STILL_SHARES - 1) of the way from the first place to the last."""
    last_px = extent_px - size_px
    corner_K = np.arange(0, last_px + 1, grid_px)
    share_K = np.minimum(corner_K * STILL_SHARES // max(1, last_px), STILL_SHARES - 1)
    choices = [corner_K[np.abs(share_K - share) == np.abs(share_K - share).min()] for share in range(STILL_SHARES)]
    drawn_M = rng.random(len(share_M))
    return np.array([choices[share][int(u * len(choices[share]))] for share, u in zip(share_M, drawn_M, strict=True)], dtype=np.int64)


def stills(task: Task, images: Images, label_B: Ints, rng: Rng) -> tuple[Floats, Ints]:
    """Which digit is it, and where? Single pictures for the image pretraining, with the large and the small digits that the other tasks have."""
    batch = len(label_B)
    canvas = blank(task, batch)
    digit_B, row_B, column_B = np.unravel_index(label_B, (task.identities, STILL_SHARES, STILL_SHARES))
    place_B = images.pick(digit_B, rng)
    small_B = rng.random(batch) < task.small_share
    for chosen_B, scale, grid_px in ((small_B, 1, DIGIT_PX), (~small_B, task.scale, task.grid_px)):
        clip_M = np.flatnonzero(chosen_B)
        size_px, count = scale * DIGIT_PX, len(clip_M)
        for _ in range(task.fragments):
            paste(canvas, images.fragments(count, rng), clip_M, np.zeros_like(clip_M), *places(task, FRAGMENT_PX, count, rng, grid_px))
        for _ in range(task.scrambled):
            some_M = clip_M[rng.random(count) < task.scrambled_share]
            spot = places(task, size_px, len(some_M), rng, grid_px)
            paste(canvas, images.scrambled(len(some_M), scale, rng), some_M, np.zeros_like(some_M), *spot)
        y_M = _corner(task.height, size_px, grid_px, row_B[clip_M], rng)
        x_M = _corner(task.width, size_px, grid_px, column_B[clip_M], rng)
        paste(canvas, images.digits(place_B[clip_M], scale), clip_M, np.zeros_like(clip_M), y_M, x_M)
    return canvas, images.index_N[place_B]


PAINTERS: dict[str, Painter] = {
    "appearance": appearance,
    "direction": direction,
    "moment": moment,
    "order": order,
    "link": link,
    "stills": stills,
}
