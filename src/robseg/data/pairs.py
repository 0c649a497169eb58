"""Data sets made of image files and label files: how they are matched, and how file values become labels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robseg.data.base import IGNORE_INDEX, ClassList, Sample
from robseg.data.files import read_image, read_label, read_size
from robseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)

LabelTable = dict[int, int]
"""What a value in a label file means: {file value: label}, ignored values to IGNORE_INDEX; others are errors."""


class Pair(NamedTuple):
    """The files of one sample, nothing decoded."""

    image: Path
    label: Path
    id: str


@dataclass
class PairSet:
    """A data set of image and label files, decoded when asked for. `table` says what the values in labels mean."""

    name: str
    classes: ClassList
    void: str
    pairs: tuple[Pair, ...] = field(repr=False)
    table: LabelTable = field(repr=False)
    ids: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.ids = tuple(pair.id for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample: image (3, H, W) float32 in [0, 1], label (H, W) int64.

        Raises UserError for files that cannot be decoded, differ in size, or hold a value that is not in `table`.
        """
        pair = self.pairs[index]
        image, label = read_image(pair.image), read_label(pair.label)
        if image.shape[1:] != label.shape:
            raise UserError(
                f"The image '{pair.image}' is {_size(image)} (width x height) but its label '{pair.label}' is "
                f"{_size(label)}; both must be of one size."
            )
        return Sample(image, translate(label, self.table, pair.label), pair.id)

    def image_size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, read from its header."""
        return read_size(self.pairs[index].image)


def label_table(num_classes: int, void: Iterable[int], first: int = 0) -> LabelTable:
    """The table in which class k is stored as k + first, and the `void` values are ignored (even those of a class)."""
    classes = {first + label: label for label in range(num_classes)}
    return classes | dict.fromkeys(void, IGNORE_INDEX)


def translate(values: Tensor, table: LabelTable, path: Path) -> Tensor:
    """File values (H, W) to labels (H, W) int64. UserError with the place for values that the table does not have."""
    lookup = torch.full((max(table) + 1,), -1, dtype=torch.int64)
    lookup[list(table)] = torch.tensor(list(table.values()))
    known = (values >= 0) & (values < len(lookup))
    labels = lookup[values.clamp(0, len(lookup) - 1)]
    wrong = ~known | (labels < 0)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        found = sorted(set(values[wrong].tolist()))
        others = f", and also {_some(found, values[row, column])}" if len(found) > 1 else ""
        ignored = _ranges(value for value, label in table.items() if label == IGNORE_INDEX)
        valid = _ranges(value for value, label in table.items() if label != IGNORE_INDEX)
        raise UserError(
            f"The label '{path}' holds {int(values[row, column])} at row {row}, column {column}{others} "
            f"({int(wrong.sum())} of {values.numel()} pixels), but its classes are {valid}, and "
            f"{f'{ignored} is ignored' if ignored else 'nothing is ignored'}."
        )
    return labels


def match_files(images: Path, labels: Path) -> tuple[Pair, ...]:
    """Images and labels of the same path without suffix below their folders, subfolders included, sorted by id.

    The id is that path, with forward slashes. Hidden files and other formats are passed over.
    Raises UserError for a folder that is missing or empty, an image without label or the reverse, and two files of
    one stem.
    """
    image_files = _by_stem(images, IMAGE_SUFFIXES, "image", apart_from=labels)
    label_files = _by_stem(labels, LABEL_SUFFIXES, "label", apart_from=images)
    if not image_files.keys() & label_files.keys():
        raise UserError(
            f"No image in '{images}' has a label of its name in '{labels}': there is '{min(image_files)}' here and "
            f"'{min(label_files)}' there, and names must be equal up to the suffix."
        )
    for kind, here, other, there, folder in (
        ("image", image_files, "label", label_files, labels),
        ("label", label_files, "image", image_files, images),
    ):
        lonely = sorted(here.keys() - there.keys())
        if lonely:
            raise UserError(
                f"{len(lonely)} of {len(here)} {kind}s have no {other} of the same name in '{folder}': "
                f"{_shortened([str(here[stem]) for stem in lonely])}; add the {other} or take the {kind} away."
            )
    return tuple(Pair(image_files[stem], label_files[stem], stem) for stem in sorted(image_files))


def _by_stem(folder: Path, suffixes: tuple[str, ...], kind: str, apart_from: Path) -> dict[str, Path]:
    """{path below the folder without suffix: file}, without what lies in the folder `apart_from` within it."""
    if not folder.is_dir():
        raise UserError(
            f"The folder of {kind}s '{folder}' {'is not a folder' if folder.exists() else 'does not exist'}."
        )
    found: dict[str, Path] = {}
    for top, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith(".") and Path(top, sub) != apart_from]
        for name in sorted(names):
            path = Path(top, name)
            if path.suffix.lower() not in suffixes or name.startswith("."):
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise UserError(
                    f"The {kind}s '{found[stem]}' and '{path}' have the same name up to the suffix, which must be "
                    "unique, as it is the id of the sample."
                )
            found[stem] = path
    if not found:
        raise UserError(f"There is no {kind} in '{folder}'; expected files of {', '.join(suffixes)}.")
    return found


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]} x {tensor.shape[-2]}"


def _shortened(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _some(found: list[int], shown: Tensor) -> str:
    others = [str(value) for value in found if value != shown]
    return ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")


def _ranges(values: Iterable[int]) -> str:
    """{0, 1, 2, 5} as '0 to 2, 5'."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in spans)
