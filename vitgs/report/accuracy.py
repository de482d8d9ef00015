"""Eval rows of several seeds -> one accuracy with its interval and draws."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitgs.record import Estimate, Record
from vitgs.report.bootstrap import Resampler, percentile_interval
from vitgs.report.points import Accuracy
from vitgs.report.reading import estimate

METHOD = "mean over seeds; 95 % bootstrap over seeds and clip groups"
ONE_SEED = "one seed; 95 % bootstrap over clip groups"


class Accuracies:
    """Makes accuracies of one machine's rows; keeps one resampler for each data set and split, so that all draws are paired."""

    def __init__(self, groups: Mapping[str, tuple[int, ...]]) -> None:
        self._groups = groups
        self._resamplers: dict[tuple[str, str, str, int], Resampler] = {}
        self.ungrouped: set[str] = set()

    def of(self, rows: Sequence[Record], field: str, *, draw: bool) -> Accuracy:
        """`field`: top1 or top5, over the rows' seeds; `draw`: with interval and draws, for what is reported and not only chosen by."""
        if not rows:
            return Accuracy()
        rows = sorted(rows, key=lambda row: row.job.seed)
        seeds = tuple(row.job.seed for row in rows)
        single = [estimate(row.result.get(field)) for row in rows]
        values = [e.value for e in single if e.value is not None]
        clips = int(rows[0].result.get("clips", 0))
        if len(values) < len(rows):
            return Accuracy(estimate=Estimate.missing(single[0].reason or f"no {field} in the row"), seeds=seeds, clips=clips)
        mean = statistics.fmean(values)
        if not draw:
            return Accuracy(estimate=Estimate(value=mean), seeds=seeds, clips=clips)
        correct_SC = _correct(rows, "correct" + field[-1], clips)
        if correct_SC is None:
            low, high = (
                min((e.low for e in single if e.low is not None), default=None),
                max((e.high for e in single if e.high is not None), default=None),
            )
            return Accuracy(estimate=Estimate(value=mean, low=low, high=high, method="widest interval of the seeds"), seeds=seeds, clips=clips)
        resampler = self._resampler(rows[0], clips)
        draws = resampler.top(correct_SC, seeds)
        top = percentile_interval(mean, draws, METHOD if len(seeds) > 1 else ONE_SEED, groups=resampler.groups)
        return Accuracy(estimate=top, draws=draws, by_group=resampler.by_group(correct_SC), seeds=seeds, clips=clips)

    def _resampler(self, row: Record, clips: int) -> Resampler:
        key = (row.job.data, str(row.result.get("split")), str(row.result.get("groups") or ""), clips)
        if key not in self._resamplers:
            groups = self._groups.get(key[2], ())
            if len(groups) < clips:
                self.ungrouped.add(f"{key[0]} {key[1]}")
                groups = tuple(range(clips))
            self._resamplers[key] = Resampler("/".join(map(str, key)), groups[:clips])
        return self._resamplers[key]


def _correct(rows: Sequence[Record], field: str, clips: int) -> NDArray[np.float64] | None:
    """Share of repetitions that were right, by seed and clip; None where the rows don't say, or not of the same clips."""
    same = {(row.result.get("labels_digest"), row.result.get("groups"), row.result.get("clips")) for row in rows}
    if clips < 1 or len(same) > 1 or not all(row.result.get(field) for row in rows):
        return None
    return np.array([np.mean([_bits(bits, clips) for bits in row.result[field]], axis=0) for row in rows], dtype=np.float64)


def _bits(packed: str, clips: int) -> NDArray[np.uint8]:
    """`vitgs.record.unpack_bits` at the speed that hundreds of thousands of clips need."""
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8), bitorder="little")[:clips]
