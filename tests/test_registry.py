"""The folder is the registry, and a folder of the user's own adds to it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitgs import registry
from vitgs.errors import UsageError
from vitgs.spec import Clip
from vitgs.testing import CHECKS, Contract

OWN = """
from vitgs.backbone.vit import Vit
from vitgs.spec import Knob, System
from torch import nn


class Own(nn.Module):
    def __init__(self, size, clip, style, *, gain):
        super().__init__()
        self.gain = gain
        self.vit = Vit(size, style, clip)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW):
        return self.gain * self.head(self.vit(self.vit.patches(clip_BTCHW)).x_BND[:, 0])


SYSTEM = System(name="{name}", group="own", paper="none", construct=Own, space={{"gain": Knob(values=({gain}, 2.0), default={gain}, help="factor")}})
"""


def write(folder: Path, name: str, *, inside: str | None = None, gain: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(OWN.format(name=inside or name, gain=gain))


def test_every_file_is_a_system_of_its_name() -> None:
    files = {path.stem for path in (Path(__file__).parents[1] / "baselines").glob("*.py")}
    assert set(registry.names()) == files | {registry.METHOD}
    assert registry.names()[0] == registry.METHOD
    for name in sorted(files):
        assert registry.get(name).name == name


def test_names_imports_no_system() -> None:
    """`list` and completion must not pay for torch models."""
    code = "import sys; from vitgs import registry; registry.names(); print([m for m in sys.modules if m.startswith('vitgs.baselines.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip() == "[]"


def test_unknown_name_lists_near_ones_first() -> None:
    with pytest.raises(UsageError, match=r"given: 'timesfomer'; did you mean timesformer.*known: .*joint.*vit_mean"):
        registry.get("timesfomer")


def test_select() -> None:
    assert registry.select(["vit_*", "joint"])[-1] == "joint"
    assert registry.select(["joint", "*"])[0] == "joint"
    assert len(registry.select(["*", "joint"])) == len(registry.names())
    with pytest.raises(UsageError, match=r"given: 'nothing\*'"):
        registry.select(["nothing*"])


def test_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "own_one")
    (tmp_path / "a" / "_helper.py").write_text("raise RuntimeError")
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / "a"))
    assert "own_one" in registry.names()
    assert "_helper" not in registry.names()
    system = registry.get("own_one")
    assert registry.get("own_one") is system
    model = system.build("test", Clip(frames=2, height=16, width=16, classes=3), "digits").eval()
    clip = torch.randn(1, 2, 3, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(model))(clip), model(clip))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_own_system_keeps_the_contract(check: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system outside the package is held to the same checks."""
    write(tmp_path / "a", "own_two")
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / "a"))
    assert callable(check)
    check(Contract(system=registry.get("own_two")))


def test_same_name_in_another_folder_is_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, gain in (("a", 1.0), ("b", 3.0)):
        write(tmp_path / folder, "own_three", gain=gain)
        monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / folder))
        assert registry.get("own_three").space["gain"].default == gain


def test_file_without_its_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "own_four", inside="another")
    (tmp_path / "a" / "own_five.py").write_text("x = 1")
    (tmp_path / "a" / "own_six.py").write_text("x = 1\nraise RuntimeError('broken')")
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / "a"))
    for name in ("own_four", "own_five"):
        with pytest.raises(UsageError, match=f"the file of system {name} must define SYSTEM = System\\(name='{name}'"):
            registry.get(name)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            registry.get("own_six")


def test_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="every folder of VITGS_SYSTEMS must exist"):
        registry.names()
