"""Weights, images and labels that are functions of names and seeds.

The figures in tests/fixtures were printed by the published implementations from these very numbers, so a model or an
attack can be compared with its published original although neither weights nor images are shipped.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def tensor_for(name: str, shape: tuple[int, ...]) -> Tensor:
    """The entry `name` of a state dict: float32 of `shape` (int64 zeros for batch norm's step counters).

    The scales keep activations of a deep network near one: norm weights and variances are near 1, kernels are divided
    by the root of their fan-in.
    """
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    generator = _generator(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    if kind == "running_var":
        return torch.from_numpy(np.asarray(1 + 0.2 * generator.random(shape), dtype=np.float32))
    offset, scale = {
        "running_mean": (0.0, 0.1),
        "pos_embed": (0.0, 0.02),
        "cls_token": (0.0, 0.02),
        "gamma": (0.2, 0.05),
        "bias": (0.0, 0.1),
    }.get(kind, (1.0, 0.1) if len(shape) == 1 else (0.0, math.sqrt(1.5 / max(math.prod(shape[1:]), 1))))
    # Doubles, because the figures depend on the float64 stream of the generator.
    normal = generator.standard_normal(shape)
    return torch.from_numpy(np.asarray(offset + scale * normal, dtype=np.float32))


def image(seed: int, batch: int, height: int, width: int) -> Tensor:
    """Smooth images with a little noise: (batch, 3, height, width) float32 in [0, 1]."""
    generator = _generator(seed)
    blobs = torch.from_numpy(generator.random((batch, 3, 8, 8), dtype=np.float32))
    noise = torch.from_numpy(generator.random((batch, 3, height, width), dtype=np.float32))
    smooth = F.interpolate(blobs, size=(height, width), mode="bilinear", align_corners=False)
    return (0.8 * smooth + 0.2 * noise).clamp(0, 1)


def labels(seed: int, batch: int, height: int, width: int, classes: int) -> Tensor:
    """Six by six blocks of random classes: (batch, height, width) int64 in 0..classes-1."""
    blocks = _generator(seed).integers(0, classes, (batch, 6, 6))
    row, column = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    return torch.from_numpy(blocks[:, row[:, None], column]).long()
