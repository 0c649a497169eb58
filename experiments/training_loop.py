"""The training loop of the experiments: as little as there can be around `training_step`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robseg.data.augment import Augmentation
from robseg.data.base import Dataset
from robseg.data.loader import training_batches
from robseg.seeding import derived_seed
from robseg.training.groups import parameter_groups
from robseg.training.methods import MethodSettings, training_step
from robseg.training.schedule import Schedule
from robseg.training.trainee import Trainee


def train(
    network: nn.Module,
    data: Dataset,
    settings: MethodSettings,
    *,
    steps: int,
    batch_size: int = 8,
    crop: int = 64,
    lr: float = 2.5e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    say: str = "",
) -> list[float]:
    """AdamW with warm-up (a tenth of the steps) and polynomial decay; the network ends in evaluation mode.

    Gives the loss of every step.
    """
    trainee = Trainee(network)
    optimiser = torch.optim.AdamW(parameter_groups(network, weight_decay=weight_decay), lr=lr)
    schedule = Schedule(lr, steps, warmup=steps // 10, power=0.9)
    batches = training_batches(data, Augmentation(crop), batch_size, seed=seed)
    losses: list[float] = []
    for step in range(steps):
        batch = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step) * group["rate"]
        torch.manual_seed(derived_seed(seed, "dropout", str(step)))
        trainee.train()
        made = training_step(trainee, batch.images, batch.labels, settings, seed=seed, keys=batch.keys)
        optimiser.zero_grad()
        made.loss.backward()
        optimiser.step()
        losses.append(made.loss.item())
        if (step + 1) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(f"{say} step {step + 1}/{steps}: loss {mean:.3f}, {time.process_time():.0f} s CPU", flush=True)
    network.eval()
    return losses


def percent(value: float | None) -> str:
    """A fraction in % with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def keep(file: Path, text: str, values: Any) -> None:
    """Print the table and write it as FILE.md, and what it was made of as FILE.json."""
    print(f"\n{text}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    file.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
