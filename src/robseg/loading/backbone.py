"""ImageNet classifiers as the backbones from which segmentation networks are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from robseg.errors import UserError
from robseg.loading.checkpoint import load_weights
from robseg.loading.normaliser import Normaliser, take_normaliser
from robseg.models.dilated import DilatedSegmenter
from robseg.models.segmenter import Segmenter
from robseg.models.upernet import UPerNet
from robseg.models.vit import resize_positions

CONVNEXT_FROM_TIMM = (
    (r"(?<!stem\.)\bstem\.(?=\d)", "downsample_layers.0."),
    (r"\bstem\.stem\.", "downsample_layers.0.stem."),
    (r"\bstages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\b(stages\.\d)\.blocks\.", r"\1."),
    (r"\bconv_dw\.", "dwconv."),
    (r"\bmlp\.fc([12])\.", r"pwconv\1."),
)
# The stem's convolutions and norms stand at the top, those of the same names inside `layer1` ... stay.
RESNET_FROM_SEMSEG = tuple(
    (rf"^((?:(?!layer)\w+\.)*){kind}{index}\.", rf"\g<1>layer0.{3 * (index - 1) + offset}.")
    for index in (1, 2, 3)
    for offset, kind in enumerate(("conv", "bn"))
)


def load_backbone(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> Normaliser | None:
    """Copy an ImageNet classifier into the backbone of a segmentation network; the rest of it stays as it is.

    UPerNet: a ConvNeXt in its own names or in timm's. Segmenter: a ViT in timm's names, whose table of positions is
    resized bilinearly. PSPNet and DeepLabv3: a ResNet with the deep stem in the names of the semseg project. Prefixes
    such as "module.base_model." are found, and the classifier is left out.

    Returns the normaliser that the file holds, for `SegmentationModel`: the backbone was trained behind it, so the
    model on top is to normalise likewise. None where there is none.

    Raises UserError as `load_weights` does, with the network untouched, or for a network without such a backbone.
    """
    names, normaliser = take_normaliser(state)
    ignore: tuple[str, ...]
    if isinstance(network, UPerNet):
        part, ignore = _part(network.backbone, "downsample_layers", "stages"), ("norm.", "head.", "norm_pre.")
        if any("conv_dw." in name for name in names):
            names = _renamed(names, CONVNEXT_FROM_TIMM)
    elif isinstance(network, Segmenter):
        encoder = network.encoder
        part, ignore = _part(encoder, "cls_token", "pos_embed", "patch_embed", "blocks", "norm"), ("head.",)
        side = math.isqrt(encoder.pos_embed.shape[1] - 1)
        names = {
            name: _positions(value, side) if name.endswith("pos_embed") else value for name, value in names.items()
        }
    elif isinstance(network, DilatedSegmenter):
        part, ignore = _part(network, "layer0", "layer1", "layer2", "layer3", "layer4"), ("fc.",)
        names = _renamed(names, RESNET_FROM_SEMSEG)
    else:
        raise UserError(f"A {type(network).__name__} has no ConvNeXt, ViT or ResNet backbone to load '{source}' into.")
    load_weights(part, names, source=source, ignore=ignore)
    return normaliser


def _part(module: nn.Module, *names: str) -> nn.Module:
    """A module of some of the children and parameters of another, shared with it."""
    part = nn.Module()
    for name in names:
        setattr(part, name, getattr(module, name))
    return part


def _renamed(state: Mapping[str, Tensor], patterns: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _positions(table: Tensor, side: int) -> Tensor:
    """A table of another square grid at side x side; anything else as it is, for `load_weights` to refuse."""
    tokens = table.shape[1] - 1 if table.ndim == 3 else -1
    return resize_positions(table.float(), (side, side)) if tokens > 0 and math.isqrt(tokens) ** 2 == tokens else table
