"""Writing the folder of a training; what it holds is described in `robseg.records.training_run`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from torch import Tensor, nn

from robseg.data.base import ClassList
from robseg.errors import UserError
from robseg.loading.model_folder import DESCRIPTION, save_model
from robseg.models.ddcat import BRANCHES, DDCAT, MAIN_NAMES
from robseg.records.files import LOCK, disk_errors, write_text
from robseg.records.run_folder import as_8bit, save_png
from robseg.records.settings import first_difference
from robseg.records.training_run import BEST, CHECKPOINTS, METRICS, RECIPE, RUN, SAMPLES, read_metrics
from robseg.records.yaml_files import read_yaml
from robseg.training.checkpoints import checkpoints
from robseg.training.recipes.files import recipe_text
from robseg.training.recipes.recipe import Recipe

FORMAT = 1
MAY_CHANGE = ("name", "about", "source", "needs", "workers", "checkpoint_minutes", "tensorboard", "compile")
"""Keys in which a training may differ when it goes on: they change no weight."""


class Picture(NamedTuple):
    """A validated image: (3, H, W) in [0, 1], label and prediction (H, W), and the same under attack or None."""

    image: Tensor
    label: Tensor
    prediction: Tensor
    adversarial: Tensor | None
    adversarial_prediction: Tensor | None


@dataclass(frozen=True)
class ModelInfo:
    """What `robseg evaluate` needs beside the weights; the fields of `robseg.loading.model_folder.save_model`."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: ClassList
    mean: Sequence[float] | None
    std: Sequence[float] | None
    data: str


class TrainingFolder:
    """Writes the folder of one training; only the first process has one."""

    def __init__(self, path: Path, recipe: Recipe, model: ModelInfo) -> None:
        self.path, self.recipe, self.model = path, recipe, model

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def begin(self, run: Mapping[str, Any]) -> None:
        """Start a training here, or make sure that the one here is the same. The folder is there, see `only_user`.

        run: plain values for run.yaml, of which those under "identity" have to stay. Raises UserError where the folder
        holds another training (naming the first key that differs) or something else, or cannot be written.
        """
        file = self.path / RECIPE
        if not file.is_file():
            if any(path.name != LOCK for path in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and holds no robseg training; choose another --out.")
        elif checkpoints(self.checkpoints):
            self._refuse_another(run)
        else:
            # Without a state or a model there is nothing to lose, and a recipe that did not work may be mended.
            kept = next((place for place in (self.path, self.path / BEST) if (place / DESCRIPTION).is_file()), None)
            if kept is not None:
                raise UserError(
                    f"{self.path} holds the model of a training, and no state to go on from; to train anew choose "
                    "another --out."
                )
        write_text(file, recipe_text(self.recipe))
        write_text(self.path / RUN, yaml.safe_dump({"format": FORMAT, **run}, sort_keys=False, allow_unicode=True))

    def _refuse_another(self, run: Mapping[str, Any]) -> None:
        known = read_yaml(self.path / RUN).get("identity") if (self.path / RUN).is_file() else None
        stored, now = fixed_keys(read_yaml(self.path / RECIPE)), fixed_keys(self.recipe.model_dump(mode="json"))
        found = first_difference(stored, now)
        if found is None and isinstance(known, dict):
            found = first_difference(known, run["identity"])
        if found:
            raise UserError(
                f"{self.path} holds another training: {found[0]} is {found[1]} there and {found[2]} now; choose "
                "another --out, or the same recipe to go on with that training."
            )

    def go_on_from(self, step: int) -> list[dict[str, Any]]:
        """Forget what was measured after a step; the lines that stay."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with disk_errors(self.path / METRICS), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, network: nn.Module, place: str, training: Mapping[str, Any]) -> None:
        """Save the network as a model folder, in the training's own folder ("") or one in it."""
        model, known = self.model, {"recipe": self.recipe.name, "data": self.model.data, **training}
        architecture = model.architecture
        if isinstance(network, DDCAT):
            # The branches serve in training alone; what is left is the plain network under its own names.
            network, architecture = _MainBranch(network), architecture.removesuffix("_ddcat")
        with disk_errors(self.path / place):
            save_model(
                self.path / place, network, architecture=architecture, arguments=model.arguments,
                classes=model.classes, mean=model.mean, std=model.std, training=known,
            )  # fmt: skip

    def save_samples(self, pictures: Sequence[Picture]) -> None:
        """Write the PNGs of samples/."""
        for index, picture in enumerate(pictures):
            folder = self.path / SAMPLES / str(index)
            for name, values in picture._asdict().items():
                if values is not None:
                    pixels = as_8bit(values) if values.ndim == 3 else values.cpu().numpy().astype(np.uint8)
                    save_png(folder / f"{name.replace('_', '-')}.png", pixels)


class _MainBranch(nn.Module):
    """A DDCAT network's state dict without branches and with the names of the network that has none."""

    def __init__(self, network: DDCAT) -> None:
        super().__init__()
        names = dict(zip(MAIN_NAMES, ("cls", "aux"), strict=True))
        for name, child in network.named_children():
            if f"{name}." not in BRANCHES:
                self.add_module(names.get(name, name), child)


def fixed_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe has to stay when a training goes on; the data may have moved."""
    kept = {key: value for key, value in recipe.items() if key not in MAY_CHANGE}
    data = kept.get("data")
    return kept | {
        "data": {key: value for key, value in data.items() if key != "root"} if isinstance(data, dict) else data
    }
