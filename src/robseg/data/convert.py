"""Colour masks made into index masks."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.files import read_pixels
from robseg.errors import UserError

LEAST_KNOWN = 0.01
"""Share of the pixels that must have the colour of a class for masks to be taken for masks of these classes."""


@dataclass
class Conversion:
    """How many masks were written, and the colours (with their pixels) that are of no class and became void."""

    masks: int = 0
    unknown: Counter[tuple[int, int, int]] = field(default_factory=Counter)


def index_masks(masks: Path, classes: ClassList, out: Path) -> Conversion:
    """Write each PNG below `masks`, RGB or palette, as an index PNG of the same path below `out`, which is new.

    A pixel of the colour of a class gets its number (of two classes in one colour the first), any other colour 255.
    Raises UserError where there is no mask, `out` is there already or cannot be written, a mask cannot be decoded, has
    16 bits or is an index mask already, and where hardly a pixel has the colour of a class; nothing is written then.
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
    pixels = 0
    # The folder gets its name when it is whole: half of it would look like a smaller set.
    part = out.with_name(f".{out.resolve().name}.{os.getpid()}.part")
    try:
        for file in files:
            coded = _coded(file, known)
            pixels += coded.size
            values, counts = np.unique(coded, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                if value not in known:
                    report.unknown[value >> 16, value >> 8 & 255, value & 255] += count
            target = part / file.relative_to(masks)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(codes[coded]).save(target)
            report.masks += 1
        if report.unknown.total() > (1 - LEAST_KNOWN) * pixels:
            raise UserError(
                f"Less than {LEAST_KNOWN:.0%} of the pixels in '{masks}' have the colour of a class (the most frequent "
                f"colour is {report.unknown.most_common(1)[0][0]}); are the masks of these classes, or index masks "
                "already?"
            )
        part.rename(out)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _coded(file: Path, known: set[int]) -> np.ndarray:
    """The colours of a mask (H, W) as numbers; UserError for what holds none."""
    pixels = read_pixels(file)
    if pixels.ndim == 2:
        raise UserError(f"The mask '{file}' is grey with 16 bits and holds no colours.")
    coded = _code(pixels)
    with Image.open(file) as image:
        grey = image.mode in ("1", "L")
    if grey and not known.issuperset(np.unique(coded).tolist()):
        raise UserError(
            f"The mask '{file}' is grey and holds values that are the colour of no class; if it is an index mask "
            "already, it needs no conversion."
        )
    return coded


def _code(colours: np.ndarray) -> np.ndarray:
    """RGB in the last axis as one number."""
    wide = colours.astype(np.int64)
    coded: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return coded
