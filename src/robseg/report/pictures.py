"""The images of the report's viewer: which ones, in which order, and their pictures as data URIs.

The file must stay small enough to be sent by mail, so that pictures are scaled, and where they are many made smaller
in the steps of LEVELS until they fit.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robseg.data.base import IGNORE_INDEX
from robseg.records.result import ImageEntry, ImageRadius, Result
from robseg.records.run_folder import CLEAN, RunFolder, condition_name

BUDGET = 7_000_000
"""How many characters the pictures of all images may take together."""

MOST_IMAGES = 12
"""How many images are shown."""

SMALL = 200
"""Images whose longer side is below this are kept losslessly and drawn with visible pixels."""

HATCH = ((250, 250, 250), (205, 205, 205))
"""The two colours of the stripes that stand for ignored pixels."""


@dataclass(frozen=True)
class Level:
    """How pictures are made: the longest side (pixels), the JPEG quality, and if every attack is shown or one."""

    side: int
    quality: int
    all_attacks: bool


LEVELS = (
    Level(512, 85, True), Level(512, 85, False), Level(448, 80, False), Level(384, 75, False), Level(320, 70, False),
    Level(256, 65, False),
)  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """The viewer's images, worst first, as plain values for JSON, and the level at which they were made.

    An image has id, index, height, width, small, classes (that occur in its maps, 255 for ignored), original and label
    (data URIs, or None where not stored) and runs: per run None, or clean_accuracy, clean (the prediction) and radii.
    radii maps the radius as text to chosen_for_aacc, chosen_for_miou, accuracy per attack, and shown: per attack
    adversarial, perturbation and prediction.
    left_out: images with previews for which there was no room.
    """

    images: list[dict[str, Any]]
    level: Level
    left_out: int


def gallery(runs: Mapping[str, Result]) -> Gallery:
    """The images that have previews in at least one run, with what is stored of them; unreadable files are missing."""
    indices = _worst_first(runs)
    for level in LEVELS[:-1]:
        images = _paint(runs, indices, level)
        if len(images) == len(indices):
            return Gallery(images, level, 0)
    images = _paint(runs, indices, LEVELS[-1])
    return Gallery(images, LEVELS[-1], len(indices) - len(images))


def _paint(runs: Mapping[str, Result], indices: Sequence[int], level: Level) -> list[dict[str, Any]]:
    """The first images that fit into BUDGET; at the last level one at least.

    At the others it gives up as soon as the first images show that not all will fit.
    """
    images: list[dict[str, Any]] = []
    size = 0
    for index in indices:
        image = _Painter(runs, index, level).image()
        size += _length(image)
        expected = 0 if level is LEVELS[-1] else 0.8 * size * len(indices) / (len(images) + 1)
        if max(size, expected) > BUDGET and (images or level is not LEVELS[-1]):
            break
        images.append(image)
    return images


def _worst_first(runs: Mapping[str, Result]) -> list[int]:
    """Images with previews by their lowest accuracy in any run at any radius."""
    accuracy: dict[int, float] = {}
    stored: dict[int, int] = {}
    for result in runs.values():
        folder = _folder(result)
        own = [image for image in result.images if folder.preview_folder(image.index).is_dir()]
        for image in own:
            stored[image.index] = stored.get(image.index, 0) + 1
        for image in result.images:
            values = [image.clean_accuracy, *(value for radius in image.radii for value in radius.accuracy.values())]
            lowest = min((value for value in values if value is not None), default=2.0)
            accuracy[image.index] = min(lowest, accuracy.get(image.index, 2.0))
    # What more runs have pictures of is better to compare.
    kept = sorted(stored, key=lambda index: (-stored[index], accuracy[index], index))[:MOST_IMAGES]
    return sorted(kept, key=lambda index: (accuracy[index], index))


class _Painter:
    """Makes the entry of one image, and keeps track of the classes that occur in its maps."""

    def __init__(self, runs: Mapping[str, Result], index: int, level: Level) -> None:
        self.runs, self.index, self.level = runs, index, level
        first = next(iter(runs.values()))
        self.colours = [entry.colour for entry in first.data.classes]
        self.classes: set[int] = set()

    def image(self) -> dict[str, Any]:
        entries = [_entry(result, self.index) for result in self.runs.values()]
        known = next(entry for entry in entries if entry is not None)
        previews = [_folder(result).preview_folder(self.index) for result in self.runs.values()]
        return {
            "id": known.id, "index": known.index, "height": known.height, "width": known.width,
            "small": max(known.height, known.width) < SMALL,
            "original": _first(photograph(place / "original.png", self.level) for place in previews),
            "label": _first(self._map(place / "label.png") for place in previews),
            "runs": [
                None if entry is None else self._run(result, entry)
                for result, entry in zip(self.runs.values(), entries, strict=True)
            ],
            "classes": sorted(self.classes),
        }  # fmt: skip

    def _run(self, result: Result, entry: ImageEntry) -> dict[str, Any]:
        return {
            "clean_accuracy": entry.clean_accuracy,
            "clean": self._map(_folder(result).prediction_file(CLEAN, self.index)),
            "radii": {f"{radius.eps:g}": self._radius(result, radius) for radius in entry.radii},
        }

    def _radius(self, result: Result, radius: ImageRadius) -> dict[str, Any]:
        names = list(radius.accuracy) if self.level.all_attacks else [radius.chosen_for_miou]
        shown = {name: self._attacked(result, radius.eps, name) for name in names if name != CLEAN}
        return {
            "chosen_for_aacc": radius.chosen_for_aacc,
            "chosen_for_miou": radius.chosen_for_miou,
            "accuracy": radius.accuracy,
            "shown": {name: pictures for name, pictures in shown.items() if any(pictures.values())},
        }

    def _attacked(self, result: Result, eps: float, attack: str) -> dict[str, str | None]:
        condition, folder = condition_name(eps, attack), _folder(result)
        place = folder.preview_folder(self.index)
        return {
            "adversarial": photograph(place / f"{condition}.png", self.level),
            "perturbation": _noise(place / f"{condition}_perturbation.png", self.level),
            "prediction": self._map(folder.prediction_file(condition, self.index)),
        }

    def _map(self, file: Path) -> str | None:
        painted = paint_map(file, self.colours, self.level.side)
        if painted is None:
            return None
        self.classes |= painted[1]
        return painted[0]


def paint_map(file: Path, colours: Sequence[Sequence[int]], side: int) -> tuple[str, set[int]] | None:
    """An index PNG in the colours of the classes, ignored pixels hatched, as a data URI, and the classes that occur in
    it (255 for ignored). side: the longest, in pixels. None where there is no such picture."""
    picture = _open(file)
    if picture is None or picture.mode not in ("L", "P", "1"):
        return None
    values = np.asarray(_shrink(picture, side, Image.Resampling.NEAREST), dtype=np.uint8)
    count = len(colours)
    known = values < count
    classes = set(np.flatnonzero(np.bincount(values[known])).tolist())
    if not known.all():
        classes.add(IGNORE_INDEX)
    rows, columns = np.indices(values.shape)
    stripe = (rows + columns) // max(1, max(values.shape) // 64) % 4 == 0
    # Two numbers that no class has; with 255 classes there is but one, and no stripes.
    pale, dark = IGNORE_INDEX, min(count, IGNORE_INDEX)
    indices = np.where(known, values, np.where(stripe, dark, pale)).astype(np.uint8)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:count] = colours
    palette[dark], palette[pale] = HATCH[1], HATCH[0]
    drawn = Image.fromarray(indices)
    drawn.putpalette(palette.tobytes())
    return _uri(drawn, "PNG"), classes


def photograph(file: Path, level: Level) -> str | None:
    """An image as a data URI, scaled to the level; None where there is no such picture."""
    picture = _open(file)
    if picture is None:
        return None
    small = max(picture.size) < SMALL
    picture = _shrink(picture.convert("RGB"), level.side, Image.Resampling.LANCZOS)
    return _uri(picture, "PNG") if small else _uri(picture, "JPEG", quality=level.quality)


def _noise(file: Path, level: Level) -> str | None:
    """A perturbation. It is noise, which hardly compresses, and averaging pixels would turn it grey: pick some."""
    picture = _open(file)
    if picture is None:
        return None
    small = max(picture.size) < SMALL
    picture = _shrink(picture.convert("RGB"), max(SMALL, level.side // 2), Image.Resampling.NEAREST)
    return _uri(picture, "PNG") if small else _uri(picture, "JPEG", quality=level.quality - 10)


def _open(file: Path) -> Image.Image | None:
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.copy()
    # Damaged PNGs raise SyntaxError or ValueError, what is no picture an OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _shrink(picture: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(scale * length)) for length in picture.size)
    return picture.resize((width, height), how)


def _uri(picture: Image.Image, form: str, **options: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _length(value: Any) -> int:
    """The characters of all texts in nested values."""
    if isinstance(value, str):
        return len(value)
    parts: Sequence[Any] = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return sum(_length(part) for part in parts)


def _first(found: Any) -> Any:
    return next((value for value in found if value is not None), None)


def _entry(result: Result, index: int) -> ImageEntry | None:
    return next((image for image in result.images if image.index == index), None)


def _folder(result: Result) -> RunFolder:
    assert result.folder is not None
    return RunFolder(result.folder, len(result.data.classes))
