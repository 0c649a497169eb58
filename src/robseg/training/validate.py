"""A full pass over the validation set, clean and under a short attack."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robseg.attacks.catalogue import AttackConfig
from robseg.data.base import IGNORE_INDEX, Dataset, Sample
from robseg.data.threads import in_threads
from robseg.metrics.counts import Counts, image_counts
from robseg.metrics.scores import image_accuracy, scores
from robseg.models.modes import attack_mode
from robseg.models.wrapper import SegmentationModel
from robseg.training.faults import network_faults
from robseg.training.run_folder import Picture
from robseg.training.together import Group


class NotFinite(Exception):  # noqa: N818 - told by the caller as an error of the training
    """The logits of some image are no numbers."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A process was asked to stop while the validation ran."""


def check_first(model: SegmentationModel, data: Dataset, device: torch.device) -> None:
    """UserError, before anything is trained, where the first validation image cannot be read or judged."""
    image = data[0].image
    with network_faults("a validation image", *image.shape[1:]), torch.no_grad(), attack_mode(model):
        model(image[None].to(device))


def validate(
    model: SegmentationModel,
    data: Dataset,
    *,
    attack: AttackConfig | None,
    eps: float,
    batch_size: int,
    samples: int,
    seed: int,
    group: Group,
    class_weights: Tensor | None = None,
    stop: Callable[[], bool] = lambda: False,
    done: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, Any], list[Picture]]:
    """Scores over all images, each counted once however many processes share them, and some of them as pictures.

    eps: in n/255. batch_size: images at once in each process. The first result is the `validation` of metrics.jsonl
    without criterion, value and best; the pictures are this process's first `samples`. `done` is told how many images
    the processes have behind them.

    Raises Interrupted in all processes when `stop` says so in one, NotFinite in all when logits of clean images are no
    numbers, UserError for a sample that cannot be decoded or that the model fails on.
    """
    begun = time.monotonic()
    classes = len(data.classes)
    # Per condition intersection, union and target of each class, and the sum and number of image accuracies.
    totals = torch.zeros(2, 3 * classes + 2, dtype=torch.float64)
    pictures: list[Picture] = []
    broken = False
    stride = batch_size * group.count
    for start in range(0, len(data), stride):
        if group.any(stop()):
            raise Interrupted
        first = start + batch_size * group.rank
        for chunk in _by_size(data, range(first, min(first + batch_size, len(data)))):
            images = torch.stack([s.image for s in chunk]).to(group.device)
            labels = torch.stack([s.label for s in chunk]).to(group.device)
            with attack_mode(model):
                with network_faults(f"the validation image '{chunk[0].id}'", *images.shape[2:]), torch.no_grad():
                    logits = model(images)
                if not bool(logits.isfinite().all()):
                    broken = True
                    continue
                found, predictions = [images], [logits.argmax(1)]
                if attack is not None:
                    ids = [sample.id for sample in chunk]
                    result = attack.run(
                        model, images, labels,
                        eps=eps / 255, seed=seed, image_ids=ids, class_weights=class_weights,
                    )  # fmt: skip
                    found.append(result.adversarial)
                    with torch.no_grad():
                        predictions.append(model(result.adversarial).argmax(1))
            for total, prediction in zip(totals, predictions, strict=False):
                total += _sums(image_counts(prediction, labels, classes, IGNORE_INDEX))
            for row in range(min(len(chunk), samples - len(pictures))):
                adversarial = (found[1][row], predictions[1][row]) if attack is not None else (None, None)
                pictures.append(Picture(images[row], labels[row], predictions[0][row], *adversarial))
        done(min(start + stride, len(data)))
    if group.any(broken):
        raise NotFinite
    totals = group.sum(totals)
    return {
        "images": len(data),
        "clean": _scores(totals[0], classes),
        "attacked": None if attack is None else _scores(totals[1], classes),
        "attack": None if attack is None else attack.name,
        "eps": eps,
        "seconds": round(time.monotonic() - begun, 3),
    }, pictures


def _by_size(data: Dataset, indices: range) -> list[list[Sample]]:
    """The samples in groups of one size."""
    groups: dict[torch.Size, list[Sample]] = {}
    for sample in in_threads(data.__getitem__, indices):
        groups.setdefault(sample.label.shape, []).append(sample)
    return list(groups.values())


def _sums(counts: Counts) -> Tensor:
    accuracy = torch.from_numpy(image_accuracy(counts))
    counted = ~accuracy.isnan()
    sums = [torch.from_numpy(part.sum(0)).double() for part in (counts.intersection, counts.union, counts.target)]
    return torch.cat([*sums, accuracy[counted].sum().view(1), counted.sum().double().view(1)])


def _scores(sums: Tensor, classes: int) -> dict[str, Any]:
    intersection, union, target = (part[None].long().numpy() for part in sums[: 3 * classes].view(3, classes))
    pooled = scores(Counts(intersection, union, target))
    images = float(sums[-1])
    values = {"miou": pooled.miou, "aacc": float(sums[-2]) / images if images else math.nan, "macc": pooled.macc}
    return {name: _defined(value) for name, value in values.items()} | {"iou": [_defined(v) for v in pooled.iou]}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
