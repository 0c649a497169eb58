"""From what the user names to a model under attack: a folder, a name, or a function of theirs."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from robseg.errors import UserError, unknown_name
from robseg.loading.checkpoint import load_weights, read_checkpoint
from robseg.loading.model_folder import read_model_folder
from robseg.models import ARCHITECTURES
from robseg.models.published import PUBLISHED
from robseg.models.wrapper import Precision, SegmentationModel

CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "nclass", "nb_classes", "num_labels", "class_num")
"""Parameter names by which a factory takes the number of classes."""


def open_model(
    name: str,
    *,
    num_classes: int,
    checkpoint: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: Precision = "fp32",
) -> SegmentationModel:
    """The model that MODEL names, with its weights.

    name: a folder of a robseg training run; a named model (`known_models`); or "package.module:factory", found from
        the current folder, where factory gives a torch.nn.Module (or is one) and is called with the number of classes
        when it takes one.
    checkpoint: a file of weights, which replaces those the model came with.
    mean, std: normalisation of the input; replaces the model's own.

    Raises UserError for everything that does not fit, in one sentence.
    """
    model = _build(name, num_classes, checkpoint is not None)
    if checkpoint is not None:
        ignore = PUBLISHED[name].ignore if name in PUBLISHED else ()
        load_weights(model.network, read_checkpoint(Path(checkpoint)), source=checkpoint, ignore=ignore)
    if mean is not None or std is not None:
        model = SegmentationModel(model.network, mean=mean, std=std, output=model.output)
    model.set_precision(precision)
    return model


def demo_folder(name: str) -> Path:
    """Where the model `name` of `robseg demo` is kept: in $ROBSEG_HOME, or ~/.cache/robseg."""
    home = os.environ.get("ROBSEG_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "robseg") / "models" / name


DEMO_MODELS = ("demo-plain", "demo-robust")


def known_models() -> list[str]:
    """The names that `open_model` knows: the demo's models, published ones and bare architectures."""
    return [*DEMO_MODELS, *PUBLISHED, *ARCHITECTURES]


def _build(name: str, num_classes: int, has_checkpoint: bool) -> SegmentationModel:
    if name in DEMO_MODELS:
        if not (demo_folder(name) / "model.yaml").is_file():
            raise UserError(f"The model '{name}' is made by `robseg demo`, which has not run yet on this machine.")
        return _from_folder(demo_folder(name))
    if name in PUBLISHED or name in ARCHITECTURES:
        if not has_checkpoint:
            raise UserError(f"The model '{name}' comes without weights; give its file with --checkpoint.")
        if name in PUBLISHED:
            published = PUBLISHED[name]
            return SegmentationModel(published.build(published.num_classes), mean=published.mean, std=published.std)
        return SegmentationModel(ARCHITECTURES[name](num_classes=num_classes))
    if Path(name).is_dir():
        return _from_folder(Path(name))
    module, colon, attribute = name.partition(":")
    if module in ("hf", "torchvision", "smp"):
        raise UserError(f"Models of the form {module}:NAME are not supported yet; use package.module:factory.")
    if colon and attribute:
        return _from_factory(module, attribute, num_classes)
    if "/" in name or name.startswith("."):
        raise UserError(f"{name} is no folder; MODEL is a name, a folder of a training run, or package.module:factory.")
    raise unknown_name("model", name, known_models())


def _from_folder(path: Path) -> SegmentationModel:
    folder = read_model_folder(path)
    return SegmentationModel(folder.network, mean=folder.mean, std=folder.std)


def _from_factory(module_name: str, attribute: str, num_classes: int) -> SegmentationModel:
    where = f"{module_name}:{attribute}"
    # As `python -m` does: the user's own module lies in the folder the command is given in.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise UserError(
            f"The module of '{where}' cannot be imported: {type(error).__name__}: {_first_line(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise unknown_name(f"attribute of {module_name}", part, names)
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        found = _call(found, where, num_classes)
    if not isinstance(found, nn.Module):
        raise UserError(f"{where} gave a {type(found).__name__}; it must give a torch.nn.Module.")
    return found if isinstance(found, SegmentationModel) else SegmentationModel(found)


def _call(factory: Any, where: str, num_classes: int) -> Any:
    if not callable(factory):
        raise UserError(f"{where} is a {type(factory).__name__}; it must be a function that gives a torch.nn.Module.")
    positional, named = _arguments(factory, where, num_classes)
    try:
        return factory(*positional, **named)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join([*map(str, positional), *(f"{k}={v}" for k, v in named.items())])
        raise UserError(f"{where}({given}) failed: {type(error).__name__}: {_first_line(error)}") from error


def _arguments(factory: Callable[..., Any], where: str, num_classes: int) -> tuple[list[int], dict[str, int]]:
    """The number of classes, under the name the factory has for it or as its only required argument."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return [], {}
    for parameter in parameters:
        if parameter.name in CLASS_ARGUMENTS:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                return [num_classes], {}
            return [], {parameter.name: num_classes}
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        raise UserError(
            f"{where} needs {', '.join(p.name for p in required)}; a factory takes the number of classes, or nothing."
        )
    if not required:
        return [], {}
    only = required[0]
    return ([], {only.name: num_classes}) if only.kind is only.KEYWORD_ONLY else ([num_classes], {})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
