"""Data sets made of image files and label files, and how the values in label files become labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robseg.data.base import IGNORE_INDEX, ClassList, Sample
from robseg.data.files import read_image, read_label, read_size
from robseg.errors import UserError

LabelTable = dict[int, int]
"""What a value in a label file means: {file value: label}, ignored values to IGNORE_INDEX; others are errors."""


class Pair(NamedTuple):
    """The files of one sample, nothing decoded."""

    image: Path
    label: Path
    id: str


class Fault(NamedTuple):
    """Something wrong with one file. kind: such as "image without label". text: where and what to do, no full stop."""

    kind: str
    path: Path
    text: str


@dataclass
class PairSet:
    """A data set of image and label files, decoded when asked for.

    table: what the values in labels mean. faults: what was wrong in pairing the files; `pairs` is what is whole.
    """

    name: str
    classes: ClassList
    void: str
    pairs: tuple[Pair, ...] = field(repr=False)
    table: LabelTable = field(repr=False)
    faults: tuple[Fault, ...] = field(default=(), repr=False)
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
        check_sizes(pair, (image.shape[1], image.shape[2]), label)
        return Sample(image, translate(label, self.table, pair.label), pair.id)

    def image_size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, read from its header."""
        return read_size(self.pairs[index].image)

    def label(self, index: int) -> Tensor:
        """The label alone, (H, W) int64, without decoding the image. Raises as indexing does."""
        path = self.pairs[index].label
        return translate(read_label(path), self.table, path)


def refuse_faults(dataset: PairSet) -> None:
    """Raise UserError, with a few of the files, where some of the data set could not be paired."""
    if not dataset.faults:
        return
    first = dataset.faults[0]
    same = [str(fault.path) for fault in dataset.faults if fault.kind == first.kind]
    raise UserError(
        f"The data set '{dataset.name}' has {len(same)} × {first.kind}: {shortened(same)}; {first.text} "
        "(robseg data check lists all)."
    )


def check_sizes(pair: Pair, size: tuple[int, int], label: Tensor) -> None:
    """Raise UserError where the label (H, W) is not of the (H, W) of the image."""
    if size != tuple(label.shape):
        raise UserError(
            f"The image '{pair.image}' is {size[1]} x {size[0]} (width x height) but its label '{pair.label}' is "
            f"{label.shape[1]} x {label.shape[0]}; both must be of one size."
        )


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
        ignored = ranges(value for value, label in table.items() if label == IGNORE_INDEX)
        valid = ranges(value for value, label in table.items() if label != IGNORE_INDEX)
        raise UserError(
            f"The label '{path}' holds {int(values[row, column])} at row {row}, column {column}{others} "
            f"({int(wrong.sum())} of {values.numel()} pixels), but its classes are {valid}, and "
            f"{f'{ignored} is ignored' if ignored else 'nothing is ignored'}."
        )
    return labels


def shortened(names: list[str]) -> str:
    """'a', 'b', 'c', ..."""
    return ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")


def ranges(values: Iterable[int]) -> str:
    """{0, 1, 2, 5} as '0 to 2, 5'."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in spans)


def _some(found: list[int], shown: Tensor) -> str:
    others = [str(value) for value in found if value != shown]
    return ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
