"""The random transforms of training images, on Pillow; random numbers come from (seed, epoch, image id)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from robseg.data.base import IGNORE_INDEX, Sample
from robseg.data.protocols import to_8bit
from robseg.errors import UserError, unknown_name
from robseg.seeding import image_generator

Blur = Literal["none", "radius", "5x5"]
PadLabel = Literal["void", "first class"]
PadAt = Literal["end", "centre"]

LARGEST_SIDE, LARGEST_SCALE = 16384, 100

_MEAN_COLOUR = (124, 116, 104)
"""ImageNet's, as 8 bits."""

_KERNEL = np.exp(-(np.arange(-2, 3, dtype=np.float32) ** 2) / (2 * 1.1**2))
_KERNEL /= _KERNEL.sum()
"""One side of the 5 x 5 Gaussian, with the width that OpenCV gives it when asked for none."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in the order of the fields from `flip` on.

    crop: side of the square that comes out.
    flip: mirror half of the images.
    scale: range of a uniform random factor: of the image's own size, or, with `base`, the short side becomes a whole
        number of pixels between the two factors times `base`. None: images keep their size.
    rotation: half of the images are turned by up to so many degrees either way.
    pad: where an image smaller than the crop is filled up: at its "end" (right and below) or on both sides ("centre").
    fill: the RGB (0..255) of what is filled up and of the corners of turned images.
    pad_label: what is filled up is "void", or counts as the "first class" (background), as PIR-AT's code has it.
    blur: half of the images: "radius", Gaussian of a radius below 1 pixel (PIR-AT); "5x5", a fixed 5 x 5 Gaussian
        (DDC-AT).
    jitter: the largest relative change of brightness, contrast and saturation; of hue a tenth of a turn times this.
        0: none.

    Raises UserError for values out of range.
    """

    crop: int
    flip: bool = True
    scale: tuple[float, float] | None = None
    base: int | None = None
    rotation: float = 0.0
    pad: PadAt = "end"
    fill: tuple[int, int, int] = (0, 0, 0)
    pad_label: PadLabel = "void"
    blur: Blur = "none"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("pad", PadAt), ("pad_label", PadLabel), ("blur", Blur)):
            if getattr(self, name) not in get_args(allowed):
                raise unknown_name(f"{name} of the augmentation", getattr(self, name), get_args(allowed))
        if not 1 <= self.crop <= LARGEST_SIDE:
            raise UserError(
                f"crop of the augmentation is {self.crop}; it must be 1 or more, and {LARGEST_SIDE} at most."
            )
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= LARGEST_SCALE:
            raise UserError(
                f"scale of the augmentation is {self.scale}; it must be two factors above 0 and up to {LARGEST_SCALE}, "
                "in order."
            )
        if self.base is not None and (not 1 <= self.base <= LARGEST_SIDE or self.scale is None):
            raise UserError(
                f"base of the augmentation is {self.base}; it must be 1 or more, up to {LARGEST_SIDE}, and needs scale."
            )
        if not all(0 <= level <= 255 for level in self.fill):
            raise UserError(f"fill of the augmentation is {self.fill}; it must be three levels of 0 to 255.")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation of the augmentation is {self.rotation}; it must be 0 to 180 degrees.")
        if not 0 <= self.jitter < 1:
            raise UserError(f"jitter of the augmentation is {self.jitter}; it must be from 0 to below 1.")


AUGMENTATIONS: dict[str, Augmentation] = {
    "pirat-voc": Augmentation(473, scale=(0.5, 2.0), base=512, blur="radius"),
    "pirat-ade20k": Augmentation(512, scale=(0.5, 2.0), base=520, blur="radius"),
    "ddcat-voc": Augmentation(
        473, scale=(0.5, 2.0), rotation=10, pad="centre", fill=_MEAN_COLOUR, blur="5x5"
    ),
    "ddcat-cityscapes": Augmentation(
        449, scale=(0.25, 1.0), rotation=10, pad="centre", fill=_MEAN_COLOUR, blur="5x5"
    ),
}  # fmt: skip
"""The transforms of the published recipes (arXiv 2306.12941, 2003.06555). PIR-AT's code counts padded pixels as
background: dataclasses.replace(..., pad_label="first class")."""


class Pixels:
    """An image (H, W, 3) and its label (H, W) as 8 bits: what is transformed, cached and sent between processes."""

    __slots__ = ("image", "label")

    def __init__(self, image: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        self.image, self.label = image, label


def to_pixels(sample: Sample) -> Pixels:
    """The sample as 8 bits; images of finer values are rounded."""
    return Pixels(to_8bit(sample.image).numpy(), sample.label.to(torch.uint8).numpy())


def augment(sample: Sample, augmentation: Augmentation, seed: int, epoch: int) -> Sample:
    """The sample transformed: image (3, crop, crop) of multiples of 1/255, label (crop, crop).

    A function of the sample, the augmentation, `seed`, `epoch` and the sample's id alone.
    """
    pixels = augment_pixels(to_pixels(sample), augmentation, generator_of(sample.id, seed, epoch))
    image = torch.from_numpy(pixels.image).permute(2, 0, 1).float().div(255).contiguous()
    return Sample(image, torch.from_numpy(pixels.label).long(), sample.id)


def generator_of(image_id: str, seed: int, epoch: int) -> torch.Generator:
    """The generator from which an image's transform in an epoch is drawn."""
    return image_generator(seed, f"{image_id}/epoch {epoch}", "augmentation")


def augment_pixels(pixels: Pixels, augmentation: Augmentation, generator: torch.Generator) -> Pixels:
    """`augment` on 8-bit arrays: crop x crop x 3 and crop x crop, uint8."""
    draw = _Draws(generator)
    image, label = Image.fromarray(pixels.image), Image.fromarray(pixels.label)
    if augmentation.flip and draw.coin():
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = _scaled_size(image.size, augmentation, draw)
    angle = draw.between(-augmentation.rotation, augmentation.rotation) if augmentation.rotation else 0.0
    if augmentation.rotation and draw.coin():
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=augmentation.fill)
        label = label.rotate(angle, Image.Resampling.NEAREST, fillcolor=_padding(augmentation))
    image, label = _cropped(image, label, size, augmentation, draw)
    if augmentation.blur != "none" and draw.coin():
        image = _blurred(image, augmentation.blur, draw)
    if augmentation.jitter:
        image = _jittered(image, augmentation.jitter, draw)
    return Pixels(np.array(image), np.array(label))


class _Draws:
    """Random numbers of one image."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def whole(self, low: int, high: int) -> int:
        """A whole number of low..high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def coin(self) -> bool:
        return self.between(0, 1) < 0.5


def _scaled_size(size: tuple[int, int], augmentation: Augmentation, draw: _Draws) -> tuple[int, int]:
    """(width, height) after scaling."""
    if augmentation.scale is None:
        return size
    low, high = augmentation.scale
    if augmentation.base is None:
        factor = draw.between(low, high)
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    short = draw.whole(max(1, int(augmentation.base * low)), max(1, int(augmentation.base * high)))
    width, height = size
    return (short, int(height * short / width)) if width < height else (int(width * short / height), short)


def _cropped(
    image: Image.Image, label: Image.Image, size: tuple[int, int], augmentation: Augmentation, draw: _Draws
) -> tuple[Image.Image, Image.Image]:
    """A random crop x crop of the images scaled to `size`, filled up where they are smaller."""
    crop = augmentation.crop
    left, top = (draw.whole(0, max(side - crop, 0)) for side in size)
    kept = (min(crop, size[0]), min(crop, size[1]))
    # Only what is kept is scaled: of an image twice as large as the crop most would be thrown away.
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + kept[0]) * across, (top + kept[1]) * down)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    image = image.resize(kept, Image.Resampling.BILINEAR, box)
    label = label.resize(kept, Image.Resampling.NEAREST, box)
    if kept == (crop, crop):
        return image, label
    missing = (crop - kept[0], crop - kept[1])
    place = (missing[0] // 2, missing[1] // 2) if augmentation.pad == "centre" else (0, 0)
    canvas = Image.new("RGB", (crop, crop), augmentation.fill)
    canvas.paste(image, place)
    void = Image.new("L", (crop, crop), _padding(augmentation))
    void.paste(label, place)
    return canvas, void


def _padding(augmentation: Augmentation) -> int:
    return IGNORE_INDEX if augmentation.pad_label == "void" else 0


def _blurred(image: Image.Image, blur: Blur, draw: _Draws) -> Image.Image:
    if blur == "radius":
        return image.filter(ImageFilter.GaussianBlur(draw.between(0, 1)))
    array = np.asarray(image)
    # At borders the picture is mirrored, as OpenCV has it.
    padded = np.pad(array, ((2, 2), (2, 2), (0, 0)), mode="reflect").astype(np.float32)
    height, width = array.shape[:2]
    rows = sum(weight * padded[shift : shift + height] for shift, weight in enumerate(_KERNEL))
    both = sum(weight * rows[:, shift : shift + width] for shift, weight in enumerate(_KERNEL))
    return Image.fromarray(np.rint(both).astype(np.uint8))


def _jittered(image: Image.Image, strength: float, draw: _Draws) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draw.between(1 - strength, 1 + strength))
    turn = round(256 * draw.between(-strength, strength) / 10)
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
