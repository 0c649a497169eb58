"""The command line, `robseg`. Each command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import sys
import traceback

import typer
from rich.console import Console

from robseg.cli.convert import convert
from robseg.cli.data import data
from robseg.cli.demo import demo
from robseg.cli.evaluate import evaluate
from robseg.cli.models import models
from robseg.cli.recipes import recipes
from robseg.cli.report import report
from robseg.cli.train import train
from robseg.errors import UserError

app = typer.Typer(
    name="robseg",
    help="Measure how robust a semantic segmentation model is to adversarial perturbations, and train robust ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(evaluate)
app.command()(report)
app.command()(demo)
app.command()(train)
app.command()(recipes)
app.command()(models)
app.command()(convert)
app.add_typer(data, name="data")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"robseg {installed('robseg')}")
        raise typer.Exit
    _ = context


INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C stopped; typer exits with it."""


def main() -> None:
    """Run the command line: 0 when done, 2 for a mistake of the user, 1 for one of ours, 130 when interrupted."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    try:
        app()
    except UserError as error:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(error), markup=False)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            errors.print("interrupted; the same command goes on where it stopped")
        raise
    except Exception:
        # A traceback is for us: the user is told so, and where to send it.
        traceback.print_exc()
        errors.print("[bold red]error:[/] this is a fault of robseg; please report it with the lines above.")
        sys.exit(1)
