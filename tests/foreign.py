"""Checks that any model opened by a text must pass, and tiny configurations of the transformers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robseg.models.wrapper import SegmentationModel

MEAN, STD = (0.5, 0.25, 0.375), (0.5, 0.25, 0.125)
PROCESSOR = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD}


def pictures(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=images.dtype).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def enliven(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for logits that differ from pixel to pixel, unlike those of some initialisations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(1.4 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(float(name.endswith("weight")) + 0.1 * noise)
    return network.eval()


def assert_gradient(model: SegmentationModel, images: Tensor, tolerance: float = 1e-6, step: float = 1e-7) -> None:
    """The gradient of weighted logits along random directions, against central differences, in float64."""
    model.set_precision("fp64")
    images = images.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weights = torch.randn(model(images).shape, generator=generator, dtype=torch.float64)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((model(x) * weights).sum(), x)
    assert bool((gradient != 0).any())
    for _ in range(2):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = ((model(images + s * direction) * weights).sum() for s in (step, -step))
        slope = (gradient * direction).sum()
        scale = gradient.norm() * direction.norm() / direction.numel() ** 0.5
        assert abs((ahead - behind) / (2 * step) - slope) < tolerance * scale


def write_processor(folder: Path, **changes: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))


def _swin(transformers: Any) -> Any:
    return transformers.SwinConfig(
        depths=[1, 1, 1, 1], embed_dim=8, num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _vit(kind: str, **more: Any) -> Callable[[Any], Any]:
    def build(t: Any) -> Any:
        return getattr(t, f"{kind}Config")(
            num_labels=5, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            image_size=64, patch_size=16, **more,
        )  # fmt: skip

    return build


def _mask2former(t: Any) -> Any:
    return t.Mask2FormerConfig(
        backbone_config=_swin(t), num_labels=5, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_queries=7,
    )  # fmt: skip


def _maskformer(t: Any) -> Any:
    decoder = t.DetrConfig(
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, d_model=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=7, use_timm_backbone=False,
        backbone_config=t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]),
    )  # fmt: skip
    return t.MaskFormerConfig(
        backbone_config=_swin(t), decoder_config=decoder, num_labels=5, fpn_feature_size=32, mask_feature_size=32
    )


def oneformer(t: Any) -> Any:
    return t.OneFormerConfig(
        backbone_config=_swin(t), num_labels=5, num_queries=7, conv_dim=32, mask_dim=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        text_encoder_width=32, text_encoder_num_layers=1, text_encoder_context_length=77, text_encoder_vocab_size=60,
        text_encoder_proj_layers=1, text_encoder_n_ctx=4, query_dec_layers=1, task_seq_len=77,
    )  # fmt: skip


def segformer(t: Any, labels: int = 5) -> Any:
    return t.SegformerConfig(
        num_labels=labels, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )  # fmt: skip


def _upernet(backbone: Callable[[Any], Any], channels: int) -> Callable[[Any], Any]:
    return lambda t: t.UperNetConfig(
        backbone_config=backbone(t), num_labels=5, hidden_size=16, auxiliary_in_channels=channels, auxiliary_channels=8
    )


def _convnext(t: Any) -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return t.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=stages)


SEMANTIC: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "SegFormer": ("SegformerForSemanticSegmentation", segformer),
    "UPerNet on ConvNeXt": ("UperNetForSemanticSegmentation", _upernet(_convnext, 16)),
    "UPerNet on Swin": ("UperNetForSemanticSegmentation", _upernet(_swin, 32)),
    "DPT": (
        "DPTForSemanticSegmentation",
        _vit("DPT", backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16),
    ),
    "BEiT": ("BeitForSemanticSegmentation", _vit("Beit", out_indices=[1, 2, 3, 4], use_relative_position_bias=True)),
    "Data2Vec": ("Data2VecVisionForSemanticSegmentation", _vit("Data2VecVision", out_indices=[1, 2, 3, 4])),
    "MobileViT": (
        "MobileViTForSemanticSegmentation",
        lambda t: t.MobileViTConfig(
            num_labels=5, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16],
            num_attention_heads=2, aspp_out_channels=16, output_stride=16, image_size=64,
        ),
    ),
    "MobileNetV2": (
        "MobileNetV2ForSemanticSegmentation",
        lambda t: t.MobileNetV2Config(num_labels=5, depth_multiplier=0.25, image_size=64, output_stride=16),
    ),
}  # fmt: skip

QUERIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "Mask2Former": ("Mask2FormerForUniversalSegmentation", _mask2former),
    "MaskFormer": ("MaskFormerForInstanceSegmentation", _maskformer),
    "EoMT": (
        "EomtForUniversalSegmentation",
        lambda t: t.EomtConfig(
            num_labels=5, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16,
            num_blocks=2, num_queries=7, num_upscale_blocks=2,
        ),
    ),
}  # fmt: skip
