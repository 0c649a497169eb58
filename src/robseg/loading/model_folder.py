"""A trained model as a folder: model.safetensors with its weights and model.yaml with all else that it takes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from robseg.data.base import ClassList
from robseg.errors import UserError, unknown_name
from robseg.loading.checkpoint import load_weights, read_checkpoint
from robseg.loading.normaliser import Normaliser, take_normaliser
from robseg.loading.places import fetch
from robseg.models.architectures import ARCHITECTURES

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"

GIVEN = "given"
"""Stands for a network that was given to `robseg.train` as an object."""

_Colour = Annotated[int, Field(ge=0, le=255)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Spread = Annotated[float, Field(gt=1e-6, allow_inf_nan=False)]
_Strict = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(BaseModel):
    """One class: its name and the RGB colour (0..255) it is drawn in."""

    model_config = _Strict
    name: str
    colour: tuple[_Colour, _Colour, _Colour]


class Normalisation(BaseModel):
    """Mean and standard deviation per channel (RGB, for values in [0, 1]) of the input the network wants."""

    model_config = _Strict
    mean: tuple[_Finite, _Finite, _Finite]
    std: tuple[_Spread, _Spread, _Spread]


class Description(BaseModel):
    """What model.yaml holds.

    arguments: of the architecture's builder. training: how the weights came about, for people to read.
    """

    model_config = _Strict
    format: Literal[1]
    architecture: str
    arguments: dict[str, Any]
    classes: Annotated[list[ClassEntry], Field(min_length=1)]
    normalisation: Normalisation | None
    training: dict[str, Any]


@dataclass(frozen=True)
class ModelFolder:
    """A model read back: the network in evaluation mode on the CPU, its classes, its normalisation or None."""

    network: nn.Module
    classes: ClassList
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    description: Description


def save_model(
    folder: Path,
    network: nn.Module,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    classes: ClassList,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    training: Mapping[str, Any],
) -> None:
    """Write model.safetensors and model.yaml into `folder`, which is made where it is absent.

    architecture, arguments: a name of `robseg.models.ARCHITECTURES` and what its builder was called with; or of a
        foreign model, which has to be named again when the folder is used, and no arguments.
    training: plain values (numbers, texts, lists, dicts): the recipe, seed, name of the data and final loss.
    Both files are complete before either takes its name, so a crash leaves the model that was there before.
    Raises UserError for an architecture that is neither robseg's nor foreign.
    """
    if architecture not in ARCHITECTURES and not is_foreign(architecture):
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    if (mean is None) != (std is None):
        raise UserError("mean and std of a model's input belong together; give both or neither.")
    entries = [{"name": n, "colour": list(c)} for n, c in zip(classes.names, classes.colours, strict=True)]
    normalisation = None if mean is None or std is None else {"mean": list(mean), "std": list(std)}
    content = {
        "format": 1,
        "architecture": architecture,
        "arguments": dict(arguments),
        "classes": entries,
        "normalisation": normalisation,
        "training": dict(training),
    }
    Description.model_validate(content)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    # safetensors refuses tensors that share memory or are not contiguous, as channels_last weights are.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    _replace_together(
        {
            # Not by safetensors itself, whose errors are its own when the disk is full.
            folder / WEIGHTS: lambda path: path.write_bytes(safetensors.torch.save(weights)),
            folder / DESCRIPTION: lambda path: path.write_text(text, encoding="utf-8"),
        }
    )


def read_model_folder(folder: str | Path) -> ModelFolder:
    """The model that `save_model` wrote into `folder`.

    Raises UserError for a folder without model.yaml or weights, a damaged file, an unknown architecture, arguments it
    does not take, weights that do not fit it, and for the folder of a foreign model: no file is to say which code is
    run, so the user has to.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    description = _read_description(path)
    if is_foreign(description.architecture):
        kind = "a network given in Python" if description.architecture == GIVEN else f"'{description.architecture}'"
        raise UserError(
            f"The folder '{folder}' holds weights of {kind}, which is no architecture of robseg's; name what makes the "
            f"network as well: robseg evaluate {shlex.join(model_words(folder, description.architecture))}."
        )
    if description.architecture not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"{path} names the architecture '{description.architecture}', which is unknown; known: {names}."
        )
    count = description.arguments.get("num_classes")
    if count != len(description.classes):
        raise UserError(
            f"{path} lists {len(description.classes)} classes but its num_classes is {count}; make them agree."
        )
    try:
        network = ARCHITECTURES[description.architecture](**description.arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {description.architecture} does not take these arguments: {error}.") from error
    load_weights(network, read_checkpoint(folder / WEIGHTS), source=str(folder / WEIGHTS))
    network.eval()
    classes = ClassList(
        names=tuple(entry.name for entry in description.classes),
        colours=tuple(entry.colour for entry in description.classes),
    )
    normalisation = description.normalisation
    mean, std = (normalisation.mean, normalisation.std) if normalisation else (None, None)
    return ModelFolder(network, classes, mean, std, description)


def is_foreign(architecture: str) -> bool:
    """Whether a model is none of robseg's own, but of another library, of the user's code or given as an object."""
    return ":" in architecture or architecture == GIVEN


def model_words(folder: Path, architecture: str) -> list[str]:
    """How the command line names the model in a folder: by the folder, or as the foreign model whose weights it has."""
    if not is_foreign(architecture):
        return [str(folder)]
    return ["package.module:factory" if architecture == GIVEN else architecture, "--checkpoint", str(folder)]


def read_weights(source: str, network: nn.Module) -> tuple[dict[str, Tensor], Normaliser | None]:
    """The weights that a checkpoint holds for a network, and the normaliser beside them.

    source: what `fetch` takes, or a folder that `save_model` wrote. Raises UserError as `read_checkpoint` does, and
    for a folder that is damaged.
    """
    folder = Path(source)
    if not (folder / DESCRIPTION).is_file():
        return take_normaliser(read_checkpoint(fetch(source)), network)
    stored = _read_description(folder / DESCRIPTION).normalisation
    weights = read_checkpoint(folder / WEIGHTS)
    return weights, None if stored is None else Normaliser(stored.mean, stored.std)


def _read_description(path: Path) -> Description:
    if not path.is_file():
        what = f"has no {DESCRIPTION}" if path.parent.is_dir() else "does not exist"
        raise UserError(f"The folder '{path.parent}' {what}; a model is the folder that a robseg training has written.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Description.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} does not describe a model: {key}: {first['msg']}.") from error


def _replace_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write every file under a temporary name, and only when all are complete give them their names."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            write(temporary[path])
        for path in writers:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
