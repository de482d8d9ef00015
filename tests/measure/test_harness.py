"""The whole of a measurement on a toy, and the models that give none."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import Tensor, nn

from vitgs.backbone.stages import stage
from vitgs.errors import UnfitMachine, UsageError
from vitgs.measure import clock, validity
from vitgs.measure.harness import Measurement, measure
from vitgs.measure.soundness import NotMeasurable, OutOfMemory, known_failures
from vitgs.measure.stagetime import stage_times
from vitgs.measure.validity import Verdict
from vitgs.record import Clip, to_json

CLIP = Clip(frames=4, height=8, width=8, classes=5)


class Toy(nn.Module):
    """Two marked stages; `depth` at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(192, 64), nn.Linear(64, 5)

    def forward(self, clip: Tensor, depth: int = 1) -> Tensor:
        with stage("backbone"):
            x = self.embed(clip.flatten(2))
            for _ in range(depth):
                x = x @ self.embed.weight[:, :64]
        with stage("head"):
            logits: Tensor = self.head(x.mean(1))
        return logits


class Answers(nn.Module):
    """Gives what it is told to."""

    def __init__(self, classes: int = 5, value: float = 0.0) -> None:
        super().__init__()
        self.classes, self.value = classes, value

    def forward(self, clip: Tensor) -> Tensor:
        return torch.full((len(clip), self.classes), self.value)


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure(
        Toy(), clip=CLIP, run={"depth": 3}, anchor=Toy(), batch=4, seconds=5.0, target=0.5, threads=1, content=lambda n: torch.ones(n, 4, 3, 8, 8)
    )


def test_a_measurement_is_whole(measured: Measurement) -> None:
    assert measured.cost.macs == 4 * (192 * 64 + 3 * 64 * 64) + 64 * 5
    assert measured.anchor_macs == 4 * (192 * 64 + 64 * 64) + 64 * 5
    for number in (measured.latency_ms, measured.throughput_clips_per_s, measured.latency_to_anchor, measured.throughput_to_anchor):
        assert number.value is not None
        assert number.value > 0
        assert number.low is not None
        assert number.high is not None
        assert number.low <= number.value <= number.high
    assert measured.content == "given"
    assert set(measured.timings) == {"subject_latency", "anchor_latency", "subject_throughput", "anchor_throughput"}
    assert set(measured.stages.share) == {"backbone", "head"}
    assert measured.memory.weights_bytes == 4 * (192 * 64 + 64 + 64 * 5 + 5)
    assert measured.energy.gross_j_per_clip.value is None
    assert measured.energy.gross_j_per_clip.reason
    assert measured.settings["threads"] == 1
    assert set(measured.flags) <= {"unstable", "few_samples", "contaminated", "throttled", "quota", "swapped", "drift"}


def test_a_measurement_is_json(measured: Measurement) -> None:
    plain = json.loads(json.dumps(to_json(measured), allow_nan=False))
    assert plain["latency_ms"]["samples"] == plain["timings"]["subject_latency"]["blocks_ms"]


def test_threads_are_given_back(measured: Measurement) -> None:
    before = torch.get_num_threads()
    measure(Answers(), clip=CLIP, run={}, batch=1, seconds=0.05, threads=before + 1)
    assert torch.get_num_threads() == before


def test_without_anchor_or_content_the_fields_say_so() -> None:
    found = measure(Answers(), clip=CLIP, run={}, batch=1, seconds=0.05)
    assert found.latency_to_anchor.value is None
    assert "anchor" in found.latency_to_anchor.reason
    assert (found.content, found.anchor_macs, found.realised_share) == ("noise", None, None)
    assert found.timings["subject_latency"] is found.timings["subject_throughput"]
    assert (found.stages.coverage, found.stages.reason) == (None, "the model marks no stages")


def test_the_best_batch_is_searched_only_when_asked(measured: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured.best_batch is None
    monkeypatch.setattr("vitgs.measure.batches.LIMIT", 4)
    content = lambda n: torch.ones(n, 4, 3, 8, 8)  # noqa: E731
    found = measure(Toy(), clip=CLIP, run={"depth": 2}, batch=2, seconds=0.3, target=0.5, content=content, best_batch=True)
    assert found.best_batch is not None
    assert [point.batch for point in found.best_batch.tried] == [1, 2, 4]
    assert (found.best_batch.batch in (1, 2, 4), found.best_batch.largest_batch) == (True, 4)
    json.dumps(to_json(found), allow_nan=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    found = measure(Toy(), clip=CLIP, run={}, batch=2, seconds=0.05, dtype=dtype)
    assert found.settings["dtype"] == dtype
    assert found.latency_ms.value is not None


class Hungry(Answers):
    """Runs out of memory at more than one clip."""

    def forward(self, clip: Tensor) -> Tensor:
        if len(clip) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 PB")
        return super().forward(clip)


def test_a_model_too_large_is_a_result_and_no_smaller_batch_is_taken() -> None:
    with pytest.raises(OutOfMemory, match="must fit into memory at the stated batch"):
        measure(Hungry(), clip=CLIP, run={}, batch=2, seconds=0.05)


def test_a_clock_that_stands_still_makes_the_machine_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = clock.time_interleaved
    monkeypatch.setattr(clock, "time_interleaved", lambda *args, **options: timed(*args, **options, clock_ns=lambda: 5))
    with pytest.raises(UnfitMachine, match="the clock must move forward"):
        measure(Answers(), clip=CLIP, run={}, batch=1, seconds=0.05)


def test_what_befell_the_machine_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(flags=("contaminated", "quota", "swapped"), foreign_share=0.4)
    monkeypatch.setattr(validity, "judge", lambda *_: verdict)
    found = measure(Answers(), clip=CLIP, run={}, batch=1, seconds=0.05)
    assert set(found.flags) >= {"contaminated", "quota", "swapped"}
    assert found.foreign_cpu_share == 0.4


@pytest.mark.parametrize(
    ("model", "words"), [(Answers(value=float("nan")), "finite"), (Answers(value=float("inf")), "finite"), (Answers(classes=4), r"\(8, 5\)")]
)
def test_unsound_models_give_no_measurement(model: nn.Module, words: str) -> None:
    with pytest.raises(NotMeasurable, match=words):
        measure(model, clip=CLIP, run={}, seconds=0.05)


def test_a_model_that_fails_is_one_line_with_its_cause() -> None:
    with pytest.raises(NotMeasurable, match="must run") as caught:
        measure(Toy(), clip=CLIP, run={"nothing": 1}, seconds=0.05)
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.flags == ()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_is_flagged_and_survives_pickling(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as caught, known_failures():
        raise error
    assert pickle.loads(pickle.dumps(caught.value)).flags == ("oom",)


@pytest.mark.parametrize(("given", "words"), [({"batch": 0}, "positive"), ({"dtype": "int8"}, "dtype"), ({"device": "tpu"}, "device")])
def test_wrong_usage(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measure(Answers(), **{"clip": CLIP, "run": {}, "seconds": 0.05, **given})  # type: ignore[arg-type]  # wrong on purpose


def test_content_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="shape"):
        measure(Answers(), clip=CLIP, run={}, seconds=0.05, content=lambda n: torch.ones(n, 4, 3, 8, 9))


def test_nested_stages_are_not_counted_twice() -> None:
    x = torch.ones(256, 256)

    def call() -> None:
        with stage("backbone"):
            x @ x
            with stage("graph"):
                x @ x

    found = stage_times(call, seconds=0.05, device=torch.device("cpu"))
    assert found.coverage is not None
    assert found.coverage <= 1
    assert sum(found.share.values()) <= 1.2
    assert found.passes >= 3
