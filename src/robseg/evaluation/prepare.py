"""Everything an evaluation needs before it attacks: checked settings, surveyed data, a model, a run folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robseg.attacks.objectives import inverse_frequency_weights
from robseg.attacks.sea import needs_class_weights
from robseg.data import Dataset, as_dataset, take
from robseg.data.counts import class_pixels
from robseg.errors import UserError
from robseg.evaluation.judge import Condition, conditions
from robseg.evaluation.processes import Processes, first_does
from robseg.evaluation.progress import Stages
from robseg.evaluation.survey import Survey, model_fingerprint, survey
from robseg.loading.model_source import open_model
from robseg.models.sliding import with_window
from robseg.models.wrapper import Precision, SegmentationModel
from robseg.records.files import only_user
from robseg.records.result import ClassWeights, ModelEntry
from robseg.records.run_folder import CLEAN, RunFolder
from robseg.records.settings import Settings, make_settings


@dataclass
class Job:
    """One evaluation, ready to run. accuracies: condition -> index -> accuracy of what is recorded."""

    settings: Settings
    dataset: Dataset
    surveyed: Survey
    model: SegmentationModel
    model_entry: ModelEntry
    weights: Tensor | None
    weights_entry: ClassWeights | None
    folder: RunFolder
    processes: Processes
    accuracies: dict[str, dict[int, float]] = field(default_factory=dict)


def prepare(
    model: str | nn.Module,
    data: str | Dataset | Sequence[Any],
    train_data: str | Dataset | Sequence[Any] | None,
    processes: Processes,
    shown: Stages,
    out: str | Path | None,
    precision: Precision | None,
    values: dict[str, Any],
) -> Job:
    """Check what `robseg.evaluate` was given (`values`: the other settings); nothing is written.

    Raises UserError, one sentence, for what does not fit.
    """
    own = _own_precision(model)
    settings = make_settings(
        model=model if isinstance(model, str) else _title(model), data=data if isinstance(data, str) else "given",
        train_data=train_data if isinstance(train_data, str) or train_data is None else "given",
        precision=precision or own, device=processes.device.type, **values,
    )  # fmt: skip
    _refuse_shared_names(settings)
    dataset = as_dataset(data, settings.classes)
    if settings.limit is not None:
        dataset = take(dataset, settings.limit)
    wrapped = _wrap(model, settings, len(dataset.classes))
    if settings.window is not None:
        wrapped = with_window(wrapped, settings.window, long_side=settings.long_side)
    elif settings.long_side is not None:
        raise UserError("long_side scales images for the sliding window; give window too.")
    wrapped = wrapped.to(processes.device)
    shown.begin("reading the data", len(dataset))
    surveyed = survey(dataset, shown.advance)
    if settings.save_images == "8bit" and not surveyed.on_8bit_grid:
        raise UserError("Images of this data set are not 8-bit, so rounding could leave the ball; save them as float.")
    if not any(surveyed.counted):
        raise UserError(f"None of the {len(dataset)} images of '{dataset.name}' has a pixel that counts.")
    weights, entry = _class_weights(settings, dataset, surveyed, train_data, shown)
    model_entry = ModelEntry(
        name=settings.model,
        parameters=sum(p.numel() for p in wrapped.parameters()),
        mean=None if wrapped.mean is None else [round(v, 6) for v in wrapped.mean.flatten().tolist()],
        std=None if wrapped.std is None else [round(v, 6) for v in wrapped.std.flatten().tolist()],
        precision=settings.precision,
        sha256=model_fingerprint(wrapped),
    )
    if out is None and processes.count > 1:
        raise UserError("Several processes need a run folder to share; give one with out.")
    path = Path(tempfile.mkdtemp(prefix="robseg-")) / "run" if out is None else Path(out)
    folder = RunFolder(path, len(dataset.classes), processes.rank)
    return Job(settings, dataset, surveyed, wrapped, model_entry, weights, entry, folder, processes)


def begin(job: Job, until_done: ExitStack) -> None:
    """Begin or go on with the run folder of a job, and keep it from other processes until `until_done` is closed.

    Raises UserError, in all processes, where the folder holds something else or another run, is in use, or cannot be
    written.
    """
    weights = job.weights

    def first() -> None:
        until_done.enter_context(only_user(job.folder.path))
        identity = {
            "robseg_version": version("robseg"),
            "model_sha256": job.model_entry.sha256,
            "data_sha256": job.surveyed.sha256,
            "class_weights_sha256": None if weights is None else hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        }
        job.folder.begin({"settings": job.settings.model_dump(mode="json"), "identity": identity})

    first_does(job.processes.rank, job.processes.count, job.processes.device, first)


def _refuse_shared_names(settings: Settings) -> None:
    """What is found under a condition is filed under its name, so no two may have the same."""
    known: dict[str, Condition] = {}
    for condition in conditions(settings):
        other = known.setdefault(condition.name, condition)
        if other is condition:
            continue
        if other.attack is None or condition.attack is None or other.attack.name != condition.attack.name:
            names = " and ".join(repr(c.attack.name if c.attack else CLEAN) for c in (other, condition))
            raise UserError(f"The attacks {names} would be filed under one name; give one of them another name.")
        raise UserError(
            f"The radii {other.eps!r} and {condition.eps!r} would be filed under one name, as they differ by less than "
            "a millionth; leave one of them away."
        )


def _own_precision(model: str | nn.Module) -> Precision:
    """What the model computes in where nothing else is asked for."""
    if isinstance(model, SegmentationModel):
        return model.precision
    if isinstance(model, nn.Module) and any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        return "fp64"
    return "fp32"


def _title(model: nn.Module) -> str:
    inner = model.network if isinstance(model, SegmentationModel) else model
    return type(inner).__name__


def _wrap(model: str | nn.Module, settings: Settings, num_classes: int) -> SegmentationModel:
    if isinstance(model, str):
        return open_model(
            model, num_classes=settings.classes or num_classes, checkpoint=settings.checkpoint,
            mean=settings.mean, std=settings.std, precision=settings.precision,
        )  # fmt: skip
    if settings.checkpoint is not None:
        raise UserError("A checkpoint can be given for a model named by a text; load it into the module yourself.")
    if not isinstance(model, SegmentationModel):
        return SegmentationModel(model, mean=settings.mean, std=settings.std, precision=settings.precision)
    if settings.mean is not None:
        model = SegmentationModel(model.network, mean=settings.mean, std=settings.std, output=model.output)
    model.set_precision(settings.precision)
    return model


def _class_weights(
    settings: Settings, dataset: Dataset, surveyed: Survey, train_data: Any, shown: Stages
) -> tuple[Tensor | None, ClassWeights | None]:
    train = None if train_data is None else as_dataset(train_data, settings.classes)
    if not needs_class_weights(settings.attacks):
        return None, None
    pixels, source = surveyed.class_pixels, "evaluated labels"
    if train is not None:
        if len(train.classes) != len(dataset.classes):
            raise UserError(f"The training data have {len(train.classes)} classes and the data {len(dataset.classes)}.")
        shown.begin("counting training labels", len(train))
        pixels, source = class_pixels(train, shown.advance), "training labels"
    if not bool((pixels > 0).any()):
        raise UserError("The training data have no counted pixel to take class weights from.")
    weights = inverse_frequency_weights(pixels)
    return weights, ClassWeights(source=source, values=weights.tolist())
