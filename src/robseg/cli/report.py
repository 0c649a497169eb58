"""`robseg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robseg.errors import UserError


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of evaluations of the same data, each as FOLDER or TITLE=FOLDER (a folder that is there goes "
            "by its whole name); or one training run.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write, by default in the current folder.")] = Path(
        "report.html"
    ),
) -> None:
    """Write the report of an evaluation or a training anew, or of several evaluations side by side, into one file."""
    from robseg.records.training_run import METRICS
    from robseg.report.page import write_report
    from robseg.report.training_page import write_training_report

    if len(runs) == 1 and (Path(runs[0]) / METRICS).is_file():
        print(write_training_report(Path(runs[0]), out))
        return
    titled = []
    for run in runs:
        title, equals, folder = run.partition("=")
        if equals and not Path(run).is_dir():
            titled.append((title, Path(folder)))
        else:
            titled.append((Path(run).name or Path(run).resolve().name, Path(run)))
    if len({title for title, _ in titled}) < len(titled):
        raise UserError("Two runs have the same title; give each its own as TITLE=FOLDER.")
    write_report(titled, out)
    print(out)
