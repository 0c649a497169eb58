"""`robseg models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from robseg.models.published import PublishedModel

FORMS = {
    "FOLDER": "a model that robseg has trained",
    "FILE": "a published model's checkpoint, a TorchScript or a torch.export file",
    "package.module:factory": "a function of yours that gives a torch.nn.Module",
    "hf:FOLDER, hf:NAME": "transformers' semantic segmentation, of a folder or of the Hugging Face Hub",
    "torchvision:NAME": "torchvision's segmentation models",
    "smp:ARCHITECTURE?encoder=NAME": "segmentation_models_pytorch",
}


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Tell all that is known of this one.")] = None,
) -> None:
    """List the models that MODEL may name: what they were trained on, how robust they are, where their weights are."""
    from robseg.errors import unknown_name
    from robseg.models.architectures import ARCHITECTURES
    from robseg.models.published import PUBLISHED

    if name is None:
        _show_all()
    elif name in PUBLISHED:
        _show_one(PUBLISHED[name])
    elif name in ARCHITECTURES:
        summary = (ARCHITECTURES[name].__doc__ or "").strip().splitlines()[0]
        print(f"{name}: {summary}")
        print("A bare architecture for any number of classes, without weights: give them with --checkpoint.")
    else:
        raise unknown_name("model", name, [*PUBLISHED, *ARCHITECTURES])


def _show_all() -> None:
    from rich.console import Console

    from robseg.loading.places import stored_weights
    from robseg.models.architectures import ARCHITECTURES
    from robseg.models.published import PUBLISHED

    console = Console(highlight=False, emoji=False)
    groups: dict[tuple[str, str, str, str | None], list[PublishedModel]] = {}
    for model in PUBLISHED.values():
        groups.setdefault((model.source, model.input, model.page, model.licence), []).append(model)
    for (source, convention, page, licence), members in groups.items():
        console.print(f"[bold]{source}[/]")
        for key, value in (("input", convention), ("weights", page), ("licence", licence or "not stated")):
            console.print(f"  {key}: {value}", markup=False)
        console.print(_table(members, {model.name for model in members if stored_weights(model.name)}))
    console.print("mIoU in %: clean, and the published worst case of SEA at eps 4/255 and 8/255.")
    console.print("`robseg models NAME` tells all of a model, and which file holds its weights.")
    console.print(f"\nBare architectures, for --checkpoint: {', '.join(ARCHITECTURES)}")
    console.print("\nMODEL may also be")
    for form, meaning in FORMS.items():
        console.print(f"  {form}: {meaning}", markup=False)


def _table(members: list[PublishedModel], stored: set[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("MODEL", no_wrap=True)
    table.add_column("data", no_wrap=True)
    for column in ("classes", "clean", "4/255", "8/255"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for model in members:
        miou = {score.eps: f"{score.miou:.1f}" for score in model.scores}
        numbers = (miou.get(eps, "–") for eps in (0, 4, 8))
        here = "yes" if model.name in stored else "no"
        table.add_row(model.name, model.data, str(model.num_classes), *numbers, here)
    return table


def _show_one(model: PublishedModel) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from robseg.home import home
    from robseg.loading.places import stored_weights

    console = Console(emoji=False)
    stored = stored_weights(model.name)
    place = home() / "models" / f"{model.name}.pth"
    table = Table(title=model.name, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "architecture": model.architecture,
        "data": f"{model.data}, {model.num_classes} classes",
        "method": model.source,
        "input": model.input,
        "mean": "none" if model.mean is None else ", ".join(f"{value:g}" for value in model.mean),
        "std": "none" if model.std is None else ", ".join(f"{value:g}" for value in model.std),
        "weights": f"'{model.file}' of {model.page}",
        "sha256": "not published",
        "licence": model.licence or "not stated by the authors",
        "on this machine": str(stored) if stored else f"no; give the file with --checkpoint, or put it at {place}",
    }
    for key, value in rows.items():
        table.add_row(key, escape(value))
    for score in model.scores:
        accuracy = "" if score.aacc is None else f", aAcc {score.aacc:g} %"
        which = "clean" if score.eps == 0 else f"worst case at {score.eps}/255"
        table.add_row(which, f"mIoU {score.miou:g} %{accuracy} ({score.source})")
    if not model.scores:
        table.add_row("scores", "none published that are comparable")
    console.print(table)
