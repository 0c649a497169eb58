"""Colour masks made into index masks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.files import read_pixels
from robseg.errors import UserError


@dataclass
class Conversion:
    """How many masks were written, and the colours (with their pixels) that are of no class and became void."""

    masks: int = 0
    unknown: Counter[tuple[int, int, int]] = field(default_factory=Counter)


def index_masks(masks: Path, classes: ClassList, out: Path) -> Conversion:
    """Write each PNG below `masks`, RGB or palette, as an index PNG of the same path below `out`, which is new.

    A pixel of the colour of a class gets its number (of two classes in one colour the first), any other colour 255.
    Raises UserError where there is no mask, `out` is there already, a mask cannot be decoded or has 16 bits.
    """
    files = sorted(path for path in masks.rglob("*") if path.suffix.lower() == ".png" and path.is_file())
    if not files:
        raise UserError(f"There is no PNG in '{masks}' to convert.")
    if out.exists():
        raise UserError(f"'{out}' exists already; name a new folder for the index masks.")
    codes = np.full(1 << 24, IGNORE_INDEX, np.uint8)
    for label, colour in reversed(list(enumerate(classes.colours))):
        codes[_code(np.array(colour))] = label
    known = {int(_code(np.array(colour))) for colour in classes.colours}
    report = Conversion()
    for file in files:
        pixels = read_pixels(file)
        if pixels.ndim == 2:
            raise UserError(f"The mask '{file}' is grey with 16 bits and holds no colours.")
        coded = _code(pixels)
        values, counts = np.unique(coded, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value not in known:
                report.unknown[value >> 16, value >> 8 & 255, value & 255] += count
        target = out / file.relative_to(masks)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(codes[coded]).save(target)
        report.masks += 1
    return report


def _code(colours: np.ndarray) -> np.ndarray:
    """RGB in the last axis as one number."""
    wide = colours.astype(np.int64)
    coded: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return coded
