"""ConvNeXt (arXiv 2201.03545) as a backbone, with its patch stem or a convolutional one (arXiv 2303.01870)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from robseg.models.dropout import DropPath, drop_path_rates
from robseg.models.layers import LayerNorm2d

EPS = 1e-6


class Block(nn.Module):
    """Depthwise 7 x 7, LayerNorm, two pointwise layers (4 times wider between), layer scale: (B, C, H, W) -> same."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        branch = self.norm(self.dwconv(features).permute(0, 2, 3, 1))
        branch = self.gamma * self.pwconv2(self.act(self.pwconv1(branch)))
        output: Tensor = features + self.drop_path(branch.permute(0, 3, 1, 2))
        return output


class ConvStem(nn.Module):
    """3 x 3 convolutions, the first two of stride 2, each with LayerNorm and GELU: stride 4 like the patch stem."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inner, outer) in enumerate(pairwise((3, *widths))):
            stride = 2 if index < 2 else 1
            layers += [nn.Conv2d(inner, outer, 3, stride, padding=1), LayerNorm2d(outer, eps=EPS), nn.GELU()]
        self.stem = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        return features


class ConvNeXt(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    depths, widths: blocks and channels of each stage.
    stem: the widths of a convolutional stem, the last equal to widths[0]; None for the 4 x 4 patch stem.
    drop_path: rate of stochastic depth at the last block; it grows evenly from 0 at the first.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[int, int, int, int],
        stem: tuple[int, ...] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = widths
        first: nn.Module
        if stem is None:
            first = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), LayerNorm2d(widths[0], eps=EPS))
        else:
            first = ConvStem(stem)
        self.downsample_layers = nn.ModuleList([first])
        for inner, outer in pairwise(widths):
            reduce = nn.Conv2d(inner, outer, 2, stride=2)
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(inner, eps=EPS), reduce))

        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(width, next(rates)) for _ in range(depth)])
            for depth, width in zip(depths, widths, strict=True)
        )
        self.apply(_init)
        self.norm0, self.norm1, self.norm2, self.norm3 = (LayerNorm2d(width, eps=EPS) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W at least 32, to four normalised maps (B, widths[i], about H / 2**(i + 2), W / ...)."""
        norms = (self.norm0, self.norm1, self.norm2, self.norm3)
        features, outputs = images, []
        for downsample, stage, norm in zip(self.downsample_layers, self.stages, norms, strict=True):
            features = stage(downsample(features))
            outputs.append(norm(features))
        return outputs


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
