"""From a recipe to the model that is trained: its network, the weights it begins with and the normalisation of its
input."""

from __future__ import annotations

import torch
from torch import nn

from robseg.errors import UserError
from robseg.loading.backbone import load_backbone
from robseg.loading.checkpoint import load_weights, read_checkpoint
from robseg.loading.model_folder import GIVEN, Normalisation, read_weights
from robseg.loading.model_source import open_model
from robseg.loading.normaliser import Normaliser
from robseg.loading.places import fetch
from robseg.models.architectures import ARCHITECTURES
from robseg.models.published import IMAGENET_MEAN, IMAGENET_STD
from robseg.models.wrapper import SegmentationModel
from robseg.seeding import derived_seed
from robseg.training.recipes.recipe import ModelSettings, Recipe


def build(recipe: Recipe, num_classes: int, given: nn.Module | None = None) -> SegmentationModel:
    """The model of a recipe at its first step, in training's float32; fresh weights follow from the seed.

    given: the network, or model, of a recipe whose architecture is "given"; its weights stay unless the recipe names
    some. Raises UserError for arguments that the architecture does not take, for a network that is missing, and for
    files of weights and foreign models as their loaders do.
    """
    settings = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(recipe.seed, "fresh weights"))
        model = _unloaded(settings, num_classes, given)
    network, found = model.network, None
    if settings.backbone is not None:
        found = load_backbone(network, read_checkpoint(fetch(settings.backbone)), source=settings.backbone)
        if settings.normalisation == "backbone" and found is None:
            raise UserError(
                f"The file '{settings.backbone}' holds no mean and std of its input; say "
                "model.normalisation=imagenet, none or {mean: [...], std: [...]}."
            )
    if settings.checkpoint is not None:
        state, beside = read_weights(settings.checkpoint, network)
        load_weights(
            network, state, source=settings.checkpoint,
            advice=lambda there, here: f"train on data of {there} classes, or give a checkpoint of {here}",
        )  # fmt: skip
        found = beside or found
    mean, std = _normalisation(settings, model, found)
    return SegmentationModel(network, mean=mean, std=std, output=model.output)


def _unloaded(settings: ModelSettings, num_classes: int, given: nn.Module | None) -> SegmentationModel:
    name = settings.architecture
    if name == GIVEN:
        if given is None:
            raise UserError("The network of this training was given as an object; give it again as network.")
        return given if isinstance(given, SegmentationModel) else SegmentationModel(given)
    if name not in ARCHITECTURES:
        return open_model(name, num_classes=num_classes, fresh=True)
    try:
        return SegmentationModel(ARCHITECTURES[name](num_classes=num_classes, **settings.arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} does not take model.arguments {settings.arguments}: {error}.") from error


def _normalisation(
    settings: ModelSettings, model: SegmentationModel, found: Normaliser | None
) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std of the input; `found` are those of the files that were loaded."""
    wanted = settings.normalisation
    if wanted == "none":
        return None, None
    if wanted == "imagenet":
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    stated = wanted if isinstance(wanted, Normalisation) else found
    return model.normalisation() if stated is None else (list(stated.mean), list(stated.std))
