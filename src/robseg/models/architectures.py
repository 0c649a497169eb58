"""Every architecture by name: a builder whose visible numbers are those of the variant."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from robseg.models.convnext import ConvNeXt
from robseg.models.ddcat import DDCAT
from robseg.models.dilated import ASPP, PSP, DilatedSegmenter
from robseg.models.segmenter import MaskTransformer, Segmenter
from robseg.models.small_unet import small_unet
from robseg.models.upernet import UPerNet
from robseg.models.vit import VisionTransformer

RESNET50 = (3, 4, 6, 3)
RESNET101 = (3, 4, 23, 3)


def upernet_convnext_t(num_classes: int, drop_path: float = 0.4) -> UPerNet:
    """UPerNet on ConvNeXt-T with the patch stem."""
    return UPerNet(ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), stem=None, drop_path=drop_path), num_classes)


def upernet_convnext_s(num_classes: int, drop_path: float = 0.3) -> UPerNet:
    """UPerNet on ConvNeXt-S with the patch stem."""
    return UPerNet(ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), stem=None, drop_path=drop_path), num_classes)


def upernet_convnext_b(num_classes: int, drop_path: float = 0.4) -> UPerNet:
    """UPerNet on ConvNeXt-B with the patch stem."""
    return UPerNet(ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024), stem=None, drop_path=drop_path), num_classes)


def upernet_convnext_t_cvst(num_classes: int, drop_path: float = 0.4) -> UPerNet:
    """UPerNet on ConvNeXt-T with the convolutional stem, the model of PIR-AT (arXiv 2306.12941)."""
    return UPerNet(ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), stem=(48, 96), drop_path=drop_path), num_classes)


def upernet_convnext_s_cvst(num_classes: int, drop_path: float = 0.3) -> UPerNet:
    """UPerNet on ConvNeXt-S with the convolutional stem (arXiv 2306.12941)."""
    return UPerNet(ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), stem=(48, 96), drop_path=drop_path), num_classes)


def upernet_convnext_b_cvst(num_classes: int, drop_path: float = 0.4) -> UPerNet:
    """UPerNet on ConvNeXt-B with the convolutional stem of three layers that arXiv 2303.01870 gives this size."""
    stem = (64, 96, 128)
    return UPerNet(ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024), stem=stem, drop_path=drop_path), num_classes)


def segmenter_vit_s(num_classes: int, drop_path: float = 0.1) -> Segmenter:
    """Segmenter on ViT-S/16 with a mask transformer of two layers (arXiv 2105.05633), for crops of 512 x 512."""
    encoder = VisionTransformer(image_size=512, patch=16, width=384, depth=12, heads=6, drop_path=drop_path)
    decoder = MaskTransformer(encoder_width=384, width=384, depth=2, heads=6, num_classes=num_classes, dropout=0.1)
    return Segmenter(encoder, decoder)


def pspnet50(num_classes: int) -> DilatedSegmenter:
    """PSPNet (arXiv 1612.01105) on ResNet-50."""
    return DilatedSegmenter(RESNET50, PSP, num_classes)


def pspnet101(num_classes: int) -> DilatedSegmenter:
    """PSPNet on ResNet-101."""
    return DilatedSegmenter(RESNET101, PSP, num_classes)


def deeplabv3_50(num_classes: int) -> DilatedSegmenter:
    """DeepLabv3 (arXiv 1706.05587) on ResNet-50."""
    return DilatedSegmenter(RESNET50, ASPP, num_classes)


def deeplabv3_101(num_classes: int) -> DilatedSegmenter:
    """DeepLabv3 on ResNet-101."""
    return DilatedSegmenter(RESNET101, ASPP, num_classes)


def pspnet50_ddcat(num_classes: int) -> DDCAT:
    """PSPNet on ResNet-50 with the branches of DDC-AT (arXiv 2003.06555)."""
    return DDCAT(RESNET50, PSP, num_classes)


def pspnet101_ddcat(num_classes: int) -> DDCAT:
    """PSPNet on ResNet-101 with the branches of DDC-AT."""
    return DDCAT(RESNET101, PSP, num_classes)


def deeplabv3_50_ddcat(num_classes: int) -> DDCAT:
    """DeepLabv3 on ResNet-50 with the branches of DDC-AT (arXiv 2003.06555)."""
    return DDCAT(RESNET50, ASPP, num_classes)


def deeplabv3_101_ddcat(num_classes: int) -> DDCAT:
    """DeepLabv3 on ResNet-101 with the branches of DDC-AT."""
    return DDCAT(RESNET101, ASPP, num_classes)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        small_unet,
        upernet_convnext_t,
        upernet_convnext_s,
        upernet_convnext_b,
        upernet_convnext_t_cvst,
        upernet_convnext_s_cvst,
        upernet_convnext_b_cvst,
        segmenter_vit_s,
        pspnet50,
        pspnet101,
        deeplabv3_50,
        deeplabv3_101,
        pspnet50_ddcat,
        pspnet101_ddcat,
        deeplabv3_50_ddcat,
        deeplabv3_101_ddcat,
    )
}
"""Builders by name; each takes `num_classes`, and what else its variant leaves open, and gives fresh weights."""
