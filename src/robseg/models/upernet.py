"""UPerNet (arXiv 1807.10221): pyramid pooling over the last stage, a feature pyramid over all, one fusing layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robseg.models.convnext import ConvNeXt
from robseg.models.layers import pad_to, resize, spatial

SMALLEST_SIDE = 32
"""Below this the last stage of a backbone of stride 32 would be empty."""


class ConvModule(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(outer)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.activation(self.batch_norm(self.conv(features)))
        return output


class UPerHead(nn.Module):
    """The decoder: four maps of strides 4 to 32 in, logits (B, num_classes, H / 4, W / 4) out."""

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        num_classes: int,
        channels: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(widths[-1], channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(widths[-1] + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in widths[:-1])
        self.fpn_bottleneck = ConvModule(len(widths) * channels, channels, 3)

    def forward(self, stages: list[Tensor]) -> Tensor:
        last = stages[-1]
        pooled = [resize(pool(last), spatial(last)) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))

        finest = spatial(stages[0])
        above, fused = top, [resize(top, finest)]
        for level in reversed(range(len(stages) - 1)):
            above = self.lateral_convs[level](stages[level]) + resize(above, spatial(stages[level]))
            fused.insert(0, resize(self.fpn_convs[level](above), finest))
        logits: Tensor = self.classifier(self.fpn_bottleneck(torch.cat(fused, dim=1)))
        return logits


class FCNHead(nn.Module):
    """The auxiliary head: one 3 x 3 layer and a classifier on the map of stride 16."""

    def __init__(self, inner: int, num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inner, channels, 3))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.convs(features))
        return logits


class UPerNet(nn.Module):
    """ConvNeXt with the UPerNet decoder and an auxiliary FCN head on the third stage.

    Input (B, 3, H, W) of any size, in [0, 1] and not normalised for the published PIR-AT models; sides below 32 are
    padded with zeros to 32 and the logits cropped back.
    Evaluation mode: logits (B, num_classes, H, W). Training mode: (logits, auxiliary logits), both of that shape.
    """

    def __init__(self, backbone: ConvNeXt, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = UPerHead(backbone.widths, num_classes)
        self.auxiliary_head = FCNHead(backbone.widths[2], num_classes)
        for head in (self.decode_head, self.auxiliary_head):
            head.apply(_init)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            return self.training_outputs(images)
        stages, padded = self._stages(images)
        return _crop(resize(self.decode_head(stages), padded), images)

    def training_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, auxiliary logits), both (B, num_classes, H, W), whatever the mode."""
        stages, padded = self._stages(images)
        logits = resize(self.decode_head(stages), padded)
        auxiliary = resize(self.auxiliary_head(stages[2]), padded)
        return _crop(logits, images), _crop(auxiliary, images)

    def _stages(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        height, width = spatial(images)
        padded = pad_to(images, max(height, SMALLEST_SIDE), max(width, SMALLEST_SIDE))
        return self.backbone(padded), spatial(padded)


def _crop(logits: Tensor, images: Tensor) -> Tensor:
    height, width = spatial(images)
    return logits[..., :height, :width]


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
