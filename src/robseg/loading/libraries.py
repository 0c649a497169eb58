"""Models that torchvision and segmentation_models_pytorch (smp) build by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from robseg.errors import UserError, unknown_name
from robseg.loading.extras import require
from robseg.loading.factory import first_line
from robseg.models.adapters import Padded
from robseg.models.published import IMAGENET_MEAN, IMAGENET_STD
from robseg.models.wrapper import SegmentationModel
from robseg.spec import Spec

TORCHVISION_IGNORE = ("aux_classifier.",)
"""torchvision's weights hold an auxiliary head that serves training alone."""


def open_torchvision(spec: Spec, num_classes: int, has_checkpoint: bool) -> SegmentationModel:
    """torchvision:NAME[?weights=NAME], with torchvision's own weights or, without them, for a checkpoint.

    Normalised with ImageNet's mean and std, as all of torchvision's segmentation weights are.
    """
    require("torchvision", "torchvision", "Models of the form torchvision:NAME")
    models = importlib.import_module("torchvision.models")

    _refuse_options("torchvision", spec, ("weights",))
    known = models.list_models(module=models.segmentation)
    if spec.root not in known:
        raise unknown_name("torchvision segmentation model", spec.root or "", known)
    wanted = spec.options.get("weights")
    if wanted is None and not has_checkpoint:
        raise UserError(
            f"torchvision:{spec.root} comes without weights; give a file with --checkpoint, or torchvision's own as "
            f"torchvision:{spec.root}?weights=DEFAULT."
        )
    if wanted is None:
        network = models.get_model(spec.root, weights=None, weights_backbone=None, num_classes=num_classes)
    else:
        choices = models.get_model_weights(spec.root)
        if wanted != "DEFAULT" and wanted not in choices.__members__:
            raise unknown_name(f"weights of torchvision's {spec.root}", wanted, ["DEFAULT", *choices.__members__])
        chosen = choices[wanted]
        try:
            network = models.get_model(spec.root, weights=chosen)
        except OSError as error:
            raise UserError(
                f"torchvision's weights {chosen.name} cannot be downloaded ({first_line(error)}); fetch {chosen.url}, "
                f"and give it with --checkpoint and the model torchvision:{spec.root}."
            ) from error
    return SegmentationModel(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, output="out")


def open_smp(spec: Spec, num_classes: int, has_checkpoint: bool) -> SegmentationModel:
    """smp:ARCHITECTURE?encoder=NAME[&option=value] for a checkpoint, or smp:FOLDER as `save_pretrained` writes it.

    Further options go to `smp.create_model`, read as YAML. Normalised with ImageNet's mean and std. Images whose sides
    the encoder cannot halve often enough are padded.
    """
    smp = require("segmentation_models_pytorch", "smp", "Models of the form smp:NAME")
    folder = Path(spec.root or "")
    if spec.root and folder.is_dir():
        _refuse_options("smp", spec, ())
        network = _smp_folder(smp, folder)
    else:
        if not has_checkpoint:
            raise UserError(f"smp:{spec.root} comes without weights; give a file with --checkpoint, or name a folder.")
        network = _smp_new(smp, spec, num_classes)
    encoder: Any = network.encoder
    divisor = int(encoder.output_stride) if getattr(network, "requires_divisible_input_shape", True) else 1
    return SegmentationModel(Padded(network, divisor) if divisor > 1 else network, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _smp_folder(smp: Any, folder: Path) -> nn.Module:
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"The folder '{folder}' has no {file}; smp models are saved with model.save_pretrained().")
    try:
        network: nn.Module = smp.from_pretrained(folder)
    except Exception as error:
        # Whatever the library, its encoders and the file's reader raise on a file of a stranger.
        raise UserError(
            f"The smp model in '{folder}' cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return network


def _smp_new(smp: Any, spec: Spec, num_classes: int) -> nn.Module:
    options = {key: yaml.safe_load(value) for key, value in spec.options.items()}
    encoder = options.pop("encoder", "resnet34")
    try:
        network: nn.Module = smp.create_model(
            spec.root, encoder_name=encoder, encoder_weights=None, in_channels=3, classes=num_classes, **options
        )
    except Exception as error:
        raise UserError(
            f"smp cannot build '{spec.root}' with the encoder '{encoder}': {type(error).__name__}: {first_line(error)}"
        ) from error
    return network


def _refuse_options(form: str, spec: Spec, known: tuple[str, ...]) -> None:
    for option in spec.options:
        if option not in known:
            if not known:
                raise UserError(f"{form}:{spec.root} takes no options, not '{option}'.")
            raise unknown_name(f"option of {form}:{spec.root}", option, known)
