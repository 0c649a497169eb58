"""Attack a batch under one condition, judge what is stored, and write it down."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robseg.attacks.catalogue import AttackConfig
from robseg.attacks.problem import AttackResult, check_perturbation
from robseg.attacks.threat import THREATS
from robseg.data import IGNORE_INDEX
from robseg.errors import UserError
from robseg.metrics.counts import image_counts
from robseg.models.modes import attack_mode
from robseg.models.wrapper import SegmentationModel
from robseg.records.run_folder import CLEAN, Record, RunFolder, as_8bit, condition_name, save_png
from robseg.records.settings import Settings

PREVIEWS = 24
"""How many of the worst images keep pictures; twice what a report shows, so that two runs have some in common."""


@dataclass(frozen=True)
class Batch:
    """Images of one size on the device: (B, 3, H, W), labels (B, H, W), ids and places in the data set."""

    images: Tensor
    labels: Tensor
    ids: Sequence[str]
    indices: Sequence[int]


@dataclass(frozen=True)
class Condition:
    """Clean, or one attack at one radius (n/255)."""

    eps: float
    attack: AttackConfig | None

    @property
    def name(self) -> str:
        return CLEAN if self.attack is None else condition_name(self.eps, self.attack.name)


def conditions(settings: Settings) -> list[Condition]:
    """All conditions of a run in the order in which a batch goes through them."""
    return [Condition(0, None), *(Condition(eps, attack) for eps in settings.eps for attack in settings.attacks)]


def judge(
    model: SegmentationModel,
    batch: Batch,
    condition: Condition,
    settings: Settings,
    class_weights: Tensor | None,
    folder: RunFolder,
    skip: set[int],
) -> dict[int, float]:
    """Attack the batch, judge the images as they are stored, and record those whose index is not in `skip`.

    The whole batch is attacked even when some of it is recorded: its numbers are then those of an uninterrupted run
    to the last bit. Returns {index: accuracy} of what was recorded (NaN where no pixel counts). Raises UserError for
    NaN logits and where memory does not suffice, RuntimeError if a perturbation left its ball.
    """
    started = time.monotonic()
    with _memory_errors(batch), attack_mode(model):
        adversarial, found = _attack(model, batch, condition, settings, class_weights)
        with torch.no_grad():
            logits = model(adversarial)
    for image_logits, image_id in zip(logits, batch.ids, strict=True):
        if not bool(image_logits.isfinite().all()):
            raise UserError(
                f"The model gives NaN or infinite logits for image '{image_id}' under {condition.name}; "
                "a wider --precision may mend it."
            )
    prediction = logits.argmax(1)
    counts = image_counts(prediction, batch.labels, folder.num_classes, IGNORE_INDEX)
    seconds = (time.monotonic() - started) / len(batch.ids)
    accuracies: dict[int, float] = {}
    for row, index in enumerate(batch.indices):
        if index in skip:
            continue
        if condition.attack is not None and settings.save_images != "no":
            folder.write_adversarial(condition.name, index, adversarial[row], settings.save_images)
        folder.write_prediction(condition.name, index, prediction[row])
        _write_preview(folder, batch, row, condition, adversarial, settings.norm)
        own = counts.images(row)
        record = Record(
            index, batch.ids[row], own,
            # Judging costs a forward pass of its own.
            1 + (int(found.forward_passes[row]) if found else 0), int(found.backward_passes[row]) if found else 0,
            int(found.invalid_points[row]) if found else 0, seconds,
        )  # fmt: skip
        folder.append(condition.name, record)
        pixels = int(own.target.sum())
        accuracies[index] = int(own.intersection.sum()) / pixels if pixels else float("nan")
    return accuracies


def _attack(
    model: SegmentationModel, batch: Batch, condition: Condition, settings: Settings, class_weights: Tensor | None
) -> tuple[Tensor, AttackResult | None]:
    if condition.attack is None:
        return batch.images, None
    eps, threat = condition.eps / 255, THREATS[settings.norm]
    found = condition.attack.run(
        model, batch.images, batch.labels,
        eps=eps, threat=settings.norm, class_weights=class_weights, seed=settings.seed, image_ids=batch.ids,
        ignore_index=IGNORE_INDEX,
    )  # fmt: skip
    adversarial = found.adversarial
    if settings.save_images == "8bit":
        adversarial = threat.round_to_8bit(batch.images, adversarial, eps)
        check_perturbation(batch.images, adversarial, eps, threat)
    return adversarial, found


def _write_preview(
    folder: RunFolder, batch: Batch, row: int, condition: Condition, adversarial: Tensor, norm: str
) -> None:
    """Pictures of one image for the report; those of all but the worst images go again (`keep_worst`)."""
    place, image = folder.preview_folder(batch.indices[row]), batch.images[row]
    if condition.attack is None:
        save_png(place / "original.png", as_8bit(image))
        save_png(place / "label.png", batch.labels[row].to("cpu", torch.uint8).numpy())
        return
    save_png(place / f"{condition.name}.png", as_8bit(adversarial[row]))
    change = adversarial[row] - image
    # Grey is no change; the full range is the radius, or in an L2 ball the largest change of the image.
    largest = condition.eps / 255 if norm == "linf" else float(change.abs().max())
    amplified = 0.5 + 0.5 * change / max(largest, 1e-12)
    save_png(place / f"{condition.name}_perturbation.png", as_8bit(amplified.clamp(0, 1)))


def keep_worst(folder: RunFolder, worst_accuracy: dict[int, float]) -> None:
    """Remove the previews of all given images but the PREVIEWS ones with the lowest worst-case accuracy."""
    known = {index: value for index, value in worst_accuracy.items() if value == value}
    ranked = sorted(known, key=lambda index: (known[index], index))
    for index in [*ranked[PREVIEWS:], *(index for index in worst_accuracy if index not in known)]:
        shutil.rmtree(folder.preview_folder(index), ignore_errors=True)


@contextmanager
def _memory_errors(batch: Batch) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The memory does not suffice for {len(batch.ids)} images of {batch.images.shape[2]}x"
            f"{batch.images.shape[3]}; go on with a smaller --batch-size."
        ) from error
