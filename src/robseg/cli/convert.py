"""`robseg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="The file of weights, as its authors published it, or its URL.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", help="The file to write; its card goes to OUT.safetensors.md.")
    ],
    model: Annotated[
        str | None, typer.Option(help="What the file is of; found out where it is one of `robseg models`.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, where MODEL does not fix it.")] = None,
) -> None:
    """Write a checkpoint's weights as safetensors, with a model card."""
    from robseg.loading.convert import convert as run

    card = run(checkpoint, out, model=model, classes=classes)
    print(f"{out}: {card.model}, {card.num_classes} classes")
    print(f"{out}.md")
