"""ResNet (arXiv 1512.03385) with a stem of three convolutions and dilated last stages: output stride 8."""

from __future__ import annotations

from torch import Tensor, nn

from robseg.models.layers import pad_to, spatial

STAGE3_WIDTH, STAGE4_WIDTH = 1024, 2048


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut; the 3 x 3 carries stride and dilation."""

    def __init__(self, inner: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        branch = self.relu(self.bn1(self.conv1(features)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        output: Tensor = self.relu(self.bn3(self.conv3(branch)) + shortcut)
        return output


class DilatedResNet(nn.Module):
    """The backbone of PSPNet and DeepLabv3; they inherit from it because published names have no `backbone.` part.

    depths: bottlenecks of the four stages, (3, 4, 6, 3) for ResNet-50 and (3, 4, 23, 3) for ResNet-101.
    """

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(
            *_conv_bn_relu(3, 64, stride=2),
            *_conv_bn_relu(64, 64),
            *_conv_bn_relu(64, 128),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = _stage(128, 64, depths[0], stride=1, dilation=1)
        self.layer2 = _stage(256, 128, depths[1], stride=2, dilation=1)
        self.layer3 = _stage(512, 256, depths[2], stride=1, dilation=2)
        self.layer4 = _stage(STAGE3_WIDTH, 512, depths[3], stride=1, dilation=4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 8h + 1, 8w + 1) to stages 3 and 4: (B, 1024, h + 1, w + 1) and (B, 2048, h + 1, w + 1)."""
        stage3 = self.layer3(self.layer2(self.layer1(self.layer0(images))))
        return stage3, self.layer4(stage3)


def pad_to_stride(images: Tensor) -> Tensor:
    """(B, 3, H, W) padded with zeros (the mean colour, once normalised) to the next sides of the form 8k + 1.

    Only at these sizes do the corners of the output grid coincide with those of the image, which upsampling with
    aligned corners takes for granted.
    """
    height, width = spatial(images)
    return pad_to(images, -(-(height - 1) // 8) * 8 + 1, -(-(width - 1) // 8) * 8 + 1)


def _conv_bn_relu(inner: int, outer: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]


def _stage(inner: int, width: int, depth: int, stride: int, dilation: int) -> nn.Sequential:
    first = Bottleneck(inner, width, stride, dilation)
    return nn.Sequential(first, *[Bottleneck(4 * width, width, 1, dilation) for _ in range(depth - 1)])
