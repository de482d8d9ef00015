"""`measure` prints every value with its interval or the reason why there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.cli.command import Ran, one_line
from tests.data.test_folder import _video as write_video
from vitgs.cli.from_file import measure_files
from vitgs.cli.measure import _execution
from vitgs.data.folder import VideoFolder

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
        (["--end-to-end", "nowhere.mp4"], "--end-to-end takes a video file"),
        (["--cuda-graphs"], "CUDA graphs need a CUDA device"),
        (["--device", "cuda:99"], "a CUDA device must be present"),
        (["--weights", "nowhere.safetensors"], "a weights file must exist"),
        (["--weights", "timm:no_such_model"], "names a model of timm"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran) -> None:
    assert says in one_line(ran(["measure", "vit_mean", *SMALL, *arguments]), 2)


def test_from_a_file_the_model_gets_what_eval_gives_it(ran: Ran, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            write_video(tmp_path / "data" / split / label / "one.mp4", 13, step=15)
    source = VideoFolder(tmp_path / "data", "test", frames=4, height=16, width=16)
    (clips,) = source.evaluation()
    files, shape = sorted((tmp_path / "data/test").rglob("*.mp4")), replace(source.clip, class_names=None)
    seen: list[torch.Tensor] = []
    model = nn.Identity()
    model.register_forward_hook(lambda _module, given, _result: seen.append(given[0][0]))
    found = measure_files(model, {}, files, shape, device="cpu", dtype="float32", seconds=0.0)
    assert torch.equal(torch.stack(seen[:2]), clips.clip_BTCHW[clips.label_B.argsort()])
    assert [(video.frames, video.total) for video in found.videos] == [((2, 5, 8, 12), 13)] * 2
    done = ran(["measure", "vit_mean", *SMALL, "--no-anchor", "--end-to-end", str(tmp_path / "data/test/a/one.mp4")])
    assert done.code == 0, done
    assert "of 13, all decoded" in done.out
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert "broken.mp4" in one_line(ran(["measure", "vit_mean", *SMALL, "--no-anchor", "--end-to-end", str(tmp_path / "broken.mp4")]), 3)


def test_compiling_without_a_compiler_is_refused_in_one_line(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "no C++ compiler" in one_line(ran(["measure", "vit_mean", *SMALL, "--compile"]), 4)


def test_the_best_batch_is_told_with_its_curve(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitgs.measure.batches.LIMIT", 4)
    monkeypatch.setattr("vitgs.measure.batches.LONGEST_CALL", float("inf"))  # a busy machine must not end the curve earlier
    done = ran(["measure", "vit_mean", *SMALL, "--no-anchor", "--best-batch"])
    assert done.code == 0, done
    assert "clips/s at the best batch, " in done.out
    assert "largest batch that fits" in done.out
    assert "the limit of 4 clips a batch" in done.out


def test_what_compiling_took_is_told() -> None:
    ran: dict[str, dict[str, Any]] = {"subject": {"compile_s": {1: 2.0, 8: 3.5}, "graph_breaks": {1: 0, 8: 0}}, "anchor": {"compile_s": {1: 9.0}}}
    assert _execution(ran) == [("compiling in s", "batch 1: 2, batch 8: 3.5"), ("graph breaks", "batch 1: 0, batch 8: 0")]
    assert _execution({}) == []
