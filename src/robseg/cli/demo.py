"""`robseg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="The folder for models, runs and the report.")] = Path("robseg-demo"),
    show: Annotated[bool, typer.Option(help="Open the report in a browser where there is a screen.")] = True,
) -> None:
    """Train two small models, one plainly and one adversarially, attack both with SEA, and show what happens."""
    import os
    import sys
    import webbrowser

    from rich.console import Console
    from rich.table import Table

    from robseg.demo import EPS, SIDES, run_demo

    console = Console(emoji=False)
    console.print("Two small models learn the same made-up pictures: one plainly, one on adversarial images.")
    console.print("Then SEA, the Segmentation Ensemble Attack, looks for the worst perturbation of each picture.")
    console.print("This takes some three minutes on two cores.\n")
    results = run_demo(out, console)
    table = Table(title="worst case over the attacks, in %", title_justify="left")
    table.add_column("eps (n/255)")
    for side in SIDES:
        table.add_column(f"{side.title}: aAcc", justify="right")
        table.add_column("mIoU", justify="right")
    scores = [(0.0, [result.clean for result in results])]
    scores += [(eps, [result.at(eps).worst_case for result in results]) for eps in EPS]
    for eps, columns in scores:
        values = [f"{100 * (value or 0):.1f}" for column in columns for value in (column.aacc, column.miou)]
        table.add_row(f"{eps:g}" if eps else "0 (clean)", *values)
    console.print(table)
    console.print(f"the story:  {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
    again = f"robseg evaluate {out / 'models' / 'robust'} --data 'shapes?count=8' --eps 4 --out my-run"
    console.print(f"go on:      {again}", soft_wrap=True, highlight=False, markup=False)
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if show and has_screen and sys.stdout.isatty():
        webbrowser.open((out / "report.html").resolve().as_uri())
