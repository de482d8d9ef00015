"""`--weights`: what fits is told, and what can't be meant is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.command import Ran, one_line
from vitgs import registry
from vitgs.spec import Clip

CLIP = Clip(frames=8, height=32, width=32, classes=10)
TINY = ["--data", "digits:moment", "--size", "test", "--steps", "1", "--batch", "2"]


@pytest.fixture
def joint(tmp_path: Path) -> str:
    """Weights of `joint`, of random values."""
    save_file(registry.get("joint").build("test", CLIP, "digits").state_dict(), tmp_path / "joint.safetensors")
    return "joint.safetensors"


def test_what_fits_is_told(joint: str, ran: Ran) -> None:
    done = ran(["train", "joint", *TINY, "--weights", joint])
    assert done.code == 0
    total = len(registry.get("joint").build("test", CLIP, "digits").state_dict())
    assert f"weights: {total} of {total} tensors from a vitgs file\n" in done.err
    assert "as built" not in done.err


def test_a_head_for_other_classes_is_as_built(joint: str, ran: Ran) -> None:
    done = ran(["train", "joint", "--data", "digits:order", *TINY[2:], "--weights", joint])
    assert done.code == 0
    assert "weights: 2 as built: head.bias, head.weight" in done.err
    assert "weights: 2 of another shape (file, model): head.bias: (10,), (12,)" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["graphsampler"], "must be of this system"),
        (["timesformer"], "must be of this system"),
        (["joint", "--size", "pico"], "must be of this system, built with the same size"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(joint: str, ran: Ran, arguments: list[str], says: str) -> None:
    assert says in one_line(ran(["train", *arguments[:1], *TINY, *arguments[1:], "--weights", joint]), 2)


def test_image_weights_of_another_size_are_refused(tmp_path: Path, ran: Ran) -> None:
    import timm

    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "tiny.safetensors")
    cost = ["measure", "joint", "--frames", "2", "--resolution", "32", "--seconds", "0.1"]
    assert "must be of the model's size" in one_line(ran([*cost, "--size", "S", "--weights", "tiny.safetensors"]), 2)
    done = ran([*cost, "--size", "Ti", "--weights", "tiny.safetensors"])
    assert "tensors from a timm ViT" in done.err
