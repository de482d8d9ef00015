"""Where things lie: the checkout or the installed package, results, reports, suites, the cache. Nothing here creates a folder unless asked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The project's root when the package runs from a checkout, else None (installed from a wheel)."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "baselines").is_dir() else None


def suites() -> Path:
    """The folder of the suites' TOML files."""
    root = checkout()
    return root / "suites" if root else PACKAGE / "suites"


def results() -> Path:
    """`results/` of the checkout; of the working directory for an installed wheel."""
    return (checkout() or Path.cwd()) / "results"


def reports() -> Path:
    """`reports/` of the checkout; of the working directory for an installed wheel."""
    return (checkout() or Path.cwd()) / "reports"


def cache() -> Path:
    """Checkpoints and prepared data: `$VITGS_CACHE`, else the user's cache folder, else `.cache/` of the checkout or the temporary folder."""
    if named := os.environ.get("VITGS_CACHE"):
        return Path(named).expanduser()
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    candidates = [home / "vitgs", (checkout() or Path(tempfile.gettempdir())) / ".cache" / "vitgs", Path(tempfile.gettempdir()) / "vitgs"]
    return next((folder for folder in candidates if _writable(folder)), candidates[-1])


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def portable(path: Path) -> str:
    """A path as records keep it: relative to `$VITGS_DATA`, or to the working directory, never a path of one machine where that can be helped."""
    path = path.expanduser().resolve()
    for base, prefix in ((os.environ.get("VITGS_DATA"), "$VITGS_DATA/"), (str(Path.cwd()), "")):
        if base and path.is_relative_to(Path(base).expanduser().resolve()):
            return prefix + path.relative_to(Path(base).expanduser().resolve()).as_posix()
    return Path(os.path.relpath(path)).as_posix()
