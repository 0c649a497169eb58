"""Parts that several architectures share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) with zeros added below and on the right up to (B, C, height, width); crop with [..., :H, :W]."""
    missing = (0, width - images.shape[-1], 0, height - images.shape[-2])
    return F.pad(images, missing) if any(missing) else images


def resize(features: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """(B, C, h, w) resampled bilinearly to (B, C, *size)."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


def spatial(features: Tensor) -> tuple[int, int]:
    """(height, width) of a (B, C, height, width) tensor."""
    return features.shape[-2], features.shape[-1]


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W), for each position on its own."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
