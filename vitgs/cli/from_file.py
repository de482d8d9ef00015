"""`measure --end-to-end`: the same model fed from video files, as `eval` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitgs.errors import NothingToWorkOn, UsageError
from vitgs.record import Clip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitgs.data.video import Decoded
    from vitgs.measure.endtoend import EndToEnd

MOST_VIDEOS = 8
NORMAL = "imagenet"


def videos(place: str) -> list[Path]:
    """The file, or the first few videos of the folder, in order of their names."""
    from vitgs.data.video import EXTENSIONS

    path = Path(place).expanduser()
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)[:MOST_VIDEOS]
    if not found:
        raise UsageError("--end-to-end takes a video file or a folder of videos", given=place, remedy="check the path")
    return found


def readable(files: list[Path], clip: Clip) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files that can be decoded, and the name and reason of the others, before anything is measured."""
    from vitgs.data.folder import evaluation_frames
    from vitgs.data.video import Undecodable

    good, left_out = list[Path](), list[tuple[str, str]]()
    for file in files:
        try:
            evaluation_frames(file, clip)
            good.append(file)
        except Undecodable as error:
            left_out.append((file.name, str(error)))
    if not good:
        raise NothingToWorkOn("a video must be one that can be decoded", given=": ".join(left_out[0]), remedy="give another file")
    return good, left_out


def measure_files(model: nn.Module, run: Mapping[str, Any], files: list[Path], clip: Clip, *, device: str, dtype: str, seconds: float) -> EndToEnd:
    """Times decoding, crop and normalisation, and the model at batch 1, in eager mode."""
    from vitgs.data import transforms
    from vitgs.data.folder import evaluation_frames
    from vitgs.measure import endtoend, setting

    where, kind = setting.device_of(device), setting.dtype_of(dtype)

    def pixels(video: Decoded) -> Tensor:
        return transforms.normalised([transforms.centre_crop(video.frame_THWC, clip.height, clip.width)], NORMAL).to(kind)

    def frames(file: Path) -> Decoded:
        return evaluation_frames(file, clip)

    model.to(where, kind).eval()
    return endtoend.end_to_end(files, frames, pixels, lambda clips: model(clips, **run), device=where, seconds=seconds)


def lines(found: EndToEnd | None, left_out: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """For people: the sum, its parts, which frames each video gave, and what could not be read."""
    from vitgs.numbers import interval

    if found is None:
        return []
    total = found.latency_ms
    parts = ", ".join(f"{name} {interval(each.value, None, None)}" for name, each in found.part_ms.items())
    doubts = f"; with doubt: {', '.join(found.flags)}" if found.flags else ""
    return [
        ("end to end in ms a video, eager", f"{interval(total.value, total.low, total.high)}: {parts}{doubts}"),
        *((f"frames of {video.name}", f"{', '.join(map(str, video.frames))} of {video.total}, all decoded") for video in found.videos),
        *((f"left out: {name}", why) for name, why in left_out),
    ]
