"""Batches for training: decoded and transformed by worker processes, in an order that only the seed decides."""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robseg.data.augment import Augmentation, Pixels, augment_pixels, generator_of, to_pixels
from robseg.data.base import Dataset
from robseg.data.samples import sample_size
from robseg.errors import UserError
from robseg.seeding import image_generator

CACHE_BYTES = 4 * 2**30
"""Data sets of up to this size, as 8 bits, are decoded once and kept."""

Place = tuple[int, int]
"""(epoch, index of the sample)."""


class Batch(NamedTuple):
    """images (B, 3, H, W) float32 in [0, 1], labels (B, H, W) int64; keys: a text that occurs once in the training."""

    images: Tensor
    labels: Tensor
    keys: list[str]


def training_batches(
    data: Dataset,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int = 0,
    first: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
    device: str | torch.device = "cpu",
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[Batch]:
    """Batches without end, each epoch in an order of its own; a batch may span two epochs.

    What a batch holds is a function of `data`, `augmentation`, `batch_size`, `seed` and its number alone: workers,
    cache and device change the speed. first: the number of the batch to begin with, where training goes on.
    rank, processes: this process gets every `processes`-th image of each batch, from the rank-th on; together they get
    the batches of a single process. workers: processes that decode and transform ahead of the consumer; 0: none.
    device: where batches are put; from pinned memory where it is a CUDA device.
    cache_bytes: sets of up to this size in 8 bits are decoded once, into memory that all workers share.

    Raises UserError for a batch size that the processes cannot share, and for a sample that cannot be decoded.
    """
    if batch_size < 1 or batch_size % processes:
        raise UserError(f"The batch size is {batch_size}; it must be a multiple of the {processes} processes, above 0.")
    device = torch.device(device)
    forked = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    source = _Source(data, augmentation, seed, _cache(data, cache_bytes) if workers == 0 or forked else None)
    loader = DataLoader(
        source,
        batch_sampler=_Batches(len(data), batch_size, seed, first, rank, processes),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if forked else None,
        # Nothing is drawn from it; without it, the loader would take a number from the global generator.
        generator=torch.Generator(),
    )
    for images, labels, keys in loader:
        if isinstance(images, UserError):
            raise images
        # Sent as 8 bits, a quarter of the size, and widened where it is consumed.
        images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div(255)
        yield Batch(images.contiguous(), labels.to(device, non_blocking=True).long(), keys)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` samples in an epoch."""
    return torch.randperm(count, generator=image_generator(seed, f"epoch {epoch}", "order")).tolist()


class _Batches:
    """The (epoch, index) of every batch, without end."""

    def __init__(self, count: int, batch_size: int, seed: int, first: int, rank: int, processes: int) -> None:
        self.count, self.batch_size, self.seed, self.first = count, batch_size, seed, first
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, skipped = divmod(self.first * self.batch_size, self.count)
        places = itertools.islice(self._places(epoch), skipped, None)
        while True:
            yield list(itertools.islice(places, self.batch_size))[self.rank :: self.processes]

    def _places(self, epoch: int) -> Iterator[Place]:
        for number in itertools.count(epoch):
            yield from ((number, index) for index in epoch_order(self.count, self.seed, number))


class _Source(TorchDataset[Any]):
    """What the workers run: the sample of a place, decoded or from the cache, and transformed."""

    def __init__(self, data: Dataset, augmentation: Augmentation, seed: int, cache: _Cache | None) -> None:
        self.data, self.augmentation, self.seed, self.cache = data, augmentation, seed, cache

    def __getitem__(self, place: Place) -> tuple[Pixels, str] | UserError:
        epoch, index = place
        name = self.data.ids[index]
        try:
            pixels = self.cache.get(index) if self.cache is not None else None
            if pixels is None:
                pixels = to_pixels(self.data[index])
                if self.cache is not None:
                    self.cache.put(index, pixels)
        except UserError as error:
            # Raised in a worker it would come back with a traceback in its message.
            return error
        return augment_pixels(pixels, self.augmentation, generator_of(name, self.seed, epoch)), f"{name}/epoch {epoch}"


def _collate(items: Sequence[tuple[Pixels, str] | UserError]) -> tuple[Any, Any, list[str]]:
    good = [item for item in items if not isinstance(item, UserError)]
    if len(good) < len(items):
        return next(item for item in items if isinstance(item, UserError)), None, []
    images = torch.from_numpy(np.stack([pixels.image for pixels, _ in good]))
    labels = torch.from_numpy(np.stack([pixels.label for pixels, _ in good]))
    return images, labels, [key for _, key in good]


class _Cache:
    """All samples of a data set as 8 bits, in memory that forked workers share and fill as they go."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = sizes
        self._starts = [0, *itertools.accumulate(4 * height * width for height, width in sizes)]
        # Anonymous memory: the tmpfs of shared tensors is limited to a few MiB in many containers.
        self._bytes = np.frombuffer(mmap.mmap(-1, max(self._starts[-1], 1)), np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, len(sizes)), np.uint8)

    def get(self, index: int) -> Pixels | None:
        if not self._filled[index]:
            return None
        image, label = self._slots(index)
        return Pixels(image, label)

    def put(self, index: int, pixels: Pixels) -> None:
        image, label = self._slots(index)
        # A data set whose sizes are not those it announces is left uncached.
        if image.shape != pixels.image.shape or label.shape != pixels.label.shape:
            return
        image[...], label[...] = pixels.image, pixels.label
        # Two workers may write the same bytes; the mark comes last, so that no one reads half of them.
        self._filled[index] = 1

    def _slots(self, index: int) -> tuple[Any, Any]:
        height, width = self._sizes[index]
        start, end = self._starts[index], self._starts[index + 1]
        middle = start + 3 * height * width
        return self._bytes[start:middle].reshape(height, width, 3), self._bytes[middle:end].reshape(height, width)


def _cache(data: Dataset, limit: int) -> _Cache | None:
    """A cache for data that announce their sizes and fit into `limit` bytes; None for others."""
    if limit <= 0 or not hasattr(data, "image_size"):
        return None
    # A first guess spares reading the headers of sets that are far too large.
    if len(data) * 4 * math.prod(sample_size(data, 0)) > 4 * limit:
        return None
    sizes = [sample_size(data, index) for index in range(len(data))]
    return _Cache(sizes) if sum(4 * height * width for height, width in sizes) <= limit else None
