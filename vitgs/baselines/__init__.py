"""The seam: makes the checkout's `baselines/` importable as `vitgs.baselines.<name>`. In the wheel the files lie here already."""

from pathlib import Path

_root = Path(__file__).resolve().parents[2]
if (_root / "pyproject.toml").is_file() and (_root / "baselines").is_dir():
    __path__.append(str(_root / "baselines"))
