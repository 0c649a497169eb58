"""What a training is made of before its first step, and what is refused there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robseg.attacks.objectives import OBJECTIVES, inverse_frequency_weights, objective_arguments
from robseg.data.base import Dataset
from robseg.data.counts import class_pixels
from robseg.errors import UserError
from robseg.models.modes import attack_mode
from robseg.training.faults import network_faults
from robseg.training.groups import parameter_groups
from robseg.training.recipes.recipe import Recipe
from robseg.training.together import Group
from robseg.training.trainee import Trainee

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pieces_of(recipe: Recipe, group: Group) -> int:
    """Into how many pieces each process cuts its share of a batch; UserError where that does not come out even."""
    if recipe.batch_size % group.count:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be shared by {group.count} processes; it must be a multiple of "
            "their number."
        )
    own = recipe.batch_size // group.count
    micro = min(recipe.micro_batch or own, own)
    if own % micro:
        raise UserError(
            f"Each of {group.count} processes gets {own} images of a batch, no multiple of micro_batch {micro}; choose "
            "micro_batch so that it divides them."
        )
    if recipe.method in ("sat", "ddcat") and own // micro * group.count > 1 and micro % 2:
        raise UserError(
            f"The method '{recipe.method}' halves each batch, and a process takes {micro} images at a time; choose "
            "batch_size, micro_batch and the number of processes so that these are even."
        )
    return own // micro


def make_optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of the recipe over its groups of parameters."""
    settings = recipe.optimiser
    groups = parameter_groups(
        network, weight_decay=settings.weight_decay, decay_all=settings.decay_all, new_rate=settings.new_rate
    )
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def objective_weights(recipe: Recipe, data: Dataset, device: torch.device) -> Tensor | None:
    """Inverse frequencies of the training labels, where an attack of the recipe uses them."""
    attack = recipe.validation.config()
    names = [recipe.attack.objective] if recipe.method != "clean" else []
    names += [attack.objective] if attack is not None and recipe.validation.times else []
    if not any("class_weights" in objective_arguments(OBJECTIVES[name]) for name in names):
        return None
    pixels = class_pixels(data)
    if not bool((pixels > 0).any()):
        raise UserError(f"The training data '{data.name}' have no labelled pixel to take class weights from.")
    return inverse_frequency_weights(pixels).to(device)


def validation_steps(recipe: Recipe, steps: int) -> set[int]:
    """The numbers of steps after which there is a validation, the last at the end."""
    times = recipe.validation.times
    return {max(1, round(steps * number / times)) for number in range(1, times + 1)}


def check_outputs(trainee: Trainee, images: Tensor, data: Dataset) -> None:
    """UserError, before anything is trained, where the network fails or gives no logit for each class of the data."""
    height, width = images.shape[-2:]
    with network_faults("training crops", height, width), torch.no_grad(), attack_mode(trainee):
        logits = trainee(images)
    if logits.shape[1] != len(data.classes):
        raise UserError(
            f"The network gives {logits.shape[1]} classes, and '{data.name}' has {len(data.classes)}; make them agree, "
            "a pre-trained network by a new head."
        )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The arithmetic of forward passes."""
    dtype = AUTOCAST.get(recipe.precision)
    # Without its cache, which would hand weights cast under no_grad to the pass that is trained through.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


@contextmanager
def arithmetic(recipe: Recipe) -> Iterator[None]:
    """TF32 on NVIDIA GPUs only where the recipe asks for it."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
