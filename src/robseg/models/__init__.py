"""Networks, the registry of those that can be built by name, and the wrapper through which all are judged."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from robseg.models.small_unet import small_unet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "small-unet": small_unet,
}
"""Architecture name -> builder, called with the keyword arguments written in model.yaml; all take num_classes."""
