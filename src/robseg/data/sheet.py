"""A contact sheet: images, their labels drawn over them, and the classes in a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robseg.data.base import IGNORE_INDEX, ClassList, Dataset, Sample
from robseg.data.protocols import to_8bit

_TILE = 300
_GAP = 10
_LINE = 20
_NARROWEST, _WIDEST = 190, 340
_STRENGTH = 0.65
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)


def contact_sheet(dataset: Dataset, count: int = 8, columns: int = 2) -> Image.Image:
    """`count` samples, evenly spread over the data set, each as image and overlay, in `columns` pairs a row.

    The legend has the classes that occur in them, with their share of the pixels that count; void pixels are hatched.
    Raises UserError as the data set does where a sample cannot be decoded.
    """
    number = min(count, len(dataset))
    chosen = [dataset[index * len(dataset) // number] for index in range(number)]
    tiles = [_tile(sample, dataset.classes) for sample in chosen]
    columns = min(columns, number)
    rows = [tiles[first : first + columns] for first in range(0, number, columns)]
    legend = _legend(chosen, dataset.classes)
    tallest = [max(tile.height for tile in row) for row in rows]
    width = columns * (2 * _TILE + 2 * _GAP) + legend.width + 2 * _GAP
    height = max(sum(tallest) + _GAP * len(rows), legend.height) + 3 * _LINE
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), f"{dataset.name}: {number} of {len(dataset)} images", _INK, _font(15))
    draw.text((_GAP, _GAP + _LINE), _fitting(dataset.void, width - 2 * _GAP, _font(12)), _FAINT, _font(12))
    top = 3 * _LINE
    for row, tall in zip(rows, tallest, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (2 * _TILE + 2 * _GAP), top))
        top += tall + _GAP
    sheet.paste(legend, (width - legend.width, 3 * _LINE))
    return sheet


def overlay(sample: Sample, classes: ClassList) -> Image.Image:
    """The image with the colours of its labels over it, void pixels hatched in grey."""
    colours = np.zeros((256, 3))
    colours[: len(classes)] = classes.colours
    label = sample.label.numpy()
    drawn = (1 - _STRENGTH) * to_8bit(sample.image).numpy() + _STRENGTH * colours[label]
    hatched = np.where(_hatching(*label.shape)[..., None], 235, 90)
    drawn[label == IGNORE_INDEX] = np.broadcast_to(hatched, drawn.shape)[label == IGNORE_INDEX]
    return Image.fromarray(drawn.round().astype(np.uint8))


def _tile(sample: Sample, classes: ClassList) -> Image.Image:
    """Image and overlay side by side, with the id below."""
    pictures = [Image.fromarray(to_8bit(sample.image).numpy()), overlay(sample, classes)]
    height, width = sample.label.shape
    scale = min(_TILE / width, _TILE / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = Image.new("RGB", (2 * _TILE + _GAP // 2, size[1] + _LINE), _PAPER)
    for position, picture in enumerate(pictures):
        # Averaging when scaled down, the pixels themselves when scaled up.
        filtering = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
        tile.paste(picture.resize(size, filtering), (position * (size[0] + _GAP // 2), 0))
    of = f"  {width} x {height}"
    text = _fitting(sample.id, tile.width - _font(12).getlength(of), _font(12)) + of
    ImageDraw.Draw(tile).text((0, size[1] + 2), text, _FAINT, _font(12))
    return tile


def _legend(samples: Sequence[Sample], classes: ClassList) -> Image.Image:
    pixels = sum(
        (torch.bincount(sample.label.flatten(), minlength=IGNORE_INDEX + 1) for sample in samples),
        torch.zeros(IGNORE_INDEX + 1, dtype=torch.int64),
    )
    counted = max(int(pixels[: len(classes)].sum()), 1)
    entries = [
        (classes.names[label], colour, f"{int(pixels[label]) / counted:.1%}")
        for label, colour in enumerate(classes.colours)
        if pixels[label]
    ]
    share_width = _font(12).getlength("100.0%") + _GAP
    names = max((_font(13).getlength(name) for name, _, _ in entries), default=0)
    width = round(min(max(22 + names + share_width + _GAP, _NARROWEST), _WIDEST))
    legend = Image.new("RGB", (width, _LINE * (len(entries) + 1)), _PAPER)
    draw = ImageDraw.Draw(legend)
    for line, (name, colour, share) in enumerate(entries):
        draw.rectangle((0, _LINE * line + 2, 14, _LINE * line + 15), fill=colour, outline=_FAINT)
        name = _fitting(name, width - 22 - share_width - _GAP, _font(13))
        draw.text((22, _LINE * line + 1), name, _INK, _font(13))
        draw.text((width - _GAP, _LINE * line + 1), share, _FAINT, _font(12), anchor="ra")
    if pixels[IGNORE_INDEX]:
        top = _LINE * len(entries)
        hatching = np.where(_hatching(14, 15), 235, 90).astype(np.uint8)
        legend.paste(Image.fromarray(hatching).convert("RGB"), (0, top + 2))
        draw.text((22, top + 1), "void (ignored)", _INK, _font(13))
        draw.text((width - _GAP, top + 1), f"{int(pixels[255]) / int(pixels.sum()):.1%}", _FAINT, _font(12), "ra")
    return legend


def _hatching(height: int, width: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    stripes: NDArray[np.bool_] = (rows + columns) % 6 < 3
    return stripes


def _fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its beginning, with dots, as has room in so many pixels."""
    if font.getlength(text) <= width:
        return text
    return next(
        (short for n in range(len(text), 0, -1) if font.getlength(short := f"{text[:n].rstrip()}...") <= width), "..."
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
