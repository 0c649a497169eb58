"""The evaluation protocols of the field as named transforms: voc:ROOT?split=val&protocol=pirat&crop=473.

A number means something only with the transform under which it was measured, so its name is part of the data set's.
- pirat (arXiv 2306.12941): the short side to `crop` pixels, bilinear for images and nearest for labels, and the centre
  crop x crop of it. crop: 473 for voc and sbd, 512 for ade20k, to be given for other sets.
- ddcat (arXiv 2003.06555): the long side to `long` pixels, bilinear without antialiasing as OpenCV has it. long: 512
  for voc and sbd, 1024 for cityscapes. The sliding window that belongs to it is a property of the model, see
  `robseg.models.sliding`; scores are of the resized labels, so that nothing is resized after the attack.
- whole: every image at its own size. What a network needs in padding it adds itself, see `robseg.models.sliding`.
- resize: to `to` pixels, as to=512 (square) or to=512x1024 (height x width); bilinear and nearest.

Images come out rounded to 8 bits, as files and the published code have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robseg.data.base import ClassList, Dataset, Sample
from robseg.data.options import whole_number
from robseg.data.samples import sample_size
from robseg.errors import UserError, unknown_name

Size = tuple[int, int]
"""(H, W)."""


@dataclass(frozen=True)
class Protocol:
    """What an image of (H, W) becomes.

    name: with its number, such as "pirat 473". resized: the size to which it is scaled. cropped: the size of what is
    then cut out of its middle (None: nothing is cut). antialias: whether downscaling averages (Pillow) or not (OpenCV).
    """

    name: str
    resized: Callable[[Size], Size]
    cropped: Size | None = None
    antialias: bool = True

    def size(self, size: Size) -> Size:
        """The size of what an image of (H, W) becomes."""
        return self.cropped or self.resized(size)

    def __call__(self, sample: Sample) -> Sample:
        """The sample under the protocol; image and label keep their types."""
        height, width = self.resized((sample.label.shape[0], sample.label.shape[1]))
        if (height, width) == tuple(sample.label.shape):
            image, label = sample.image, sample.label
        else:
            image = _resized(sample.image, (height, width), self.antialias)
            label = _nearest(sample.label, (height, width))
        if self.cropped is not None:
            rows, columns = self.cropped
            # Halves go to the even number, in the published code too.
            top, left = round((height - rows) / 2), round((width - columns) / 2)
            window = (..., slice(top, top + rows), slice(left, left + columns))
            image, label = image[window].contiguous(), label[window].contiguous()
        return Sample(image, label, sample.id)


def pirat(crop: int) -> Protocol:
    """Short side to `crop` pixels, centre crop: the validation of PIR-AT."""

    def resized(size: Size) -> Size:
        height, width = size
        return (crop, int(width * crop / height)) if width > height else (int(height * crop / width), crop)

    return Protocol(f"pirat {crop}", resized, (crop, crop))


def ddcat(long: int) -> Protocol:
    """Long side to `long` pixels: the test of DDC-AT, whose windows are the model's affair."""

    def resized(size: Size) -> Size:
        height, width = size
        factor = long / max(size)
        return max(1, round(height * factor)), max(1, round(width * factor))

    return Protocol(f"ddcat {long}", resized, antialias=False)


def whole() -> Protocol:
    """Every image as it is."""
    return Protocol("whole", lambda size: size)


def resize(height: int, width: int) -> Protocol:
    """Every image to height x width."""
    return Protocol(f"resize {height}x{width}", lambda size: (height, width))


@dataclass
class ProtocolSet:
    """A data set under a protocol."""

    dataset: Dataset
    protocol: Protocol
    name: str = field(init=False)
    classes: ClassList = field(init=False)
    void: str = field(init=False)
    ids: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.name = f"{self.dataset.name}, protocol {self.protocol.name}"
        self.classes, self.void, self.ids = self.dataset.classes, self.dataset.void, self.dataset.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index` under the protocol. Raises as the data set does."""
        return self.protocol(self.dataset[index])

    def image_size(self, index: int) -> Size:
        """(H, W) under the protocol, without decoding where the data set knows its sizes."""
        return self.protocol.size(sample_size(self.dataset, index))


OPTIONS = ("protocol", "crop", "long", "to")
_CROPS = {"voc": "473", "sbd": "473", "ade20k": "512"}
_LONG = {"voc": "512", "sbd": "512", "cityscapes": "1024"}
_OPTION_OF = {"pirat": "crop", "ddcat": "long", "whole": None, "resize": "to"}


def read_protocol(name: str, options: Mapping[str, str]) -> Protocol | None:
    """The protocol that the options of the data set `name` ask for, None without one.

    Raises UserError for an unknown protocol, and for a number that is missing, wrong, or of another protocol.
    """
    protocol = options.get("protocol")
    if protocol is None:
        for option in OPTIONS:
            if option in options:
                raise UserError(f"The option {option} of {name} belongs to a protocol; add protocol=NAME.")
        return None
    if protocol not in _OPTION_OF:
        raise unknown_name("protocol", protocol, _OPTION_OF)
    own = _OPTION_OF[protocol]
    foreign = [option for option in OPTIONS[1:] if option in options and option != own]
    if foreign:
        raise UserError(
            f"The protocol {protocol} has no option {foreign[0]}; {f'it takes {own}' if own else 'it takes none'}."
        )
    if own is None:
        return whole()
    default = {"crop": _CROPS, "long": _LONG}.get(own, {}).get(name)
    text = options.get(own, default)
    if text is None:
        raise UserError(f"The protocol {protocol} of {name} needs the option {own}, as {own}=512.")
    if own == "to":
        return _resize(name, text)
    number = whole_number(name, own, text)
    return pirat(number) if own == "crop" else ddcat(number)


def _resize(name: str, text: str) -> Protocol:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise UserError(f"The option to of {name} is '{text}'; it must be as to=512 or to=512x1024 (height x width).")
    return resize(int(found[1]), int(found[2] or found[1]))


def to_8bit(image: Tensor) -> Tensor:
    """(3, H, W) floats in [0, 1] as (H, W, 3) uint8, rounded."""
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _resized(image: Tensor, size: Size, antialias: bool) -> Tensor:
    height, width = size
    if antialias:
        scaled = Image.fromarray(to_8bit(image).numpy()).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float().div(255).contiguous()
    scaled_up = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    return scaled_up.mul(255).round().div(255)


def _nearest(label: Tensor, size: Size) -> Tensor:
    """Labels as Pillow scales them (from pixel centres), whatever their range: as 8 bits, which 0..255 fit into."""
    picture = Image.fromarray(label.to(torch.uint8).numpy())
    scaled = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(scaled)).long()
