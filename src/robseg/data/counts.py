"""Pixels of each class in a data set, counted once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from robseg.data.base import IGNORE_INDEX, Dataset
from robseg.data.pairs import PairSet
from robseg.data.protocols import ProtocolSet
from robseg.data.samples import check_sample
from robseg.data.threads import in_threads
from robseg.home import home


def class_pixels(dataset: Dataset, advance: Callable[[], None] = lambda: None) -> Tensor:
    """Pixels that count of each class in all labels, (C,) int64: what the class weights of mce-bal are made of.

    Of sets of files only the labels are decoded, and the counts are kept in `robseg.home`, under a key of the class
    encoding, the protocol, and path, size and time of change of every file; a change of any makes them be counted
    anew. `advance` is called for each sample counted. Raises UserError for a sample that is wrong.
    """
    files = _files(dataset)
    if files is None:
        return _count(dataset, range(len(dataset)), advance)
    place = home() / "class-pixels" / f"{_key(dataset, files)}.json"
    kept = _read(place, len(dataset.classes))
    if kept is not None:
        return kept
    counts = torch.zeros(len(dataset.classes), dtype=torch.int64)
    for one in in_threads(lambda index: _count(dataset, [index]), range(len(dataset))):
        counts += one
        advance()
    _write(place, dataset, counts)
    return counts


def _files(dataset: Dataset) -> PairSet | None:
    """The files that a data set is decoded from; None for one that is not."""
    inner = dataset.dataset if isinstance(dataset, ProtocolSet) else dataset
    return inner if isinstance(inner, PairSet) else None


def _count(dataset: Dataset, indices: Iterable[int], advance: Callable[[], None] = lambda: None) -> Tensor:
    counts = torch.zeros(len(dataset.classes), dtype=torch.int64)
    for index in indices:
        if isinstance(dataset, PairSet):
            label = dataset.label(index)
        else:
            sample = dataset[index]
            check_sample(sample, len(dataset.classes))
            label = sample.label
        counts += torch.bincount(label[label != IGNORE_INDEX], minlength=len(counts))
        advance()
    return counts


def _key(dataset: Dataset, files: PairSet) -> str:
    digest = hashlib.sha256()
    protocol = dataset.protocol.name if isinstance(dataset, ProtocolSet) else ""
    digest.update(json.dumps([protocol, len(dataset.classes), sorted(files.table.items())]).encode())
    for pair in files.pairs:
        # Under a protocol the label is cropped as the image is, whose size therefore matters, too.
        for path in (pair.label, pair.image) if protocol else (pair.label,):
            status = path.stat()
            digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _read(place: Path, classes: int) -> Tensor | None:
    """The counts kept, None where there are none or the file is damaged."""
    try:
        counts = json.loads(place.read_text())["pixels"]
        return torch.tensor(counts, dtype=torch.int64) if len(counts) == classes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, dataset: Dataset, counts: Tensor) -> None:
    """Keep counts; a folder that cannot be written to costs only time, next time."""
    text = json.dumps({"data": dataset.name, "images": len(dataset), "pixels": counts.tolist()})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(place)
    except OSError:
        return
