"""One pass over data and model before anything is attacked: faults come out now, and both get a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robseg.data import IGNORE_INDEX, Dataset, check_sample
from robseg.models.wrapper import SegmentationModel


@dataclass(frozen=True)
class Survey:
    """What a pass over a data set found.

    sizes: (H, W) of each image. counted: pixels of each image that count. class_pixels: (C,) int64 over all images.
    sha256: over ids, images and labels as decoded. on_8bit_grid: whether all images hold values k/255 only.
    """

    sizes: tuple[tuple[int, int], ...]
    counted: tuple[int, ...]
    class_pixels: Tensor
    sha256: str
    on_8bit_grid: bool

    @property
    def void_share(self) -> float:
        """Share of all pixels that is ignored."""
        return 1 - sum(self.counted) / sum(h * w for h, w in self.sizes)


def survey(dataset: Dataset, advance: Callable[[], None] = lambda: None) -> Survey:
    """Decode and check every sample; UserError names the first that is wrong. `advance` is called after each."""
    digest = hashlib.sha256()
    classes = len(dataset.classes)
    sizes, counted = [], []
    pixels, on_grid = torch.zeros(classes, dtype=torch.int64), True
    for index in range(len(dataset)):
        sample = dataset[index]
        check_sample(sample, classes)
        known = sample.label[sample.label != IGNORE_INDEX]
        pixels += torch.bincount(known, minlength=classes)
        sizes.append((sample.label.shape[0], sample.label.shape[1]))
        counted.append(len(known))
        levels = 255 * sample.image
        on_grid = on_grid and bool(((levels - levels.round()).abs() < 1e-3).all())
        digest.update(f"{sample.id}\0{tuple(sample.image.shape)}\0".encode())
        digest.update(_bytes(sample.image))
        digest.update(_bytes(sample.label.to(torch.uint8)))
        advance()
    return Survey(tuple(sizes), tuple(counted), pixels, digest.hexdigest(), on_grid)


def batches(sizes: tuple[tuple[int, int], ...], batch_size: int) -> list[list[int]]:
    """Indices in batches of one image size each, in the order in which the sizes first come."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    return [
        indices[first : first + batch_size]
        for indices in by_size.values()
        for first in range(0, len(indices), batch_size)
    ]


def model_fingerprint(model: SegmentationModel) -> str:
    """sha256 over the names, types, shapes and values of the network's state and the normalisation."""
    digest = hashlib.sha256()
    state = {**model.state_dict(), "normalisation.mean": model.mean, "normalisation.std": model.std}
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # bfloat16 has no numpy type; its bytes are all that is wanted here.
    contiguous = tensor.detach().to("cpu").contiguous().reshape(-1)
    return np.asarray(contiguous.view(torch.uint8)).tobytes() if contiguous.numel() else b""
