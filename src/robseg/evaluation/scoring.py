"""From the records of a finished run to its result."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch

from robseg.attacks.catalogue import protocol_of
from robseg.data import Dataset
from robseg.evaluation.judge import Condition, conditions
from robseg.evaluation.survey import Survey
from robseg.metrics.counts import Counts, stack
from robseg.metrics.scores import image_accuracy, image_miou, scores
from robseg.metrics.worst_case import worst_accuracy, worst_miou
from robseg.records.result import (
    AttackScores,
    ClassEntry,
    ClassWeights,
    DataEntry,
    ImageEntry,
    ImageRadius,
    ModelEntry,
    Protocol,
    Radius,
    Result,
    ScoreTable,
    Timings,
    WorstCase,
)
from robseg.records.run_folder import CLEAN, Record, RunFolder
from robseg.records.settings import Settings


@dataclass(frozen=True)
class RadiusScores:
    """A radius with the choices behind its worst case, as positions in [clean, *attacks], (N,) each."""

    entry: Radius
    accuracies: np.ndarray
    for_aacc: np.ndarray
    for_miou: np.ndarray


def make_result(
    folder: RunFolder,
    settings: Settings,
    dataset: Dataset,
    surveyed: Survey,
    model: ModelEntry,
    class_weights: ClassWeights | None,
    device: torch.device,
    warnings: Sequence[str],
) -> Result:
    """Everything in result.json, from the records alone. RuntimeError if an image has no record."""
    found = {c.name: _complete(folder, c, len(dataset)) for c in conditions(settings)}
    clean = _counts(found[CLEAN])
    radii = [_radius(eps, settings, found, clean) for eps in settings.eps]
    records = [record for condition in found.values() for record in condition]
    protocol, deviations = protocol_of(settings.attacks, settings.norm)
    clean_scores = ScoreTable.of(scores(clean))
    return Result(
        robseg_version=version("robseg"),
        settings=settings.model_dump(mode="json"),
        model=model,
        data=_data_entry(dataset, surveyed),
        protocol=Protocol(name=protocol, deviations=deviations),
        class_weights=class_weights,
        clean=clean_scores,
        radii=[radius.entry for radius in radii],
        images=_image_entries(dataset, surveyed, settings, image_accuracy(clean), radii),
        warnings=[*warnings, *doubts(clean_scores, radii, surveyed, dataset)],
        forward_passes=sum(record.forward_passes for record in records),
        backward_passes=sum(record.backward_passes for record in records),
        environment=_environment(device),
        timings=Timings(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            attack_seconds=round(sum(record.seconds for record in records), 3),
            seconds_per_condition={n: round(sum(r.seconds for r in rows), 3) for n, rows in found.items()},
        ),
        folder=folder.path,
    )


def doubts(clean: ScoreTable, radii: Sequence[RadiusScores], surveyed: Survey, dataset: Dataset) -> list[str]:
    """What in the numbers themselves says that they should not be trusted yet, one sentence each."""
    found = []
    empty = [dataset.ids[i] for i, pixels in enumerate(surveyed.counted) if pixels == 0]
    if empty:
        some = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        found.append(f"{len(empty)} of {len(dataset)} images have no counted pixel and are in no score: {some}.")
    largest_share = float(surveyed.class_pixels.max()) / max(sum(surveyed.counted), 1)
    if clean.aacc_pooled is not None and clean.aacc_pooled < largest_share:
        found.append(
            f"The clean accuracy ({clean.aacc_pooled:.1%}) is below what predicting one class everywhere would give "
            f"({largest_share:.1%}): check the checkpoint, the normalisation and the order of the classes."
        )
    for radius in radii:
        invalid = sum(attack.invalid_points for attack in radius.entry.attacks)
        if invalid:
            found.append(
                f"At eps {radius.entry.eps:g}/255 the loss was NaN or infinite at {invalid} points, which were not "
                "used."
            )
    for smaller, larger in itertools.pairwise(radii):
        before, after = smaller.entry.worst_case.aacc, larger.entry.worst_case.aacc
        if before is not None and after is not None and after > before + 0.005:
            found.append(
                f"The worst-case aAcc rises from {before:.1%} at eps {smaller.entry.eps:g}/255 to {after:.1%} at "
                f"{larger.entry.eps:g}/255, which no optimal attack allows: the attack is too weak for this model."
            )
    return found


def _radius(eps: float, settings: Settings, found: dict[str, list[Record]], clean: Counts) -> RadiusScores:
    rows = [found[Condition(eps, attack).name] for attack in settings.attacks]
    counts = [_counts(records) for records in rows]
    # The attacker may also leave an image alone, so the clean image is one more choice.
    choices = stack([clean, *counts])
    for_aacc = worst_accuracy(choices)
    for_miou = worst_miou(choices, seed=settings.seed).choice
    by_accuracy, by_miou = scores(choices.choose(for_aacc)), scores(choices.choose(for_miou))
    own_miou = np.stack([image_miou(part) for part in (clean, *counts)]).min(0)
    worst = ScoreTable.of(by_miou).model_dump() | {
        "aacc": _none_if_nan(by_accuracy.aacc_image_mean),
        "aacc_pooled": _none_if_nan(by_accuracy.aacc_pooled),
        "nmiou": None if np.isnan(own_miou).all() else float(np.nanmean(own_miou)),
    }
    entry = Radius(
        eps=eps,
        attacks=[
            AttackScores(
                name=attack.name, scores=ScoreTable.of(scores(part)),
                forward_passes=sum(r.forward_passes for r in records),
                backward_passes=sum(r.backward_passes for r in records),
                invalid_points=sum(r.invalid_points for r in records),
            )
            for attack, part, records in zip(settings.attacks, counts, rows, strict=True)
        ],
        worst_case=WorstCase(**worst),
    )  # fmt: skip
    return RadiusScores(entry, np.stack([image_accuracy(part) for part in counts]), for_aacc, for_miou)


def _image_entries(
    dataset: Dataset, surveyed: Survey, settings: Settings, clean: np.ndarray, radii: Sequence[RadiusScores]
) -> list[ImageEntry]:
    names = [attack.name for attack in settings.attacks]
    choices = [CLEAN, *names]
    return [
        ImageEntry(
            index=i, id=dataset.ids[i], height=surveyed.sizes[i][0], width=surveyed.sizes[i][1],
            counted_pixels=surveyed.counted[i], clean_accuracy=_none_if_nan(clean[i]),
            radii=[
                ImageRadius(
                    eps=radius.entry.eps,
                    accuracy={name: _none_if_nan(a) for name, a in zip(names, radius.accuracies[:, i], strict=True)},
                    chosen_for_aacc=choices[radius.for_aacc[i]], chosen_for_miou=choices[radius.for_miou[i]],
                )
                for radius in radii
            ],
        )
        for i in range(len(dataset))
    ]  # fmt: skip


def _data_entry(dataset: Dataset, surveyed: Survey) -> DataEntry:
    classes = zip(dataset.classes.names, dataset.classes.colours, surveyed.class_pixels.tolist(), strict=True)
    return DataEntry(
        name=dataset.name,
        images=len(dataset),
        images_without_counted_pixels=[dataset.ids[i] for i, pixels in enumerate(surveyed.counted) if pixels == 0],
        void=dataset.void,
        void_share=surveyed.void_share,
        classes=[ClassEntry(name=name, colour=colour, pixels=pixels) for name, colour, pixels in classes],
        sha256=surveyed.sha256,
    )


def _complete(folder: RunFolder, condition: Condition, images: int) -> list[Record]:
    records = folder.records(condition.name)
    missing = [index for index in range(images) if index not in records]
    if missing:
        raise RuntimeError(f"{folder.path} has no record of image {missing[0]} under {condition.name}")
    return [records[index] for index in range(images)]


def _counts(records: Sequence[Record]) -> Counts:
    return Counts(
        np.stack([record.counts.intersection for record in records]),
        np.stack([record.counts.union for record in records]),
        np.stack([record.counts.target for record in records]),
    )


def _environment(device: torch.device) -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "pillow", "safetensors")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cuda = {"cuda": str(torch.version.cuda)} if device.type == "cuda" else {}
    return {"python": platform.python_version(), **packages, "device": f"{device.type}: {name}", **cuda}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
