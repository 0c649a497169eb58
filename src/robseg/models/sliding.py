"""Prediction over windows, as part of the model: one adversarial image of the whole picture passes through them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.models.wrapper import SegmentationModel, find_logits

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""Of ImageNet, in [0, 1]: what windows larger than an image are filled up with."""


class SlidingWindow(nn.Module):
    """A network applied to windows of crop x crop pixels, its probabilities averaged where windows overlap.

    This is the test of PSPNet's and DDC-AT's code (arXiv 2003.06555): windows every ceil(crop * stride) pixels, the
    last of each row and column moved back to end with the image; an image smaller than the window is put into the
    middle of one filled with `fill`.

    network: (B, 3, crop, crop) to logits (B, C, h, w), in any form that `find_logits` understands.
    stride: as a share of the crop. flip: average with the prediction on the mirrored window.
    long_side: scale images to this long side (bilinear, without antialiasing) before, and the probabilities back
        after, so that scores are of the original size; None leaves images as they are.
    fill: three values in the units of the network's input; 0 where that is normalised, the mean colour else.

    Gives the logarithm of the averaged probabilities, (B, C, H, W) at the images' size, which are logits as good as
    any other. The gradient goes through all windows; sums are taken in the logarithm, so that it does not vanish where
    the network is sure.
    Raises UserError for a crop below 1 or a stride out of (0, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        crop: int,
        stride: float = 2 / 3,
        *,
        flip: bool = False,
        long_side: int | None = None,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if crop < 1:
            raise UserError(f"The sliding window is {crop} pixels wide; it must be 1 or more.")
        if not 0 < stride <= 1:
            raise UserError(f"The stride of the sliding window is {stride:g} of its width; it must be in (0, 1].")
        if long_side is not None and long_side < 1:
            raise UserError(f"The long side to scale images to is {long_side}; it must be 1 or more.")
        self.network = network
        self.crop, self.stride, self.flip, self.long_side, self.output = crop, stride, flip, long_side, output
        self.register_buffer("fill", torch.tensor(list(fill)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in the network's units -> log probabilities (B, C, H, W)."""
        size = (images.shape[-2], images.shape[-1])
        scaled = images
        if self.long_side is not None and max(size) != self.long_side:
            factor = self.long_side / max(size)
            target = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
            scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
        averaged = self._averaged(scaled)
        return averaged if averaged.shape[-2:] == size else _log_resized(averaged, size)

    def _averaged(self, images: Tensor) -> Tensor:
        canvas = on_canvas(images, self.crop, self.get_buffer("fill"))
        places = window_places(canvas.images, self.crop, self.stride)
        found = [self._log_probabilities(window_at(canvas.images, place, self.crop)) for place in places]
        return canvas.cut(average_windows(found, places, canvas.images))

    def _log_probabilities(self, window: Tensor) -> Tensor:
        found = self._log_softmax(window)
        if self.flip:
            found = torch.logaddexp(found, self._log_softmax(window.flip(-1)).flip(-1)) - math.log(2)
        return found

    def _log_softmax(self, window: Tensor) -> Tensor:
        logits = find_logits(self.network(window), self.output)
        if logits.shape[-2:] != window.shape[-2:]:
            logits = F.interpolate(logits, size=window.shape[-2:], mode="bilinear", align_corners=False)
        return logits.log_softmax(1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)

    def get_extra_state(self) -> Tensor:
        """The windows belong to what is fingerprinted as the model: other windows give other predictions."""
        fill = self.get_buffer("fill").flatten().tolist()
        return torch.tensor([self.crop, self.stride, self.flip, self.long_side or 0, *fill], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Weights may be loaded whatever windows they were saved with."""


class Canvas(NamedTuple):
    """Images (B, 3, H, W) in the middle of canvases that are no smaller than a window, and where they lie."""

    images: Tensor
    top: int
    left: int
    height: int
    width: int

    def cut(self, found: Tensor) -> Tensor:
        """What was found on the canvas (..., H', W') for the images alone."""
        return found[..., self.top : self.top + self.height, self.left : self.left + self.width]


def on_canvas(images: Tensor, crop: int, fill: Tensor) -> Canvas:
    """Images smaller than crop x crop filled up on all sides with `fill`, three values; others as they are."""
    height, width = images.shape[-2:]
    missing = (max(crop - height, 0), max(crop - width, 0))
    if missing == (0, 0):
        return Canvas(images, 0, 0, height, width)
    top, left = missing[0] // 2, missing[1] // 2
    # F.pad fills with one number; three need the difference from them padded with nought.
    colour = fill.to(images).view(1, 3, 1, 1)
    padded = F.pad(images - colour, (left, missing[1] - left, top, missing[0] - top)) + colour
    return Canvas(padded, top, left, height, width)


def window_starts(side: int, crop: int, stride: float) -> list[int]:
    """Where windows of `crop` begin along a side of at least that length: every ceil(crop * stride), the last flush."""
    step = math.ceil(crop * stride)
    number = math.ceil((side - crop) / step) + 1
    return [min(index * step, side - crop) for index in range(number)]


def window_places(canvas: Tensor, crop: int, stride: float) -> list[tuple[int, int]]:
    """(row, column) of the windows that cover a canvas (..., H, W)."""
    rows, columns = (window_starts(side, crop, stride) for side in canvas.shape[-2:])
    return [(row, column) for row in rows for column in columns]


def window_at(canvas: Tensor, place: tuple[int, int], crop: int) -> Tensor:
    """The window (..., crop, crop) that begins at (row, column); a view."""
    return canvas[..., place[0] : place[0] + crop, place[1] : place[1] + crop]


def average_windows(found: Sequence[Tensor], places: Sequence[tuple[int, int]], canvas: Tensor) -> Tensor:
    """Logarithms of probabilities of windows (B, C, crop, crop), averaged as probabilities where windows overlap.

    Gives the logarithm of the mean, (B, C, H, W) of the canvas.
    """
    if len(found) == 1:
        return found[0]
    crop = found[0].shape[-1]
    height, width = canvas.shape[-2:]
    # Taken off before the exponential and added after the logarithm, so that nothing underflows.
    highest = found[0].new_full((*found[0].shape[:2], height, width), -torch.inf)
    count = found[0].new_zeros(height, width)
    for place, logs in zip(places, found, strict=True):
        seen = window_at(highest, place, crop)
        seen.copy_(torch.maximum(seen, logs.detach()))
        window_at(count, place, crop).add_(1)
    total = torch.zeros_like(highest)
    for (row, column), logs in zip(places, found, strict=True):
        share = (logs - window_at(highest, (row, column), crop)).exp()
        total = total + F.pad(share, (column, width - column - crop, row, height - row - crop))
    return (total / count).log() + highest


def with_window(
    model: SegmentationModel,
    crop: int,
    stride: float = 2 / 3,
    *,
    flip: bool = False,
    long_side: int | None = None,
) -> SegmentationModel:
    """The model with its network in a `SlidingWindow`: same weights, normalisation and precision.

    Images smaller than the window are filled up with the mean colour: the model's own mean where it normalises,
    ImageNet's where the network does so itself. Arguments as of `SlidingWindow`.
    """
    normalised = model.mean is not None and model.std is not None
    window = SlidingWindow(
        model.network, crop, stride, flip=flip, long_side=long_side,
        fill=(0.0, 0.0, 0.0) if normalised else MEAN_COLOUR, output=model.output,
    )  # fmt: skip
    mean, std = model.normalisation()
    return SegmentationModel(window, mean=mean, std=std, precision=model.precision)


def _log_resized(logs: Tensor, size: tuple[int, int]) -> Tensor:
    """Logarithms of probabilities, scaled as probabilities."""
    # In doubles, where there are any: in floats what is below 1e-38 would be nought and have no gradient.
    wide = logs if logs.device.type == "mps" else logs.double()
    probabilities = F.interpolate(wide.exp(), size=size, mode="bilinear", align_corners=False)
    return probabilities.clamp_min(torch.finfo(wide.dtype).tiny).log().to(logs.dtype)
