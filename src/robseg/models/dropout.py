"""Dropout and stochastic depth whose draws can belong to images, so that a training does not depend on how its batches
are shared by processes or cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_GENERATORS: ContextVar[Sequence[torch.Generator] | None] = ContextVar("generators", default=None)


@contextmanager
def draws_from(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within it, the modules of this file draw for each image of a batch from that image's own generator.

    generators: one an image, on the device of the features. Outside of it, and in what torch.compile has compiled,
    they draw from torch's global generator.
    """
    token = _GENERATORS.set(generators)
    try:
        yield
    finally:
        _GENERATORS.reset(token)


def dropped(features: Tensor, rate: float, shape: Sequence[int]) -> Tensor:
    """Features (B, ...) with shares zero with probability `rate` and the others divided by 1 - rate.

    shape: of the draws for one image, to be broadcast against its features. Raises ValueError where generators are set
    and are not one an image.
    """
    # The first question is answered while compiling; the compiler could not look into the context.
    generators = None if torch.compiler.is_compiling() else _GENERATORS.get()
    if generators is None:
        draws = torch.rand(len(features), *shape, device=features.device)
    elif len(generators) != len(features):
        raise ValueError(f"{len(generators)} generators for a batch of {len(features)} images")
    else:
        draws = torch.stack([torch.rand(*shape, generator=one, device=features.device) for one in generators])
    keep = (draws >= rate).to(features.dtype)
    return features * keep / (1 - rate) if rate < 1 else features * keep


class Dropout(nn.Dropout):
    """Dropout (arXiv 1207.0580) of single elements of (B, ...)."""

    def forward(self, features: Tensor) -> Tensor:
        return dropped(features, self.p, features.shape[1:]) if self.training and self.p > 0 else features


class Dropout2d(nn.Dropout2d):
    """Dropout of whole channels of (B, C, H, W) (arXiv 1411.4280)."""

    def forward(self, features: Tensor) -> Tensor:
        return dropped(features, self.p, (features.shape[1], 1, 1)) if self.training and self.p > 0 else features


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a residual branch is zero with probability `rate`, per sample.

    What is kept is divided by 1 - rate; in evaluation the branch passes unchanged.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        return dropped(branch, self.rate, [1] * (branch.ndim - 1)) if self.training and self.rate > 0 else branch


def drop_path_rates(largest: float, depth: int) -> list[float]:
    """The rates of `depth` blocks in order: they grow evenly from 0 to `largest`."""
    return [largest * index / max(depth - 1, 1) for index in range(depth)]
