"""The counts per image and class from which every score follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Numbers of pixels per class, each array (..., C) int64; ignored pixels are in none of them.

    intersection: pixels that are labelled and predicted as the class.
    union: pixels that are labelled or predicted as the class.
    target: pixels that are labelled as the class.

    The usual shapes are (N images, C) for one set of predictions and (A attacks, N, C) for several. Since labels do
    not depend on the attack, `target` may be given with fewer leading axes; it is broadcast.
    Raises ValueError for numbers that are no integers, shapes that do not fit, or counts that no predictions have
    (0 <= intersection <= target <= union does not hold).
    """

    intersection: IntArray
    union: IntArray
    target: IntArray

    def __post_init__(self) -> None:
        intersection, union, target = map(_integers, (self.intersection, self.union, self.target))
        if intersection.ndim < 1 or intersection.shape != union.shape:
            raise ValueError(
                f"intersection {intersection.shape} and union {union.shape} must have one shape, (..., classes)."
            )
        try:
            target = np.broadcast_to(target, intersection.shape)
        except ValueError:
            raise ValueError(
                f"target {target.shape} does not fit intersection and union {intersection.shape}."
            ) from None
        if (intersection < 0).any() or (intersection > target).any() or (target > union).any():
            raise ValueError("Counts must satisfy 0 <= intersection <= target <= union for every image and class.")
        for name, array in (("intersection", intersection), ("union", union), ("target", target)):
            object.__setattr__(self, name, array)

    @property
    def shape(self) -> tuple[int, ...]:
        """The common shape of the three arrays, (..., C)."""
        return self.intersection.shape

    def images(self, index: Any) -> Counts:
        """The images at `index` (a slice, or an array of integers or booleans) of (..., N, C) counts."""
        return Counts(
            self.intersection[..., index, :],
            self.union[..., index, :],
            self.target[..., index, :],
        )

    def choose(self, choice: IntArray) -> Counts:
        """Of (A, N, C) counts the (N, C) ones in which image n is under attack choice[n]."""
        images = np.arange(self.shape[1])
        return Counts(
            self.intersection[choice, images],
            self.union[choice, images],
            self.target[choice, images],
        )


def stack(parts: Sequence[Counts]) -> Counts:
    """Counts of A attacks on the same images, each (N, C), as one of (A, N, C)."""
    return Counts(
        np.stack([part.intersection for part in parts]),
        np.stack([part.union for part in parts]),
        np.stack([part.target for part in parts]),
    )


def concatenate(parts: Sequence[Counts]) -> Counts:
    """Counts of batches, each (..., N_i, C), as one of (..., sum of N_i, C)."""
    return Counts(
        np.concatenate([part.intersection for part in parts], axis=-2),
        np.concatenate([part.union for part in parts], axis=-2),
        np.concatenate([part.target for part in parts], axis=-2),
    )


def image_counts(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int = 255) -> Counts:
    """Count the pixels of a batch, on whatever device it lies.

    prediction: (B, H, W) integer, 0..C-1; what it holds at ignored pixels does not matter.
    labels: (B, H, W) int64, 0..C-1 or `ignore_index`.
    Returns Counts of (B, C). An image with nothing but ignored pixels has zeros.
    Raises ValueError for shapes or types that do not fit, and for a label or a prediction out of range.
    """
    if prediction.shape != labels.shape or labels.ndim != 3:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and labels {tuple(labels.shape)} must both be (B, H, W)."
        )
    if prediction.is_floating_point() or labels.is_floating_point():
        raise ValueError(f"prediction ({prediction.dtype}) and labels ({labels.dtype}) must be integers.")
    batch, counted = len(labels), labels != ignore_index
    prediction, labels = prediction.long(), labels.long()
    for name, values in (("label", labels), ("prediction", prediction)):
        wrong = counted & ((values < 0) | (values >= num_classes))
        if bool(wrong.any()):
            allowed = f"0..{num_classes - 1}" + (f" or {ignore_index}, which is ignored" if name == "label" else "")
            raise ValueError(f"The {name} {int(values[wrong][0])} is out of range; allowed is {allowed}.")
    # One confusion matrix per image, side by side, and one bin at the end for what is ignored.
    bins = batch * num_classes**2
    image = torch.arange(batch, device=labels.device)[:, None, None]
    cell = torch.where(counted, (image * num_classes + labels) * num_classes + prediction, bins)
    confusion = torch.bincount(cell.flatten(), minlength=bins + 1)[:bins].view(batch, num_classes, num_classes)
    confusion_np: IntArray = confusion.cpu().numpy()
    intersection = np.diagonal(confusion_np, axis1=1, axis2=2)
    target = confusion_np.sum(axis=2)
    return Counts(intersection.copy(), target + confusion_np.sum(axis=1) - intersection, target)


def _integers(values: Any) -> IntArray:
    array = np.asarray(values)
    # An empty list has the type float64, yet holds nothing that is no integer.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Counts must be integers, not {array.dtype}.")
    return array.astype(np.int64, copy=False)
