"""A training that takes a second, as the content of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import robseg
from robseg.data.base import Dataset
from robseg.models.dropout import Dropout2d
from robseg.models.small_unet import small_unet
from robseg.models.wrapper import SegmentationModel
from robseg.records.training_run import read_metrics
from robseg.training.loop import Trained
from robseg.training.recipes.recipe import Recipe
from robseg.training.together import Group

RECIPE: dict[str, Any] = {
    "data": {
        "train": "shapes?split=train&count=7&size=32",
        "validation": "shapes?split=val&count=5&size=32",
    },
    "model": {"architecture": "small_unet", "arguments": {"width": 4}},
    "augmentation": {"crop": 32},
    "method": "at",
    "attack": {"steps": 1, "random_start": True},
    "optimiser": {"lr": 1e-2},
    "schedule": {"warmup": 0.25},
    "steps": 4,
    "batch_size": 4,
    "validation": {"times": 0, "attack": "pgd?steps=1&start=clean&keep=last", "samples": 1},
}


def recipe(**changes: Any) -> dict[str, Any]:
    """RECIPE with keys changed; sections are joined."""
    merged = dict(RECIPE)
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def dropping(num_classes: int) -> nn.Module:
    """A factory of a network that is not robseg's, with dropout."""
    return nn.Sequential(small_unet(num_classes, 4), Dropout2d(0.2))


def write_recipe(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe(**changes)))
    return path


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    return max(
        float((a[name].double() - b[name].double()).abs().max() / b[name].double().abs().max().clamp_min(1e-6))
        for name in a
    )


class NoNumber(nn.Module):
    """A network whose training passes from the `bad`-th on give `value`."""

    def __init__(self, inner: nn.Module, bad: int, value: float = float("nan")) -> None:
        super().__init__()
        self.inner, self.bad, self.value, self.calls = inner, bad, value, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        logits: Tensor = self.inner(images)
        return logits * (self.value if self.calls >= self.bad else 1)


ALONE = Group(0, 1, torch.device("cpu"), lambda: None)


def fresh(seed: int = 0, num_classes: int = 6, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_unet(num_classes, width)


def fit(network: nn.Module, data: Dataset, settings: Recipe, group: Group = ALONE) -> Trained:
    return robseg.training.loop.fit(SegmentationModel(network), data, settings, group=group)


def train(out: Path, progress: Any = False, **changes: Any) -> robseg.training.train.TrainingResult:
    return robseg.train(recipe(**changes), out=out, device="cpu", progress=progress)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder) if "loss" in line]
