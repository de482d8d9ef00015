"""The two revisions on the disk: the head as it lies there, the base in a git worktree of its own that is removed however the gate ends.

Both run in the present environment, unless what gets installed differs between them; then the base gets one of its own by the project's recipe.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from vitgs import folders
from vitgs.errors import NothingToWorkOn, UsageError
from vitgs.gate.sides import Tree

RECIPE = ".ci/environment"
LAST_TAG = "tag"
# Results and reports grow while others work; they don't change what is measured.
_STATUS = ("status", "--porcelain", "--", ".", ":!results", ":!reports")


def root(named: str | None) -> Path:
    """The head's folder: the one named, or the checkout that this package runs from, or the one around the working directory."""
    start = Path(named).expanduser() if named else folders.checkout() or Path.cwd()
    top = _git(start, "rev-parse", "--show-toplevel") if start.is_dir() else None
    if not top:
        raise NothingToWorkOn("the gate compares two revisions of a git repository", given=start, remedy="work in a clone, or name one with --repo")
    return Path(top).resolve()


def commit(repository: Path, revision: str) -> str:
    """The full name of a revision's commit."""
    # A revision that looks like an option would be taken for one.
    found = None if revision.startswith("-") else _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found:
        return found
    if _git(repository, "rev-parse", "--is-shallow-repository") == "true":
        remedy = "fetch the history: git fetch --unshallow (actions/checkout: fetch-depth: 0)"
        raise NothingToWorkOn("the base must be in this clone, which is shallow", given=revision, remedy=remedy)
    raise NothingToWorkOn("the base must be a revision of this repository", given=revision, remedy="git fetch it, or name a branch, tag or commit")


def older(repository: Path, named: str, *, than: str) -> str:
    """The commit to look for slow drift from: the one named, or for `tag` that of the last tag before the head."""
    if named != LAST_TAG:
        return commit(repository, named)
    tag = _git(repository, "describe", "--tags", "--abbrev=0", "HEAD^")
    if not tag:
        remedy = "git tag a release, or fetch the tags (actions/checkout: fetch-depth: 0), or name a revision"
        raise NothingToWorkOn("a tag before the head must be in this clone", given="none", remedy=remedy)
    found = commit(repository, tag)
    if found == than:
        raise NothingToWorkOn("the last tag must be older than the base", given=f"{tag}, which is the base", remedy="name an older revision")
    return found


def clean(repository: Path, *, allow_dirty: bool) -> bool:
    """Whether the head is what was committed; what isn't is refused unless it is allowed."""
    changed = (_git(repository, *_STATUS) or "").splitlines()
    if changed and not allow_dirty:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError("the head must be committed", given=f"{changed[0].strip()}{more}", remedy="commit or stash, or give --allow-dirty")
    return not changed


@contextlib.contextmanager
def checked_out(repository: Path, base: str) -> Iterator[Path]:
    """The base's files in a temporary folder, with room beside them."""
    with _ended_by_signal(), tempfile.TemporaryDirectory(prefix="vitgs-gate-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve() / "base"
        # No hooks: they may do anything, and are for people's own checkouts.
        made = _run(repository, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force", str(folder), base)
        try:
            if made.returncode:
                given = " ".join(made.stderr.split())[-200:]
                raise NothingToWorkOn("the base must check out", given=given, remedy="see it with git worktree add")
            yield folder
        finally:
            _run(repository, "worktree", "remove", "--force", "--force", str(folder))
            _run(repository, "worktree", "prune")


def base_tree(folder: Path, head: Path, threads: int) -> Tree:
    """The base with the Python that runs it."""
    if _installed_from(folder) == _installed_from(head) or not any((place / RECIPE).is_file() for place in (folder, head)):
        return Tree(side="base", folder=folder, python=sys.executable, threads=threads)
    recipe = folder / RECIPE if (folder / RECIPE).is_file() else head / RECIPE
    environment = folder.parent / "environment"
    done = subprocess.run([str(recipe), str(environment)], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        given = " ".join((done.stderr or done.stdout).split())[-300:]
        remedy = "name a base whose dependencies are the head's, or one that installs here"
        raise NothingToWorkOn("a base with other dependencies must install", given=given, remedy=remedy)
    return Tree(side="base", folder=folder, python=str(environment / "bin" / "python"), threads=threads)


def _installed_from(folder: Path) -> dict[str, Any]:
    """What of pyproject.toml and constraints.txt decides what gets installed; the tools' settings don't."""
    pins = folder / "constraints.txt"
    try:
        table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        table = {}
    project = {key: table.get("project", {}).get(key) for key in ("dependencies", "optional-dependencies", "requires-python")}
    lines = pins.read_text(encoding="utf-8").splitlines() if pins.is_file() else []
    return project | {
        "groups": table.get("dependency-groups"),
        "build": table.get("build-system"),
        "pins": sorted(line.strip() for line in lines if line.strip() and not line.startswith("#")),
    }


def _run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NothingToWorkOn("the gate needs git", given="no git on the PATH", remedy="install git") from error


def _git(repository: Path, *arguments: str) -> str | None:
    done = _run(repository, *arguments)
    return done.stdout.strip("\n") if done.returncode == 0 else None


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """A polite kill (a cancelled CI job) unwinds as Ctrl-C does, so that the worktree goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
