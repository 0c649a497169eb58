"""Threat models: the set of images an attacker may choose from, as four functions of a ball.

Perturbations have the shape of the images, (B, 3, H, W) in [0, 1]; eps is in the same units (4/255, not 4).
All work on each image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Linf:
    """No channel of any pixel changes by more than eps."""

    name: str = "linf"

    def random_point(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> Tensor:
        """Images plus a uniform draw from the ball, clipped to [0, 1]; one CPU generator per image."""
        unit = _draw(images, generators, lambda shape, g: 2 * torch.rand(shape, generator=g) - 1)
        return self.project(images, images + eps * unit, eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation of size 1 along which the loss rises fastest: the sign of the gradient."""
        return gradient.sign()

    def project(self, images: Tensor, moved: Tensor, eps: float) -> Tensor:
        """The point of the eps-ball around `images`, and then of [0, 1], that is nearest to `moved`."""
        return torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)

    def size(self, perturbation: Tensor) -> Tensor:
        """The largest absolute entry per image, (B,)."""
        return perturbation.abs().flatten(1).amax(1)

    def round_to_8bit(self, images: Tensor, adversarial: Tensor, eps: float) -> Tensor:
        """The nearest image whose values are k/255 and that is still in the ball; `images` must be 8-bit already."""
        levels = 255 * eps + _LEVEL_SLACK
        clean = (255 * images).round()
        return _within_levels(clean, ((255 * adversarial).round() - clean).clamp(-int(levels), int(levels)))


@dataclass(frozen=True)
class L2:
    """The Euclidean norm of an image's whole perturbation stays within eps."""

    name: str = "l2"

    def random_point(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> Tensor:
        """Images plus a uniform draw from the ball, clipped to [0, 1]; one CPU generator per image."""
        direction = _draw(images, generators, lambda shape, g: torch.randn(shape, generator=g))
        # In d dimensions the radius of a uniform point is distributed as u^(1/d).
        u = _draw(images, generators, lambda shape, g: torch.rand(1, generator=g).expand(shape))
        radius = eps * u ** (1 / images[0].numel())
        return self.project(images, images + radius * self.steepest(direction), eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its Euclidean norm; zero where the gradient is zero."""
        # Divided by the largest entry first: squares of tiny gradients would underflow.
        largest = gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        scaled = gradient / torch.where(largest > 0, largest, 1)
        norm = scaled.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return scaled / torch.where(norm > 0, norm, 1)

    def project(self, images: Tensor, moved: Tensor, eps: float) -> Tensor:
        """`moved` pulled back along the line to `images` into the eps-ball, then clipped to [0, 1].

        Clipping afterwards moves every value towards the image's, so the result is inside both sets.
        """
        perturbation = moved - images
        norm = self.size(perturbation).view(-1, 1, 1, 1)
        factor = torch.where(norm > eps, eps / torch.where(norm > 0, norm, 1), 1)
        return (images + perturbation * factor).clamp(0, 1)

    def size(self, perturbation: Tensor) -> Tensor:
        """The Euclidean norm per image, (B,)."""
        norm: Tensor = perturbation.flatten(1).norm(dim=1)
        return norm

    def round_to_8bit(self, images: Tensor, adversarial: Tensor, eps: float) -> Tensor:
        """An image whose values are k/255, each rounded towards the clean one so that the norm cannot grow."""
        clean = (255 * images).round()
        change = 255 * adversarial - clean
        return _within_levels(clean, change.sign() * (change.abs() + _LEVEL_SLACK).floor())


Threat = Linf | L2

THREATS: dict[str, Threat] = {"linf": Linf(), "l2": L2()}

_LEVEL_SLACK = 1e-3
"""In units of 1/255: what float arithmetic may take from an exact level (255 * float32(4/255) is 3.9999998)."""


def _draw(images: Tensor, generators: Sequence[Generator], sample: Callable[[torch.Size, Generator], Tensor]) -> Tensor:
    shape = images.shape[1:]
    return torch.stack([sample(shape, generator) for generator in generators]).to(images)


def _within_levels(clean: Tensor, change: Tensor) -> Tensor:
    return (clean + change).clamp(0, 255) / 255
