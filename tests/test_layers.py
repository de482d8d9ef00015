"""The order of the parts, kept by parsing the imports: a module imports only from lines below its own, and neighbours never import each other.

import-linter doesn't see `baselines/`, so the checker is here, and it is itself checked on a tree with planted violations.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Top first, as in CONTRIBUTING.md. A part may import any part of a line below its own.
LAYERS = (
    ("__main__",),
    ("cli", "testing"),
    ("report", "gate", "sweep"),
    ("executor",),
    ("run",),
    ("suite", "store"),
    ("registry", "measure", "train", "data"),
    ("baselines", "graphsampler"),
    ("spec",),
    ("reduction",),
    ("backbone",),
    ("record", "numbers"),
    ("errors", "folders"),
)
LEVEL = {part: level for level, parts in enumerate(reversed(LAYERS)) for part in parts}
# The registry makes the seam importable, so it alone names the package (never a module of it) from above.
SEAM = ("registry", "baselines")
TOP_FOLDERS = {"vitgs", "baselines", "suites", "results", "reports", "tests"}
MOST_LINES = 400


def python_files(root: Path) -> list[Path]:
    """All Python files of the package and of the baselines."""
    return sorted([*(root / "vitgs").rglob("*.py"), *(root / "baselines").glob("*.py")])


def part_of(file: Path, root: Path) -> str:
    """The part that a file belongs to: `vitgs/measure/cost.py` -> `measure`; the package's own `__init__.py` -> ``."""
    parts = file.relative_to(root).with_suffix("").parts
    if parts[0] == "baselines":
        return "baselines"
    return "" if parts[1] == "__init__" else parts[1]


def imported(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Every module of this project that a file names in an import, at the top or inside a function, with its line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
                continue
            module = node.module or ""
            # `from vitgs.data import digits` names vitgs.data.digits as well as `from vitgs import data` names vitgs.data.
            names = [f"{module}.{alias.name}" if (root / module.replace(".", "/") / "__init__.py").is_file() else module for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.partition(".")[0] in ("vitgs", "baselines"))


def violations(root: Path) -> list[str]:
    """Each import that the layers forbid, as `file:line what`."""
    found = []
    for file in python_files(root):
        own = part_of(file, root)
        place = file.relative_to(root).as_posix()
        if own and own not in LEVEL:
            found.append(f"{place}: {own} stands on no line of the layers")
            continue
        for line, name in imported(file, root):
            if name.startswith("."):
                found.append(f"{place}:{line} relative import {name}")
                continue
            if name.startswith("baselines"):
                found.append(f"{place}:{line} imports {name}: systems are imported as vitgs.baselines.<name>")
                continue
            other = name.split(".")[1] if "." in name else ""
            other = other if other in LEVEL else ""  # `vitgs.__version__`
            inside = other == own and own != "baselines"
            if not other or inside or (not own and other in ("errors", "folders")):
                continue
            if (own, other) != SEAM and LEVEL[other] >= LEVEL.get(own, -1):
                found.append(f"{place}:{line} {own} imports {name}")
    return found


def plant(root: Path, files: dict[str, str]) -> Path:
    """A small tree with the project's shape."""
    packages = {f"vitgs/{part}/__init__.py": '"""A part."""\n' for part in ("measure", "data", "baselines", "backbone", "report", "graphsampler")}
    for name, text in {"vitgs/__init__.py": "", "vitgs/registry.py": "", "vitgs/run.py": "", "vitgs/spec.py": "", **packages, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_every_import_goes_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("vitgs/backbone/vit.py", "from vitgs.measure import cost"),
        ("vitgs/backbone/vit.py", "def late():\n    import vitgs.run"),
        ("vitgs/backbone/vit.py", "from vitgs import spec"),
        ("vitgs/measure/cost.py", "from vitgs import data"),
        ("vitgs/measure/cost.py", "from vitgs.data.digits import Digits"),
        ("vitgs/data/__init__.py", "import vitgs.registry"),
        ("baselines/joint.py", "from vitgs import registry"),
        ("baselines/joint.py", "from vitgs.measure.cost import count"),
        ("baselines/joint.py", "from vitgs.baselines.vit_mean import VitMean"),
        ("baselines/joint.py", "from vitgs.graphsampler import model"),
        ("baselines/joint.py", "import baselines.vit_mean"),
        ("baselines/joint.py", "from . import vit_mean"),
        ("vitgs/graphsampler/model.py", "import vitgs.baselines"),
        ("vitgs/helpers.py", "x = 1"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str) -> None:
    root = plant(tmp_path, {file: text})
    assert len(violations(root)) == 1


def test_what_the_layers_allow_is_not_reported(tmp_path: Path) -> None:
    allowed = {
        "vitgs/run.py": "from vitgs import registry, data\nfrom vitgs.measure import cost\nimport vitgs.spec\nimport torch",
        "vitgs/registry.py": "import vitgs.baselines\nfrom vitgs.spec import System",
        "vitgs/measure/cost.py": "from vitgs.measure import clock\nfrom vitgs.backbone import stages",
        "vitgs/report/page.py": "import vitgs\nfrom vitgs import __version__, run",
        "baselines/joint.py": "from vitgs.spec import System\nfrom vitgs.backbone.vit import Vit",
    }
    assert violations(plant(tmp_path, allowed)) == []


def test_every_file_says_why_it_exists() -> None:
    files = [*python_files(ROOT), *(ROOT / "tests").rglob("*.py")]
    assert [str(f.relative_to(ROOT)) for f in files if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))] == []


def test_no_file_is_long() -> None:
    files = [*python_files(ROOT), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_top_folders_are_the_agreed_ones() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    built = {"build", "dist"} | {name for name in found if name.endswith(".egg-info")}
    assert found - built <= TOP_FOLDERS


def test_baselines_holds_systems_and_nothing_else() -> None:
    odd = [p.name for p in (ROOT / "baselines").iterdir() if p.suffix != ".py" and p.name != "__pycache__"]
    assert odd == []
