"""A small encoder-decoder for the embedded data set, smoke tests and quick experiments on a CPU."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from robseg.errors import UserError

SMALLEST_SIDE = 16


def _block(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        convolution = nn.Conv2d(channels_out if index else channels_in, channels_out, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Four resolutions (1, 1/2, 1/4, 1/8) of w, 2w, 4w, 4w channels; the decoder adds what it upsamples to the skip.

    Input: (B, 3, H, W) in [0, 1], not normalised, H and W at least 16 and otherwise free.
    Output: logits (B, num_classes, H, W). ValueError for smaller images.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = _block(3, width, 1)
        self.encoder = nn.ModuleList(_block(a, b, 2) for a, b in itertools.pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.decoder = nn.ModuleList(_block(w, w, 1) for w in widths[:-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            raise ValueError(
                f"images are {height} x {width}; small_unet needs {SMALLEST_SIDE} x {SMALLEST_SIDE} or more"
            )
        features = self.stem(2 * images - 1)
        skips = []
        for encode in self.encoder:
            skips.append(features)
            features = encode(F.max_pool2d(features, 2))
        for level in reversed(range(len(skips))):
            narrowed = self.lateral[level](features)
            raised = F.interpolate(narrowed, size=skips[level].shape[-2:], mode="bilinear", align_corners=False)
            features = self.decoder[level](raised + skips[level])
        logits: Tensor = self.head(features)
        return logits


def small_unet(num_classes: int, width: int = 16) -> SmallUNet:
    """A SmallUNet with fresh weights: about 200 000 parameters at width 16, 50 000 at width 8.

    Raises UserError for fewer than two classes or a width below 1.
    """
    if num_classes < 2 or width < 1:
        raise UserError(
            f"small_unet needs num_classes of 2 or more and width of 1 or more; got {num_classes} and {width}."
        )
    return SmallUNet(num_classes, width)
