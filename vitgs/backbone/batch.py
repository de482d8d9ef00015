"""What a batch must be for a model: one line for a list of clips of several lengths, or for clips that the model was not built for."""

from __future__ import annotations

from torch import Tensor

from vitgs.errors import UsageError


def check_clip(clip_BTCHW: object, shape: tuple[int, int, int, int]) -> None:
    """Refuses what isn't one float tensor of at least one clip, each of the (frames, channels, height, width) that the model is for.

    Reads no values, so that nothing waits for a device and a compiler sees constants.
    """
    given = type(clip_BTCHW).__name__
    if isinstance(clip_BTCHW, Tensor):
        if clip_BTCHW.shape[1:] == shape and len(clip_BTCHW) > 0 and clip_BTCHW.is_floating_point():
            return
        given = f"{'x'.join(map(str, clip_BTCHW.shape))} of {clip_BTCHW.dtype}"
    elif isinstance(clip_BTCHW, (list, tuple)):
        given = f"a {given} of {len(clip_BTCHW)}"
    rule = f"a batch is one tensor of floats, Bx{'x'.join(map(str, shape))} for this model"
    remedy = "sample as many frames of each clip and stack them, or build the model for that clip; a video of any length can be streamed"
    raise UsageError(rule, given=given, remedy=remedy)
