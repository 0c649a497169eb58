"""Colours for classes that have no official ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LEVELS = 12
_DARK = 0.35


@lru_cache
def distinct_colours(n: int) -> tuple[tuple[int, int, int], ...]:
    """`n` RGB colours (0..255) that are easy to tell apart; the first is black, as for a background.

    Each next colour is the one farthest from all before it (and from white, the paper) in the Oklab space, whose
    distances follow the eye's. The colours of few classes are therefore the first ones of many.
    """
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.int64)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    place = _oklab(grid)
    # Dark colours lie far apart in Oklab but look alike on a screen: besides black none is used.
    bright = place[:, 0] > _DARK
    if n > bright.sum():
        raise ValueError(f"{n} colours are wanted, but only {bright.sum()} are there")
    nearest = np.where(bright, ((place - place[-1]) ** 2).sum(axis=1), 0)
    chosen: list[int] = []
    pick = 0
    for _ in range(n):
        chosen.append(pick)
        nearest = np.minimum(nearest, ((place - place[pick]) ** 2).sum(axis=1))
        pick = int(nearest.argmax())
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[chosen])


def _oklab(rgb: NDArray[np.int64]) -> NDArray[np.float64]:
    """sRGB (N, 3) of 0..255 to Oklab (N, 3); matrices from Björn Ottosson, "A perceptual color space" (2020)."""
    srgb = rgb / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(linear @ cones.T) @ opponents.T
    return lab
