"""`measure` prints every value with its interval or the reason why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.command import Ran, one_line
from vitgs.cli.measure import _execution

SMALL = ["--size", "test", "--style", "digits", "--resolution", "32", "--classes", "10", "--batch", "2", "--seconds", "0.2", "--threads", "1"]


def test_the_document(ran: Ran) -> None:
    found = ran(["measure", "uniform_frames", *SMALL, "--seconds", "2", "--set", "budget=0.5", "--content", "digits", "--json"]).document
    assert found["run"] == {"budget": 0.5}
    assert found["macs"] > 0
    for name in ("latency_ms", "clips_per_s", "latency_ratio", "throughput_ratio"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert found["batch"] == 2


@pytest.mark.parametrize("content", ["static", "noise"])
def test_the_table(content: str, ran: Ran) -> None:
    done = ran(["measure", "vit_mean", *SMALL, "--content", content, "--no-anchor"])
    assert done.code == 0
    assert "not measured: no anchor was given" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "--batch must be above 0"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--device", "tpu"], "a device must be"),
        (["--dtype", "int4"], "a dtype must be"),
        (["--content", "nothing"], "--content must be"),
        (["--threads", "0"], "threads must be"),
        (["--cuda-graphs"], "CUDA graphs need a CUDA device"),
        (["--device", "cuda:99"], "a CUDA device must be present"),
        (["--weights", "nowhere.safetensors"], "a weights file must exist"),
        (["--weights", "timm:no_such_model"], "names a model of timm"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran) -> None:
    assert says in one_line(ran(["measure", "vit_mean", *SMALL, *arguments]), 2)


def test_compiling_without_a_compiler_is_refused_in_one_line(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "no C++ compiler" in one_line(ran(["measure", "vit_mean", *SMALL, "--compile"]), 4)


def test_the_best_batch_is_told_with_its_curve(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitgs.measure.batches.LIMIT", 4)
    done = ran(["measure", "vit_mean", *SMALL, "--no-anchor", "--best-batch"])
    assert done.code == 0, done
    assert "clips/s at the best batch, " in done.out
    assert "largest batch that fits" in done.out
    assert "the limit of 4 clips a batch" in done.out


def test_what_compiling_took_is_told() -> None:
    ran: dict[str, dict[str, Any]] = {"subject": {"compile_s": {1: 2.0, 8: 3.5}, "graph_breaks": {1: 0, 8: 0}}, "anchor": {"compile_s": {1: 9.0}}}
    assert _execution(ran) == [("compiling in s", "batch 1: 2, batch 8: 3.5"), ("graph breaks", "batch 1: 0, batch 8: 0")]
    assert _execution({}) == []
