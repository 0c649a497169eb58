"""The network of the published attack figures: 3 x H x W in [0, 1] to logits at the same size, float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filling import image, labels, tensor_for


class Tiny(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = F.gelu(self.conv2(F.gelu(self.conv1(2 * x - 1))))
        return F.interpolate(3 * self.head(z), size=x.shape[-2:], mode="bilinear", align_corners=False)


def tiny_problem(seed: int, classes: int, shape: tuple[int, int, int]) -> tuple[Tiny, Tensor, Tensor]:
    """The network, images (B, 3, H, W) and labels (B, H, W) of the published figures, all float64."""
    network = Tiny(classes).double().eval()
    weights = {k: tensor_for(f"tiny{seed}.{k}", tuple(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    batch, height, width = shape
    images = image(seed, batch, height, width).double()
    with torch.no_grad():
        predicted = network(images).argmax(1)
    other = labels(seed + 1, batch, height, width, classes)
    tenth = labels(seed + 2, batch, height, width, 10) == 0
    return network, images, torch.where(tenth, other, predicted)
