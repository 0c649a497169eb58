"""A model that the user's own code makes: package.module:factory."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from robseg.errors import UserError, unknown_name
from robseg.models.wrapper import SegmentationModel

CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "nclass", "nb_classes", "num_labels", "class_num")
"""Parameter names by which a factory takes the number of classes."""


def open_factory(module_name: str, attribute: str, num_classes: int) -> SegmentationModel:
    """The torch.nn.Module, or the SegmentationModel, that `attribute` of a module is or gives.

    The module is found from the current folder too. Raises UserError where it cannot be imported, or the factory
    cannot be called with the number of classes (or nothing), fails, or gives something else.
    """
    where = f"{module_name}:{attribute}"
    # As `python -m` does: the user's own module lies in the folder the command is given in.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise UserError(
            f"The module of '{where}' cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    owner = module_name
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            if not names:
                raise UserError(f"{owner} has no attribute '{part}', nor any other that could be a model.")
            raise unknown_name(f"attribute of {owner}", part, names)
        found = getattr(found, part)
        owner = f"{owner}{':' if owner == module_name else '.'}{part}"
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
        raise UserError(f"{where}({given}) failed: {type(error).__name__}: {first_line(error)}") from error


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


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]
