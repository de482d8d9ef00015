"""`measure` prints every value with its interval or the reason why there is none."""

from __future__ import annotations

import pytest

from tests.cli.command import Ran, one_line

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
        (["--weights", "nowhere.safetensors"], "a weights file must exist"),
        (["--weights", "timm:no_such_model"], "names a model of timm"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments: list[str], says: str, ran: Ran) -> None:
    assert says in one_line(ran(["measure", "vit_mean", *SMALL, *arguments]), 2)
