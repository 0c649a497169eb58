"""Small counterparts of the published architectures, for experiments on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robseg.models.convnext import ConvNeXt
from robseg.models.ddcat import DDCATOutputs
from robseg.models.dilated import PyramidPooling
from robseg.models.dropout import Dropout2d
from robseg.models.layers import resize, spatial
from robseg.models.upernet import FCNHead, UPerHead, UPerNet


def _conv(inner: int, outer: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = _conv(width, width, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.second(self.first(features)))


def _classifier(inner: int, classes: int) -> nn.Sequential:
    return nn.Sequential(*_conv(inner, 48), Dropout2d(0.1), nn.Conv2d(48, classes, 1))


class SmallPSPNet(nn.Module):
    """PSPNet with a deep stem, dilated last stages (output stride 4), pyramid pooling and an auxiliary classifier.

    branches: DDC-AT's adversarial and mask branch beside the main one, on the same pooled features.
    Images (B, 3, H, W) in [0, 1]; evaluation mode: logits (B, C, H, W); training mode: (logits, auxiliary logits), or
    DDCATOutputs.
    """

    def __init__(self, num_classes: int, branches: bool = False) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(_conv(3, 16, stride=2), _conv(16, 24))
        self.layer1 = _Residual(24, 1)
        self.layer2 = nn.Sequential(_conv(24, 48, stride=2), _Residual(48, 1))
        self.layer3 = nn.Sequential(_conv(48, 64, dilation=2), _Residual(64, 2))
        self.layer4 = nn.Sequential(_conv(64, 96, dilation=4), _Residual(96, 4))
        self.ppm = PyramidPooling(96, 24, (1, 2, 3, 6))
        self.cls1 = _classifier(96 + 4 * 24, num_classes)
        self.aux = _classifier(64, num_classes)
        self.cls2 = _classifier(96 + 4 * 24, num_classes) if branches else None
        self.mask1 = _classifier(96 + 4 * 24, 2) if branches else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.training:
            return self.training_outputs(images)
        _, pooled = self._features(images)
        return resize(self.cls1(pooled), spatial(images))

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        size = spatial(images)
        stage3, pooled = self._features(images)
        main, auxiliary = resize(self.cls1(pooled), size), resize(self.aux(stage3), size)
        if self.cls2 is None or self.mask1 is None:
            return main, auxiliary
        adversarial, mask = resize(self.cls2(pooled), size), resize(self.mask1(pooled), size)
        joined = torch.where(mask.argmax(1, keepdim=True) == 1, adversarial, main)
        return DDCATOutputs(joined, mask, auxiliary, main)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stage3 = self.layer3(self.layer2(self.layer1(self.layer0(2 * images - 1))))
        return stage3, self.ppm(self.layer4(stage3))


def small_pspnet(num_classes: int) -> SmallPSPNet:
    """For recipes: small_networks:small_pspnet."""
    return SmallPSPNet(num_classes)


def small_pspnet_ddcat(num_classes: int) -> SmallPSPNet:
    """The same with DDC-AT's branches."""
    return SmallPSPNet(num_classes, branches=True)


def small_convnext() -> ConvNeXt:
    """A ConvNeXt with convolutional stem of four small stages, at strides 4 to 32."""
    backbone = ConvNeXt((1, 1, 2, 1), (24, 40, 64, 96), stem=(16, 24))
    # Layer scale of 1e-6 is for networks that train for hundreds of epochs; here it would switch the blocks off.
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.1)
    return backbone


class SmallUPerNet(UPerNet):
    """UPerNet on `small_convnext` with a decoder of 48 channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(small_convnext(), num_classes)
        self.decode_head = UPerHead(self.backbone.widths, num_classes, channels=48)
        self.auxiliary_head = FCNHead(self.backbone.widths[2], num_classes, channels=32)


class Classifier(nn.Module):
    """A ConvNeXt with a linear layer on its pooled last map: (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, backbone: ConvNeXt, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images)[-1].mean((2, 3)))
        return logits
