"""The one door to all data sets: names, sizes, and an import that stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitgs.data import names, open_data
from vitgs.data.picture import sample_sheet
from vitgs.errors import UsageError


def test_listing_names_imports_nothing_heavy() -> None:
    code = "import sys, vitgs.data as d; print(d.names()); print(sorted({'torch', 'numpy', 'sklearn', 'av'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [str(names()), "[]"]


def test_sizes_go_to_the_task() -> None:
    source = open_data("digits:moment", "val", frames=16, height=48)
    assert source.clip.shape == (16, 3, 48, 32)
    assert source.name == "digits:moment"
    assert source.counts == {"train": 997, "val": 300, "test": 500}
    assert open_data("digits:stills", "train", frames=8).clip.frames == 1


@pytest.mark.parametrize(
    ("spec", "hint"), [("digits:momnet", "moment"), ("moment", "write digits:moment"), ("digit", "data set"), ("digits", "digits:<task>")]
)
def test_unknown_data_is_told(spec: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        open_data(spec, "train")


def test_temporal_scales_are_for_videos() -> None:
    assert open_data("digits:moment", "train", scales=(1.0,)).clip.frames == 8
    with pytest.raises(UsageError, match=r"for folders of videos; given: 1,0\.5 with digits:moment"):
        open_data("digits:moment", "train", scales=(1.0, 0.5))


def test_sample_sheet_is_drawn(tmp_path: Path) -> None:
    sample_sheet(tmp_path / "made" / "digits.png")
    assert (tmp_path / "made" / "digits.png").read_bytes().startswith(b"\x89PNG")
