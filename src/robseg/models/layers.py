"""Parts that several architectures share."""

from __future__ import annotations

import torch
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


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a residual branch is zero with probability `rate`, per sample.

    What is kept is divided by 1 - rate; in evaluation the branch passes unchanged.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * keep.to(branch.dtype) / (1 - self.rate)


def drop_path_rates(largest: float, depth: int) -> list[float]:
    """The rates of `depth` blocks in order: they grow evenly from 0 to `largest`."""
    return [largest * index / max(depth - 1, 1) for index in range(depth)]
