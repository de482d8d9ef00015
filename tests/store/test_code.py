"""The code version must change with what can change a result, and with nothing else."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from vitgs import registry
from vitgs.backbone import sizes
from vitgs.errors import UsageError
from vitgs.record import Size
from vitgs.store import code
from vitgs.store.code import code_version

TEXT = '''"""Says why."""
from vitgs.backbone.vit import Vit  # a comment


def answer(number: int) -> int:
    """Says what."""
    return number + 1
'''

Edit = Callable[[str], str]


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setenv("VITGS_SYSTEMS", str(tmp_path))

    def version(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        code._version.cache_clear()
        code._facts.cache_clear()
        return code_version("mine", "train")

    return version


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.replace("# a comment", "# another"),
        lambda t: t.replace("Says what.", "Does it."),
        lambda t: t.replace("Says why", "W"),
        lambda t: t + "\n\n",
    ],
)
def test_comments_and_docstrings_dont_count(edited: Callable[[str], str], edit: Edit) -> None:
    assert edited(edit(TEXT)) == edited(TEXT)


@pytest.mark.parametrize("edit", [lambda t: t.replace("+ 1", "+ 2"), lambda t: t.replace("backbone.vit import Vit", "backbone.block import Block")])
def test_code_and_what_it_imports_count(edited: Callable[[str], str], edit: Edit) -> None:
    assert edited(edit(TEXT)) != edited(TEXT)


def test_an_imported_file_counts_wherever_it_is_imported_from(monkeypatch: pytest.MonkeyPatch) -> None:
    code._version.cache_clear()
    before = {name: code_version(name, "train") for name in ("joint", "graphsampler")}
    facts = code._facts

    def changed(file: Path) -> tuple[tuple[str, ...], str]:
        imported, text = facts(file)
        return imported, text + ("\nx = 1" if file.name == "attention.py" else "")

    monkeypatch.setattr(code, "_facts", changed)
    code._version.cache_clear()
    assert all(code_version(name, "train") != version for name, version in before.items())
    code._version.cache_clear()


def test_each_kind_depends_on_its_own_part() -> None:
    assert len({code_version("joint", kind) for kind in ("train", "measure")}) == 2
    seen = {name: code_version(name, "measure") for name in registry.names()}
    assert len(set(seen.values())) == len(seen)


def test_rows_that_were_added_to_a_table_dont_count_and_are_named_by_their_numbers() -> None:
    _, bare = code._facts(Path(sizes.__file__))
    for row in code.ADDED:
        name, width, depth, heads, ratio = ast.literal_eval(row)[0]
        assert name == f"{width}x{depth}x{heads}" and ratio == sizes.size("nano").mlp_ratio
        assert sizes.size(name) == Size(name=name, width=width, depth=depth, heads=heads, mlp_ratio=ratio)
        assert name not in bare and '"nano"' in bare


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean joint"):
        code_version("joimt", "train")
