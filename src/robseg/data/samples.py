"""Checks of samples and data sets, and data sets made of what the Python API is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robseg.data.base import IGNORE_INDEX, ClassList, Dataset, Sample
from robseg.data.classes import check_count
from robseg.errors import UserError


def check_sample(sample: Sample, num_classes: int) -> None:
    """Raise UserError, with the id, unless the sample is what the project computes with.

    image: (3, H, W), floating point, finite, in [0, 1]. label: (H, W), int64, 0..num_classes-1 or 255.
    """
    if not isinstance(sample.id, str) or not sample.id:
        raise UserError(f"The id of a sample is {sample.id!r}; it must be a string that is not empty.")
    _check_image(sample.image, f"The image of sample '{sample.id}'")
    _check_label(sample.label, sample.image, num_classes, f"The label of sample '{sample.id}'")


def _check_image(image: Tensor, what: str) -> None:
    if not isinstance(image, Tensor):
        raise UserError(f"{what} is a {type(image).__name__}; it must be a torch.Tensor of shape (3, H, W).")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        hint = "; move the channels to the front with permute(2, 0, 1)" if image.shape[-1:] == (3,) else ""
        raise UserError(f"{what} has the shape {tuple(image.shape)}; it must be (3, H, W){hint}.")
    if not image.is_floating_point():
        raise UserError(
            f"{what} is {_dtype(image)}; it must be float32 in [0, 1]: divide by 255 (image.float() / 255)."
        )
    if not image.isfinite().all():
        raise UserError(f"{what} holds NaN or infinite values; every value must be in [0, 1].")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        if low < 0:
            hint = "normalisation by mean and std belongs into the model, and overshoot of resizing into clamp(0, 1)"
        else:
            hint = "divide by 255" if high > 2 else "clamp(0, 1) removes the overshoot of resizing"
        raise UserError(f"{what} has values from {low:.6g} to {high:.6g}; they must be in [0, 1]: {hint}.")


def _check_label(label: Tensor, image: Tensor, num_classes: int, what: str) -> None:
    if not isinstance(label, Tensor):
        raise UserError(f"{what} is a {type(label).__name__}; it must be a torch.Tensor of shape (H, W).")
    size = tuple(image.shape[1:])
    if tuple(label.shape) != size:
        raise UserError(f"{what} has the shape {tuple(label.shape)}; it must be {size}, the (H, W) of its image.")
    if label.dtype != torch.int64:
        raise UserError(f"{what} is {_dtype(label)}; it must be int64: label.long().")
    wrong = (label != IGNORE_INDEX) & ((label < 0) | (label >= num_classes))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise UserError(
            f"{what} holds {int(label[row, column])} at row {row}, column {column} ({int(wrong.sum())} such pixels); "
            f"it must be 0 to {num_classes - 1}, or {IGNORE_INDEX} where it is to be ignored."
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_dataset(dataset: Dataset) -> None:
    """Raise UserError unless the set has 1 to 255 classes, no two of one name, and for each sample an id of its own.

    Decodes nothing.
    """
    what = f"The data set '{dataset.name}'"
    check_count(len(dataset.classes), what)
    if len(set(dataset.classes.names)) < len(dataset.classes):
        raise UserError(f"{what} has two classes of one name; names must be unique.")
    if len(dataset) == 0:
        raise UserError(f"{what} is empty; at least one sample is needed.")
    if len(dataset.ids) != len(dataset):
        raise UserError(f"{what} has {len(dataset)} samples but {len(dataset.ids)} ids; each sample needs one id.")
    first: dict[str, int] = {}
    for index, name in enumerate(dataset.ids):
        if not isinstance(name, str) or not name:
            raise UserError(f"The id of sample {index} is {name!r}; it must be a string that is not empty.")
        if first.setdefault(name, index) != index:
            raise UserError(f"The samples {first[name]} and {index} both have the id '{name}'; ids must be unique.")


@dataclass
class SampleList:
    """A data set over any sequence of (image, label, id). Each sample is checked when it is asked for."""

    samples: Sequence[Any] = field(repr=False)
    classes: ClassList
    name: str = "samples"
    void: str = f"Pixels with the label {IGNORE_INDEX} are ignored."
    ids: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Ids must be known before anything is computed. A sequence that knows them itself is not run through.
        own = getattr(self.samples, "ids", None)
        self.ids = tuple(own) if own is not None else tuple(self._triple(i)[2] for i in range(len(self.samples)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index` with its image as float32 and its label as int64. Raises as `check_sample` does."""
        image, label, name = self._triple(index)
        if name != self.ids[index]:
            raise UserError(f"Sample {index} has the id {name!r}, but ids has {self.ids[index]!r}; they must be equal.")
        if isinstance(label, Tensor) and not (label.is_floating_point() or label.is_complex()):
            label = label.long()
        sample = Sample(image, label, name)
        check_sample(sample, len(self.classes))
        return sample._replace(image=image.float())

    def _triple(self, index: int) -> tuple[Any, Any, Any]:
        item = self.samples[index]
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            shape = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
            raise UserError(f"Sample {index} is a {shape}; it must be a tuple (image, label, id).")
        return item[0], item[1], item[2]


@dataclass
class _Head:
    """The first `count` samples of a data set."""

    dataset: Dataset
    count: int

    def __post_init__(self) -> None:
        self.name = f"{self.dataset.name}, first {self.count}"
        self.classes, self.void = self.dataset.classes, self.dataset.void
        self.ids = self.dataset.ids[: self.count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[range(self.count)[index]]

    def image_size(self, index: int) -> tuple[int, int]:
        return sample_size(self.dataset, range(self.count)[index])


def take(dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` samples as a data set; the set itself for None or where it has no more than that.

    Raises UserError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit of images is {limit}; it must be 1 or more.")
    return dataset if limit is None or limit >= len(dataset) else _Head(dataset, limit)


def sample_size(dataset: Dataset, index: int) -> tuple[int, int]:
    """(H, W) of a sample: by the set's own `image_size(index)` where it has one, else by decoding the sample."""
    own = getattr(dataset, "image_size", None)
    height, width = own(index) if own is not None else dataset[index].image.shape[-2:]
    return int(height), int(width)
