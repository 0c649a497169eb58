"""Scores of one set of predictions; all are fractions in [0, 1], and nan where nothing was counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robseg.metrics.counts import Counts

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What `scores` finds.

    aacc_pooled: share of correct pixels, all images pooled.
    aacc_image_mean: share of correct pixels per image, averaged over images (the aAcc of arXiv 2306.12941's code).
    macc: mean over classes with a label pixel of the pooled share of correct pixels.
    miou: mean over classes with a pixel in the union of the pooled IoU (CmIoU in arXiv 2407.09150).
    nmiou: the same within each image, averaged over images (NmIoU in arXiv 2407.09150).
    iou: per class, nan where the class is neither labelled nor predicted anywhere.
    accuracy: per class, nan where the class is labelled nowhere.
    images: the number of images.
    empty_images: how many of these have no counted pixel; they are in none of the means.
    """

    aacc_pooled: float
    aacc_image_mean: float
    macc: float
    miou: float
    nmiou: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    empty_images: int


def scores(counts: Counts) -> Scores:
    """All scores of (N, C) counts. Raises ValueError for another number of axes."""
    if len(counts.shape) != 2:
        raise ValueError(f"Scores need counts of (images, classes), not {counts.shape}.")
    intersection, union, target = (a.sum(axis=0) for a in (counts.intersection, counts.union, counts.target))
    iou, accuracy = _ratio(intersection, union), _ratio(intersection, target)
    return Scores(
        aacc_pooled=float(_ratio(intersection.sum(), target.sum())),
        aacc_image_mean=float(_mean(image_accuracy(counts))),
        macc=float(_mean(accuracy)),
        miou=float(_mean(iou)),
        nmiou=float(_mean(image_miou(counts))),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        images=counts.shape[0],
        empty_images=int((counts.target.sum(axis=1) == 0).sum()),
    )


def image_accuracy(counts: Counts) -> FloatArray:
    """Share of correct pixels per image: (..., N) of (..., N, C) counts, nan for images without counted pixels."""
    return _ratio(counts.intersection.sum(axis=-1), counts.target.sum(axis=-1))


def image_miou(counts: Counts) -> FloatArray:
    """Mean IoU over the classes in an image's union: (..., N), nan for images without counted pixels."""
    return _mean(_ratio(counts.intersection, counts.union))


def pooled_miou(counts: Counts) -> FloatArray:
    """mIoU with the images pooled: (...) of (..., N, C) counts, nan where no pixel was counted."""
    return _mean(_ratio(counts.intersection.sum(axis=-2), counts.union.sum(axis=-2)))


def _ratio(part: NDArray[np.int64] | FloatArray, whole: NDArray[np.int64]) -> FloatArray:
    """part / whole, nan where whole is 0."""
    out: FloatArray = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


def _mean(values: FloatArray) -> FloatArray:
    """The mean over the last axis of what is not nan; nan where nothing is left."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return _ratio(total, defined.sum(axis=-1))
