"""`robseg data`: look at data before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robseg.errors import UserError

if TYPE_CHECKING:
    from robseg.data.check import Report, SplitReport
    from robseg.spec import Spec

data = typer.Typer(help="Check and look at data sets.", no_args_is_help=True)


@data.command()
def check(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="A folder, whose data sets are recognised, or NAME:ROOT?key=value&... as for robseg evaluate. Several "
            "are compared with each other, too.",
        ),
    ],
    classes: Annotated[
        str | None, typer.Option(help="Class list or number of classes of a folder that has no classes.txt.")
    ] = None,
) -> None:
    """Say what a folder holds and all that is wrong with it. Exit code 0: no fault, 2: faults."""
    from robseg.data.check import check_data
    from robseg.evaluation.progress import stages

    specs = [spec for source in sources for spec in _specs(source, classes)]
    with stages(True) as shown:
        shown.begin("reading the files", 1)
        report = check_data(specs, lambda done, total: shown.show(done / total))
    _show_report(report)
    if report.faults:
        raise typer.Exit(2)


@data.command()
def show(
    source: Annotated[str, typer.Argument(metavar="DATA", help="NAME:ROOT?key=value&... as for robseg evaluate.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option(min=1, max=200, help="How many images, spread over the set.")] = 8,
) -> None:
    """Write a contact sheet: images, their labels over them, and a legend of the classes."""
    from robseg.data import open_data
    from robseg.data.sheet import contact_sheet
    from robseg.records.files import whole_file

    if out.suffix.lower() != ".png":
        raise UserError(f"--out is '{out}'; it must be a .png.")
    sheet = contact_sheet(open_data(source), count)
    with whole_file(out) as part:
        sheet.save(part, format="PNG")
    print(out)


@data.command()
def index(
    masks: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder of colour masks (PNG).")],
    out: Annotated[Path, typer.Option(help="The folder to write the index masks to; must be new.")],
    classes: Annotated[
        str, typer.Option(help="voc, ade20k, cityscapes or camvid for their colours, or a file of lines name,r,g,b.")
    ],
) -> None:
    """Turn colour masks into index masks; colours of no class become void (255)."""
    from rich.console import Console

    from robseg.data.convert import index_masks
    from robseg.data.sets.listed import coloured_classes

    report = index_masks(masks, coloured_classes(classes), out)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    console.print(f"{report.masks} masks written to {out}", markup=False)
    for colour, pixels in report.unknown.most_common(10):
        console.print(f"  {pixels} pixels of the colour {colour} are of no class and became void (255)", markup=False)
    if len(report.unknown) > 10:
        console.print(f"  and {len(report.unknown) - 10} more colours; are these masks anti-aliased or JPEG?")


def _specs(source: str, classes: str | None) -> list[Spec]:
    from robseg.data.layouts import recognise
    from robseg.spec import Spec, parse_spec

    folder = Path(source).expanduser()
    if not folder.is_dir() and source.startswith(("/", ".", "~")):
        raise UserError(f"The folder '{folder}' does not exist (looked for from '{Path.cwd()}').")
    found = recognise(folder) if folder.is_dir() else [parse_spec(source)]
    if not found:
        raise UserError(
            f"No known data set was recognised in '{folder}'; the guide docs/data.md shows the trees, and any folder "
            "of images with a folder of labels can be given as folder:ROOT?images=...&labels=...&classes=...."
        )
    own = {} if classes is None else {"classes": classes}
    return [Spec(spec.name, spec.root, spec.options | own) if spec.name == "folder" else spec for spec in found]


def _show_report(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    for split in report.splits:
        for line in _describe(split):
            console.print(line, markup=False)
    if not report.faults:
        console.print("no fault found", markup=False)
        return
    number = len(report.faults)
    console.print(f"{number} fault{'s' if number > 1 else ''}:", markup=False)
    for fault in report.faults:
        console.print(f"  {fault.kind}: {fault.path}: {fault.text}", markup=False)


def _describe(split: SplitReport) -> list[str]:
    from robseg.data.layouts import format_spec

    sizes = ", ".join(f"{width} x {height} ({n})" for (height, width), n in split.sizes.most_common(3))
    if len(split.sizes) > 3:
        sizes += f" and {len(split.sizes) - 3} more sizes"
    absent = [name for name, n in zip(split.classes.names, split.pixels[:-1].tolist(), strict=True) if not n]
    lines = [
        format_spec(split.spec),
        f"  {split.name}: {split.images} images, {sizes}",
        f"  void: {split.void_share:.2%} of the pixels. {split.void}",
    ]
    if split.classes_known:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        without = f", without a pixel: {', '.join(absent[:8])}{more}" if absent else ""
        lines.append(f"  classes: {len(split.classes)}{without}")
    else:
        values = [label for label, n in enumerate(split.pixels[:-1].tolist()) if n]
        lines.append(
            f"  classes: not known, as there is no classes.txt; the labels hold {len(values)} values of 0 to "
            f"{max(values, default=0)}, so that classes={max(values, default=0) + 1} would fit"
        )
    return lines
