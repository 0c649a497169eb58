"""`robseg evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robseg.errors import UserError

if TYPE_CHECKING:
    from robseg.records.result import Result


class Norm(StrEnum):
    linf = "linf"
    l2 = "l2"


class Precision(StrEnum):
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp64 = "fp64"


class SaveImages(StrEnum):
    no = "no"
    float = "float"
    bits8 = "8bit"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name (robseg models), a folder of a robseg training run, a published checkpoint, "
            "package.module:factory (found from the current folder; called with the number of classes when it takes "
            "one), hf:FOLDER, torchvision:NAME, smp:NAME, torchscript:FILE or export:FILE. See docs/models.md.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="NAME[:ROOT][?key=value&...], as shapes?count=64, folder:pictures?classes=names.txt, "
            "camvid:CamVid?split=val."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder: new, or that of the same run to go on with.")],
    eps: Annotated[
        list[float] | None, typer.Option(help="Radius in n/255; may be given several times. Default: 4, 8.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="sea, sea-v1, or single attacks as apgd-ce, pgd?steps=50, segpgd, bim, fgsm; may be given several "
            "times. Default: sea."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Weights for MODEL: a file (.safetensors or torch), a URL, or hf:OWNER/NAME/FILE."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of every attack; default: as published (300 for SEA).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, where the data set does not say it.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images attacked together; changes the speed, not the result.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the model.")] = Precision.fp32,
    norm: Annotated[
        Norm, typer.Option(help="Ball of the perturbations; l2 takes eps on the 0..255 scale too.")
    ] = Norm.linf,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    train_data: Annotated[
        str | None,
        typer.Option(help="Training data in which the class weights of mce-bal are counted; default: in --data."),
    ] = None,
    save_images: Annotated[
        SaveImages, typer.Option(help="Keep all adversarial images: exact, or as 8-bit PNG and then judged as such.")
    ] = SaveImages.no,
    window: Annotated[
        int | None,
        typer.Option(help="Predict over sliding windows of so many pixels with stride 2/3, as DDC-AT's test."),
    ] = None,
    long_side: Annotated[int | None, typer.Option(help="With --window: scale images to this long side first.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="Input normalisation, as 0.485,0.456,0.406; 'imagenet' for both.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Input normalisation, as 0.229,0.224,0.225.")] = None,
) -> None:
    """Attack MODEL on labelled images and write worst-case aAcc and mIoU, as numbers, files and a page to look at."""
    if mean == "imagenet" and std in (None, "imagenet"):
        mean, std = "0.485,0.456,0.406", "0.229,0.224,0.225"
    if "imagenet" in (mean, std):
        raise UserError("'imagenet' stands for both mean and std: give --mean imagenet and leave --std away.")
    means, stds = _three("mean", mean), _three("std", std)

    from robseg.evaluation.evaluate import evaluate as run

    result = run(
        model, data,
        eps=eps or (4, 8), attack=attack or "sea", out=out, checkpoint=checkpoint, classes=classes, steps=steps,
        norm=norm.value, limit=limit, seed=seed, train_data=train_data, save_images=save_images.value,
        window=window, long_side=long_side, mean=means, std=stds,
        precision=precision.value, device=device, batch_size=batch_size,
    )  # fmt: skip
    show_result(result)


def show_result(result: Result) -> None:
    """Print the table of a result, its warnings, and where its files are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(emoji=False)
    table = Table(
        title=escape(f"{result.settings['model']} on {result.data.name}, {result.data.images} images"),
        title_justify="left",
    )
    table.add_column("eps")
    table.add_column("attack")
    for name in ("aAcc", "mAcc", "mIoU", "NmIoU"):
        table.add_column(f"{name} %", justify="right")
    table.add_row("0", "clean", *_percent(result.clean), end_section=True)
    for radius in result.radii:
        for attack in radius.attacks:
            table.add_row(f"{radius.eps:g}", escape(attack.name), *_percent(attack.scores))
        table.add_row(f"{radius.eps:g}", "worst case", *_percent(radius.worst_case), style="bold", end_section=True)
    console.print(table)
    protocol = result.protocol.name + (
        f" with deviations ({'; '.join(result.protocol.deviations)})" if result.protocol.deviations else ""
    )
    console.print(
        f"eps in n/255, norm {result.settings['norm']}; protocol: {protocol}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for warning in result.warnings:
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    if result.folder is not None:
        for file in ("result.json", "report.html"):
            console.print(str(result.folder / file), markup=False, highlight=False, soft_wrap=True)


def _percent(scores: object) -> list[str]:
    values = (getattr(scores, name) for name in ("aacc", "macc", "miou", "nmiou"))
    return ["–" if value is None else f"{100 * value:.1f}" for value in values]


def _three(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise UserError(f"--{name} must be three numbers with commas between them, not '{text}'.")
    return values
