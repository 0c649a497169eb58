"""`robseg.train`: from a recipe to a folder with a trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robseg.data import Dataset, as_dataset
from robseg.data.classes import is_numbered
from robseg.errors import UserError
from robseg.evaluation.processes import first_does
from robseg.evaluation.progress import Listener
from robseg.loading.model_folder import GIVEN
from robseg.models.architectures import ARCHITECTURES
from robseg.records.files import only_user
from robseg.records.training_run import CHECKPOINTS, RECIPE
from robseg.report.training_page import write_training_report
from robseg.training.loop import fit
from robseg.training.network import build
from robseg.training.recipes.files import load_recipe
from robseg.training.recipes.recipe import Recipe
from robseg.training.run_folder import ModelInfo, TrainingFolder
from robseg.training.together import Group, join_group


@dataclass(frozen=True)
class TrainingResult:
    """folder: of the training, which `robseg.evaluate` takes as a model. recipe: the resolved one. rank: of this
    process. The rest as of `robseg.training.loop.Trained`."""

    folder: Path
    recipe: Recipe
    rank: int
    steps: int
    loss: float | None
    validation: dict[str, Any] | None
    best: dict[str, Any] | None


# A caller who has gradients switched off means its own passes, not the training's.
@torch.inference_mode(False)
@torch.enable_grad()
def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    train_data: str | Dataset | Sequence[Any] | None = None,
    validation_data: str | Dataset | Sequence[Any] | None = None,
    classes: int | None = None,
    network: nn.Module | None = None,
    device: str = "auto",
    progress: bool | Listener = True,
    report: bool = True,
    **overrides: Any,
) -> TrainingResult:
    """Train a model as a recipe says.

    recipe: a name (`robseg recipes` lists them), a YAML file or its content; None with `resume`: the folder's own.
    out: the folder of the training, see `robseg.records.training_run`; one that holds the same training goes on. None:
        runs/NAME of the recipe.
    resume: go on with whatever training `out` holds; where it holds none, begin.
    train_data, validation_data: what `robseg.evaluate` takes as data, instead of the recipe's. classes: number of
        classes, where they do not say it.
    network: a network, or a `SegmentationModel`, to be trained in place instead of the recipe's architecture; what it
        may give in training mode: logits, (logits, auxiliary logits) or a mapping with "out" and "aux".
    overrides: keys of the recipe: epochs=10, optimiser={"lr": 1e-4}, or **{"optimiser.lr": 1e-4}.
    device: "auto" or a torch device. progress: a bar or lines on stderr, or a function told (stage, done, total, note).
    report: whether to write report.html at the end.

    Several processes (torchrun, accelerate launch, SLURM) share each batch. Raises UserError, one sentence, for what
    the caller can mend; SIGTERM and Ctrl-C leave a state to go on from and end the process as ever.
    """
    if recipe is None:
        if out is None or not resume or not (Path(out) / RECIPE).is_file():
            raise UserError(f"{out or 'No folder'} holds no training to go on with; name a recipe.")
        recipe = Path(out) / RECIPE
    if network is not None:
        overrides = {**overrides, "model.architecture": GIVEN}
    if train_data is not None:
        overrides = {**overrides, "data.train": train_data if isinstance(train_data, str) else GIVEN}
    if validation_data is not None:
        overrides = {**overrides, "data.validation": validation_data if isinstance(validation_data, str) else GIVEN}
    resolved = load_recipe(recipe, overrides)
    out = Path("runs") / resolved.name if out is None else Path(out)
    for what, given in (("train_data", train_data), ("validation_data", validation_data)):
        if classes is None and given is not None and not isinstance(given, (str, Dataset)):
            raise UserError(f"{what} is a list, which does not say how many classes there are; give classes=NUMBER.")
    group = join_group(device)
    data = as_dataset(_source(resolved, resolved.data.train, train_data), classes)
    validation = None
    if (resolved.data.validation is not None or validation_data is not None) and resolved.validation.times > 0:
        validation = as_dataset(_source(resolved, resolved.data.validation or "", validation_data), classes)
        _same_classes(data, validation)
    model = build(resolved, len(data.classes), network)
    info = ModelInfo(
        resolved.model.architecture, _arguments(resolved, data), data.classes, *model.normalisation(), data.name
    )
    folder = TrainingFolder(out, resolved, info) if group.rank == 0 else None
    with ExitStack() as until_done:

        def begin() -> None:
            assert folder is not None
            until_done.enter_context(only_user(out))
            folder.begin(_description(resolved, data, validation, model.network, group))

        first_does(group.rank, group.count, group.device, begin)
        done = fit(
            model, data, resolved,
            group=group, validation=validation, folder=folder, checkpoints=out / CHECKPOINTS, progress=progress,
        )  # fmt: skip
        if group.rank == 0 and report:
            write_training_report(out)
        group.wait()
    return TrainingResult(out, resolved, group.rank, done.steps, done.loss, done.validation, done.best)


def _source(recipe: Recipe, text: str, given: Any) -> Any:
    """The data that were given, or what the recipe says with its {root} filled in."""
    if given is not None and not isinstance(given, str):
        return given
    if text == GIVEN:
        raise UserError("The data of this training were given as objects; give them again as train_data and so on.")
    if "{root}" not in text:
        return text
    if recipe.data.root is None:
        raise UserError(f"The data of the recipe are '{text}'; say where they are with data.root=FOLDER.")
    return text.replace("{root}", recipe.data.root.replace("%", "%25").replace("?", "%3F"))


def _same_classes(data: Dataset, validation: Dataset) -> None:
    ours, theirs = data.classes.names, validation.classes.names
    if len(ours) != len(theirs):
        raise UserError(
            f"The training data '{data.name}' have {len(ours)} classes, and the validation data '{validation.name}' "
            f"{len(theirs)}; make them agree."
        )
    if is_numbered(data.classes) or is_numbered(validation.classes):
        return
    for label, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our != their:
            raise UserError(
                f"Class {label} is '{our}' in the training data '{data.name}' and '{their}' in the validation data "
                f"'{validation.name}'; make them agree."
            )


def _arguments(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    return (
        {"num_classes": len(data.classes), **recipe.model.arguments}
        if recipe.model.architecture in ARCHITECTURES
        else {}
    )


def _description(
    recipe: Recipe, data: Dataset, validation: Dataset | None, network: nn.Module, group: Group
) -> dict[str, Any]:
    """What run.yaml says."""
    steps = recipe.total_steps(len(data))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "robseg_version": version("robseg"),
        "torch_version": str(torch.__version__),
        "steps": steps,
        "epochs": round(steps * recipe.batch_size / len(data), 3),
        "parameters": parameters,
        "device": _device_name(group.device),
        "processes": group.count,
        "data": _entry(data),
        "validation_data": None if validation is None else _entry(validation),
        "identity": {
            "data_ids": _ids(data),
            "validation_ids": None if validation is None else _ids(validation),
            "network": f"{type(network).__name__} of {parameters:,} parameters",
        },
    }


def _entry(data: Dataset) -> dict[str, Any]:
    return {"name": data.name, "images": len(data), "classes": list(data.classes.names), "void": data.void}


def _ids(data: Dataset) -> str:
    return hashlib.sha256("\0".join(data.ids).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
