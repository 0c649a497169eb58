"""The embedded data set: scenes of coloured, textured shapes, drawn from numbers alone.

Every class can be told in two ways. The robust cues (outline, coarse colour, coarse texture) overlap between
classes and take some effort to learn; the fragile cue, a pattern of one or two pixels' pitch and 3 to 4.5 of 255 grey
levels, gives the class away to a model trained on clean images and can be wiped out or forged by a perturbation of
4/255. A model trained plainly is therefore accurate and falls to a small attack, one trained adversarially holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from robseg.data.base import IGNORE_INDEX, ClassList, Sample
from robseg.data.options import check_options
from robseg.errors import UserError, unknown_name
from robseg.seeding import derived_seed

Array = NDArray[np.float64]

CLASSES = ClassList(
    names=("background", "disc", "box", "triangle", "ring", "cross"),
    colours=((38, 40, 48), (230, 97, 79), (84, 156, 224), (244, 196, 72), (92, 184, 122), (172, 112, 204)),
)
VOID = "Pixels within 0.7 pixels of the outline of a shape are void (255) and never count."

SIZES = (32, 512)
MOST_IMAGES = 100_000
SPLITS = ("train", "val")

_BORDER = 0.7
_SMALLEST_RADIUS = 3.0
_FRAGILE = (3.0 / 255, 4.5 / 255)
# Mean hue of each class (a turn is 1); the spread makes neighbours overlap, so that colour alone decides little.
_HUES = {1: 0.02, 2: 0.58, 3: 0.14, 4: 0.38, 5: 0.78}
_HUE_SPREAD = 0.1


@dataclass
class Shapes:
    """`count` scenes of size x size pixels; image and label are a function of (seed, split, index, size) alone.

    split: "train" or "val", which share no image. Raises UserError for values out of range.
    """

    count: int = 64
    seed: int = 0
    size: int = 64
    split: str = "val"
    name: str = field(default="shapes", init=False)
    classes: ClassList = field(default=CLASSES, init=False)
    void: str = field(default=VOID, init=False)
    ids: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_IMAGES:
            raise UserError(f"The option count of shapes is {self.count}; it must be 1 to {MOST_IMAGES}.")
        if self.seed < 0:
            raise UserError(f"The option seed of shapes is {self.seed}; it must be 0 or more.")
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise UserError(f"The option size of shapes is {self.size}; it must be {SIZES[0]} to {SIZES[1]}.")
        if self.split not in SPLITS:
            raise unknown_name("split of shapes", self.split, SPLITS)
        self.ids = tuple(f"{self.split}-{self.seed}-{index:05d}" for index in range(self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """The scene at `index`: image (3, size, size) of multiples of 1/255 and its label. IndexError past the end."""
        position = range(self.count)[index]
        seed = derived_seed(self.seed, "shapes", self.split, str(position))
        image, label = draw_scene(np.random.default_rng(np.random.SeedSequence(seed)), self.size)
        return Sample(torch.from_numpy(image), torch.from_numpy(label), self.ids[position])

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image at `index`, without drawing it."""
        range(self.count)[index]
        return self.size, self.size


def open_shapes(root: str | None, options: Mapping[str, str]) -> Shapes:
    """The set that 'shapes?count=32&seed=1' names. Options: count, seed, size (whole numbers) and split.

    Raises UserError for a root (the set is drawn, not read), an option that does not exist or a value out of range.
    """
    if root is not None:
        raise UserError(f"The data set shapes is drawn, not read, so it takes no folder; got '{root}'.")
    check_options("shapes", options, ("count", "seed", "size", "split"))
    values: dict[str, int] = {}
    for key in options.keys() - {"split"}:
        text = options[key]
        try:
            values[key] = int(text)
        except ValueError:
            raise UserError(f"The option {key} of shapes is '{text}'; it must be a whole number.") from None
    return Shapes(split=options.get("split", "val"), **values)


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Array, NDArray[np.int64]]:
    """One scene: image (3, size, size) of multiples of 1/255 and label (size, size) of 0..5 and 255."""
    image = _background(rng, size)
    label = np.zeros((size, size), np.int64)
    fragile = _signed(rng) * _pattern(0, size)
    number = int(rng.integers(5, 9))
    radii = np.exp(rng.uniform(math.log(_SMALLEST_RADIUS), math.log(size / 3), number))
    # Large ones mostly lie behind small ones, or the small ones would seldom be seen.
    for radius in radii[np.argsort(-radii * rng.uniform(0.5, 2.0, number))]:
        _paint(rng, image, label, fragile, float(radius))
    image += fragile[..., None] + rng.normal(0.0, 0.8 / 255, image.shape)
    levels = np.rint(np.clip(image, 0.0, 1.0) * 255)
    return np.ascontiguousarray(levels.transpose(2, 0, 1) / 255, np.float32), label


def _paint(rng: np.random.Generator, image: Array, label: NDArray[np.int64], fragile: Array, radius: float) -> None:
    """Draw one shape of a random class into image, label and the map of fragile patterns, in place."""
    size = label.shape[0]
    kind = int(rng.integers(1, len(CLASSES)))
    centre_x, centre_y = rng.uniform(0.08 * size, 0.92 * size, 2)
    angle = rng.uniform(0.0, 2 * math.pi)
    aspect, phase = rng.uniform(0.5, 1.0), rng.uniform(0.0, 1.0)
    colour = _colour(rng, kind)
    strength = _signed(rng)

    reach = 1.45 * radius + 2
    left, right = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, size)
    top, bottom = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, size)
    dx = np.arange(left, right)[None] - centre_x
    dy = np.arange(top, bottom)[:, None] - centre_y
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx

    outline, texture = _OUTLINES[kind], _TEXTURES[kind]
    distance = outline(u, v, radius, aspect)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    shade = texture(u / radius, v / radius, phase)[..., None]
    light = (0.05 * (dx + dy) / radius)[..., None]
    window = np.s_[top:bottom, left:right]
    image[window] += cover * (colour * (1 + 0.3 * shade) - light - image[window])
    inside = distance < 0
    fragile[window] = np.where(inside, strength * _pattern(kind, size)[window], fragile[window])
    label[window] = np.where(inside, kind, label[window])
    label[window] = np.where(np.abs(distance) < _BORDER, IGNORE_INDEX, label[window])


def _background(rng: np.random.Generator, size: int) -> Array:
    """A muted colour with two octaves of smooth noise, (size, size, 3)."""
    hue, saturation, value = rng.uniform(0.0, 1.0), rng.uniform(0.05, 0.42), rng.uniform(0.35, 0.75)
    image = np.broadcast_to(_rgb(hue, saturation, value), (size, size, 3)).copy()
    for cells, colourful, amplitude in ((4, 0.5, 0.09), (13, 0.3, 0.05)):
        across = _interpolation(cells, size)
        grid = rng.normal(size=(cells, cells, 1)) + colourful * rng.normal(size=(cells, cells, 3))
        # einsum and not a product of matrices: what BLAS returns hangs on the machine and its threads.
        image += amplitude * np.einsum("xb,ybc->yxc", across, np.einsum("ya,abc->ybc", across, grid))
    return image


@lru_cache(maxsize=16)
def _interpolation(cells: int, size: int) -> Array:
    """The matrix (size, cells) that stretches `cells` values to `size` with smooth (raised cosine) steps."""
    position = np.linspace(0, cells - 1, size)
    low = np.minimum(position.astype(np.int64), cells - 2)
    weight = (1 - np.cos(math.pi * (position - low))) / 2
    matrix = np.zeros((size, cells))
    matrix[np.arange(size), low] = 1 - weight
    matrix[np.arange(size), low + 1] = weight
    return matrix


@lru_cache(maxsize=32)
def _pattern(kind: int, size: int) -> Array:
    """The fragile pattern of a class, (size, size) of -1 and 1; all are their own mirror images up to sign."""
    y, x = np.mgrid[:size, :size]
    cells = (x // 2 + y // 2, x + y, x, y, x // 2, y // 2)[kind]
    return np.asarray(1.0 - 2 * (cells % 2))


def _signed(rng: np.random.Generator) -> float:
    """How strongly a fragile pattern shows, and whether it begins with its dark or its light pixels."""
    return float(rng.uniform(*_FRAGILE) * rng.choice((-1.0, 1.0)))


def _colour(rng: np.random.Generator, kind: int) -> Array:
    hue = _HUES[kind] + rng.normal(0.0, _HUE_SPREAD)
    return _rgb(hue, rng.uniform(0.35, 0.8), rng.uniform(0.45, 0.9))


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """HSV to RGB, each in [0, 1]; the hue wraps around."""
    offsets = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    ramp = np.clip(np.minimum(offsets, 4 - offsets), 0, 1)
    return np.asarray(value * (1 - saturation * ramp))


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _triangle(u: Array, v: Array, radius: float) -> Array:
    slanted = math.sqrt(3) / 2 * np.abs(u) - v / 2
    return np.maximum(slanted, v) - 0.55 * radius


# Signed distance (pixels, negative inside) of each class's outline, in the shape's own axes, for its radius
# and aspect.
_Outline = Callable[[Array, Array, float, float], Array]
_OUTLINES: dict[int, _Outline] = {
    1: lambda u, v, r, a: np.hypot(u, v) - r,
    2: lambda u, v, r, a: _box(u, v, r, a * r),
    3: lambda u, v, r, a: _triangle(u, v, 1.25 * r),
    4: lambda u, v, r, a: np.abs(np.hypot(u, v) - 0.78 * r) - 0.3 * r,
    5: lambda u, v, r, a: np.minimum(_box(u, v, 1.1 * r, 0.36 * r), _box(u, v, 0.36 * r, 1.1 * r)),
}

# Coarse shading of each class in units of its radius, about -1..1.
_Texture = Callable[[Array, Array, float], Array]
_TEXTURES: dict[int, _Texture] = {
    1: lambda u, v, p: 1 - 1.8 * ((u - 0.3) ** 2 + (v - 0.3) ** 2),
    2: lambda u, v, p: np.sin(9 * u + 6.3 * p),
    3: lambda u, v, p: 1.3 * v + 0.2,
    4: lambda u, v, p: np.sin(6 * np.arctan2(v, u) + 6.3 * p),
    5: lambda u, v, p: np.sin(9 * u + 6.3 * p) * np.sin(9 * v),
}
