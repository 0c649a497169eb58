"""`robseg recipes`."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to print in full, with all that it inherits.")] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, as for robseg train.")
    ] = None,
) -> None:
    """List the recipes of `robseg train`, or print one with every key."""
    from rich.console import Console

    from robseg.training.recipes.files import load_recipe, recipe_names, recipe_text

    if name is not None:
        print(recipe_text(load_recipe(name, changes or (), complete=False)), end="")
        return
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    width = max(map(len, recipe_names())) + 2
    for known in recipe_names():
        recipe = load_recipe(known, complete=False)
        console.print(f"[bold]{known:<{width}}[/]{recipe.about}  [dim]{recipe.source.partition(',')[0]}[/]")
    console.print("\nrobseg recipes NAME prints one in full; robseg train NAME KEY=VALUE ... --out FOLDER trains.")
