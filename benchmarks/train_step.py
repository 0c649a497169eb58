"""What a training step costs beyond the forward and backward passes it cannot do without, and what options save.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--model NAME] [--method at] [--attack-steps 2] [--rounds 5]

Bare: the attack's forward and backward passes to the image in evaluation mode, one forward and backward pass of the
losses to the parameters, and the optimiser's own step; nothing else. Step: the same as `robseg train` does it, with
data, projection, schedule and measurements. Of either the median of --steps steps counts, the first left out. Both
alternate within one run and the median of the ratios is printed, so that a machine whose speed drifts does not
matter. With --options, every option's step is compared with the recipe's likewise. On the CPU the time is
that which this process computed, one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from robseg.data.sets.shapes import Shapes
from robseg.models.modes import attack_mode
from robseg.models.wrapper import SegmentationModel
from robseg.training.loop import fit
from robseg.training.network import build
from robseg.training.recipes.files import load_recipe
from robseg.training.recipes.recipe import Recipe
from robseg.training.setup import make_optimiser
from robseg.training.together import join_group
from robseg.training.trainee import read_outputs

OPTIONS: dict[str, dict[str, Any]] = {
    "clean": {"method": "clean"},
    "fgsm, random start": {"attack": {"name": "fgsm", "steps": 1, "alpha": None, "random_start": True}},
    "apgd": {"attack": {"name": "apgd", "alpha": None}},
    "attack in bf16": {"attack": {"bf16": True}},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "tf32": {"precision": "tf32"},
    "channels_last": {"channels_last": True},
    "averaged weights": {"ema": 0.999},
    "clipped gradient": {"optimiser": {"clip": 1.0}},
    "two micro-batches": {"micro_batch": "half"},
    "torch.compile": {"compile": "default"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="upernet_convnext_t_cvst")
    parser.add_argument("--method", default="at")
    parser.add_argument("--attack-steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="steps of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--options", nargs="*", help=f"compare options: all, or some of {', '.join(OPTIONS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    recipe = recipe_of(arguments)
    print(
        f"{arguments.model}, {arguments.method}, {arguments.attack_steps} attack steps, batch {arguments.batch} of "
        f"{arguments.size}x{arguments.size}, {arguments.device}"
    )
    step = partial(steps_seconds, recipe, arguments)
    bare = partial(bare_seconds, recipe, arguments)
    show("step against its bare passes", compare(step, bare, arguments.rounds), "s a bare step")
    if arguments.options is None:
        return
    for name in arguments.options or OPTIONS:
        changed = {**OPTIONS[name]}
        if changed.get("micro_batch") == "half":
            changed["micro_batch"] = arguments.batch // 2
        try:
            other = partial(steps_seconds, recipe_of(arguments, changed), arguments)
            show(f"{name} against the recipe", compare(other, step, arguments.rounds), "s a step of the recipe")
        except Exception as error:  # An option that this machine lacks must not end the comparison.
            print(
                f"{name:32s} not available: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr
            )


def recipe_of(arguments: argparse.Namespace, changes: dict[str, Any] | None = None) -> Recipe:
    base = {
        "data": {"train": "given"}, "model": {"architecture": arguments.model}, "method": arguments.method,
        "augmentation": {"crop": arguments.size}, "batch_size": arguments.batch, "steps": 1, "channels_last": False,
        "attack": {"steps": arguments.attack_steps, "alpha": 2.55}, "validation": {"times": 0},
    }  # fmt: skip
    return load_recipe(base, changes or {})


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[list[float], float]:
    """Ratios of alternating measurements, the first pair left out as a warm-up, and the median of theirs."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return [a / b for a, b in pairs], statistics.median(b for _, b in pairs)


def show(what: str, found: tuple[list[float], float], unit: str) -> None:
    ratios, seconds = found
    spread = f"(from {min(ratios):.3f} to {max(ratios):.3f})"
    print(f"{what:44s} {statistics.median(ratios):.3f} {spread}, {seconds:.3g} {unit}", flush=True)


def now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def steps_seconds(recipe: Recipe, arguments: argparse.Namespace) -> float:
    """One step of the trainer."""
    model, data = model_and_data(recipe, arguments)
    times: list[float] = []
    fit(
        model, data, recipe.model_copy(update={"steps": arguments.steps + 1}), group=join_group(arguments.device),
        progress=lambda stage, done, total, note: times.append(now(arguments.device)) if done else None,
    )  # fmt: skip
    return median_gap(times)


def median_gap(times: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def model_and_data(recipe: Recipe, arguments: argparse.Namespace) -> tuple[SegmentationModel, Shapes]:
    # As many images as a batch has: all are decoded in the first step.
    data = Shapes(arguments.batch, size=arguments.size, split="train")
    return build(recipe, len(data.classes)), data


def bare_seconds(recipe: Recipe, arguments: argparse.Namespace) -> float:
    """One step with nothing but its passes and the optimiser's arithmetic."""
    model, data = model_and_data(recipe, arguments)
    network = model.network
    network.to(arguments.device)
    optimiser = make_optimiser(network, recipe)
    images = torch.stack([data[i].image for i in range(len(data))]).to(arguments.device)
    labels = torch.stack([data[i].label for i in range(len(data))]).to(arguments.device)
    times: list[float] = []
    for _ in range(arguments.steps + 1):
        bare_step(network, optimiser, images, labels, recipe)
        times.append(now(arguments.device))
    return median_gap(times)


def bare_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe
) -> None:
    # Before the attack, as the trainer: what the gradients took is there for the passes then.
    optimiser.zero_grad()
    half = len(images) // 2
    first = {"clean": len(images), "at": 0, "sat": half, "ddcat": 0}[recipe.method]
    with attack_mode(network):
        for _ in range(recipe.attack.steps if first < len(images) else 0):
            x = images[first:].detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(x), labels[first:], ignore_index=255, reduction="sum"), x)
        if recipe.method == "ddcat":
            with torch.no_grad():
                network.training_outputs(images[:half]), network.training_outputs(images[:half])  # type: ignore[operator]
    network.train()
    outputs = read_outputs(network(images), labels.shape[1:])  # type: ignore[arg-type]
    loss = F.cross_entropy(outputs.logits, labels, ignore_index=255)
    if outputs.auxiliary is not None:
        loss = loss + 0.4 * F.cross_entropy(outputs.auxiliary, labels, ignore_index=255)
    if outputs.mask is not None:
        loss = loss + F.cross_entropy(outputs.mask, torch.zeros_like(labels))
    loss.backward()
    optimiser.step()


if __name__ == "__main__":
    main()
