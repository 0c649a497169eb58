"""`robseg train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robseg.errors import UserError

if TYPE_CHECKING:
    from robseg.training.train import TrainingResult


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A name of `robseg recipes`, or a YAML file; with --resume it may be left out."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change, as epochs=10 optimiser.lr=1e-4."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the training: new, or that of the same training to go on with. Default: runs/RECIPE."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the folder holds; where it holds nothing, begin.")
    ] = False,
    classes: Annotated[int | None, typer.Option(help="Number of classes, where the data do not say it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Train a model as a recipe says, clean or adversarially; the folder is a MODEL for `robseg evaluate`.

    Several processes share each batch: torchrun --nproc-per-node 2 -m robseg train RECIPE --out RUN.
    """
    texts = list(changes or ())
    if recipe is not None and "=" in recipe:
        texts.insert(0, recipe)
        recipe = None
    if recipe is None and (out is None or not resume):
        raise UserError(
            "Name a recipe (`robseg recipes` lists them), or say what to go on with: --resume --out FOLDER."
        )

    from robseg.training.recipes.files import parse_overrides
    from robseg.training.train import train as run

    result = run(recipe, out=out, resume=resume, classes=classes, device=device, **parse_overrides(texts))
    if result.rank == 0:
        show_training(result)


def show_training(result: TrainingResult) -> None:
    """Print what came out, where it is, and what to do next."""
    from rich.console import Console

    from robseg.report.training_page import commands, read_training

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    console.print(f"{result.folder}: {result.steps} steps{loss}", markup=False)
    for name, line in (("last", result.validation), ("best", result.best)):
        if line is not None:
            console.print(f"{name} validation, step {line['step']}: {_scores(line['validation'])}", markup=False)
    console.print(f"report: {result.folder / 'report.html'}", markup=False)
    # The last command of the report is the one that the training was made for.
    console.print(f"go on: {commands(read_training(result.folder))[-1][1]}", markup=False)


def _scores(validation: dict[str, object]) -> str:
    parts = []
    for condition in ("clean", "attacked"):
        scores = validation[condition]
        if isinstance(scores, dict):
            name = condition if condition == "clean" else f"under attack at {validation['eps']:g}/255"
            values = (f"{label} {_percent(scores[key])}" for label, key in (("aAcc", "aacc"), ("mIoU", "miou")))
            parts.append(f"{name}: {', '.join(values)}")
    return f"{'; '.join(parts)} (best by {validation['criterion']})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
