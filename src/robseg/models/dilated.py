"""PSPNet (arXiv 1612.01105) and DeepLabv3 (arXiv 1706.05587): one network with two ways of gathering context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robseg.models.dropout import Dropout2d
from robseg.models.layers import resize, spatial
from robseg.models.resnet import STAGE3_WIDTH, STAGE4_WIDTH, DilatedResNet, pad_to_stride


class PyramidPooling(nn.Module):
    """The map beside its averages over bins x bins fields: (B, inner, h, w) to (B, inner + len(bins) * outer, h, w)."""

    def __init__(self, inner: int, outer: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.ModuleList(_pooled(inner, outer, bin_) for bin_ in bins)

    def forward(self, features: Tensor) -> Tensor:
        size = spatial(features)
        return torch.cat([features, *[resize(pool(features), size, align_corners=True) for pool in self.features]], 1)


class AtrousPyramid(nn.Module):
    """1 x 1, dilated 3 x 3 and image-pooled branches side by side: (B, inner, h, w) to (B, branches * outer, h, w)."""

    def __init__(self, inner: int, outer: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        branches = [nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))]
        for rate in rates:
            dilated = nn.Conv2d(inner, outer, 3, padding=rate, dilation=rate, bias=False)
            branches.append(nn.Sequential(dilated, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)))
        self.convs = nn.ModuleList([*branches, _pooled(inner, outer, 1)])

    def forward(self, features: Tensor) -> Tensor:
        size = spatial(features)
        return torch.cat([resize(branch(features), size, align_corners=True) for branch in self.convs], 1)


def _pooled(inner: int, outer: int, bins: int) -> nn.Sequential:
    narrow = nn.Conv2d(inner, outer, 1, bias=False)
    return nn.Sequential(nn.AdaptiveAvgPool2d(bins), narrow, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Context:
    """What tells the two architectures apart.

    name: the attribute under which the published checkpoints keep the context module.
    build: makes that module; width: its output channels.
    hidden, kernel: channels and kernel of the first layer of the classifiers on it.
    """

    name: str
    build: Callable[[], nn.Module]
    width: int
    hidden: int
    kernel: int

    def classifier(self, num_classes: int) -> nn.Sequential:
        """A classifier on the context: (B, width, h, w) to (B, num_classes, h, w)."""
        return _classifier(self.width, self.hidden, self.kernel, num_classes)

    def auxiliary(self, num_classes: int) -> nn.Sequential:
        """The auxiliary classifier on stage 3: (B, 1024, h, w) to (B, num_classes, h, w)."""
        return _classifier(STAGE3_WIDTH, 256, self.kernel, num_classes)


# partial, not lambda: a network that keeps its context must survive pickling.
PSP = Context("ppm", partial(PyramidPooling, STAGE4_WIDTH, 512, (1, 2, 3, 6)), width=4096, hidden=512, kernel=3)
ASPP = Context("aspp", partial(AtrousPyramid, STAGE4_WIDTH, 256, (6, 12, 18)), width=1280, hidden=256, kernel=1)


class DilatedSegmenter(DilatedResNet):
    """ResNet, context and classifier, with an auxiliary classifier on stage 3.

    Input (B, 3, H, W) of any size, normalised with the ImageNet mean and standard deviation for the published models;
    it is padded with zeros to sides of the form 8k + 1 and the logits are cropped back.
    Evaluation mode: logits (B, num_classes, H, W). Training mode: (logits, auxiliary logits), both of that shape.

    names: the attributes, as the published checkpoints have them, of the classifier and of the auxiliary one.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        context: Context,
        num_classes: int,
        names: tuple[str, str] = ("cls", "aux"),
    ) -> None:
        super().__init__(depths)
        self.names = (context.name, *names)
        self.add_module(context.name, context.build())
        self.add_module(names[0], context.classifier(num_classes))
        self.add_module(names[1], context.auxiliary(num_classes))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.training:
            return self.training_outputs(images)
        context, classifier, _ = self.parts()
        _, stage4 = self.stages(pad_to_stride(images))
        return to_image_size(classifier(context(stage4)), images)

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """(logits, auxiliary logits), both (B, num_classes, H, W), whatever the mode."""
        context, classifier, auxiliary = self.parts()
        stage3, stage4 = self.stages(pad_to_stride(images))
        return to_image_size(classifier(context(stage4)), images), to_image_size(auxiliary(stage3), images)

    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The context module, the classifier on it and the auxiliary classifier."""
        context, classifier, auxiliary = (self.get_submodule(name) for name in self.names)
        return context, classifier, auxiliary


def to_image_size(logits: Tensor, images: Tensor) -> Tensor:
    """Logits of stride 8, (B, C, h + 1, w + 1), at the size of the images before they were padded: (B, C, H, W)."""
    rows, columns = spatial(logits)
    height, width = spatial(images)
    return resize(logits, (8 * (rows - 1) + 1, 8 * (columns - 1) + 1), align_corners=True)[..., :height, :width]


def _classifier(inner: int, hidden: int, kernel: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, hidden, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        Dropout2d(0.1),
        nn.Conv2d(hidden, num_classes, 1),
    )
