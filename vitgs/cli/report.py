"""`report`: renders from results alone; needs neither torch nor a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output


def report(
    results: Annotated[list[Path] | None, typer.Option("--results", metavar="DIR", help="Where the results lie; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the report goes.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", metavar="A,B", help="html, md, csv, latex, png, pdf; all if left out.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Render the Pareto fronts as one web page, figures, and tables for a paper."""
    from vitgs.report.render import FORMATS, render

    written = render(results or [folders.results()], out or folders.reports(), options.names(formats) or FORMATS)
    if as_json:
        output.document({"files": [folders.portable(file) for file in written]})
        return
    for file in written:
        print(folders.portable(file))
