"""ImageNet checkpoints in the names in which they are published, as backbones."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.loading.backbone import load_backbone
from robseg.models.convnext import ConvNeXt
from robseg.models.ddcat import DDCAT
from robseg.models.dilated import ASPP, DilatedSegmenter
from robseg.models.segmenter import MaskTransformer, Segmenter
from robseg.models.upernet import UPerNet
from robseg.models.vit import VisionTransformer

CONVNEXT = {"head.weight": torch.zeros(10, 32), "norm.weight": torch.zeros(32), "norm.bias": torch.zeros(32)}
TIMM = {"head.fc.weight": torch.zeros(10, 32), "head.norm.weight": torch.zeros(32)}
NORMALISER = {"mean": torch.zeros(1, 3, 1, 1), "module.normalize.std": torch.ones(1, 3, 1, 1)}


def upernet(stem: tuple[int, ...] | None) -> UPerNet:
    return UPerNet(ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32), stem=stem), 5)


def segmenter() -> Segmenter:
    return Segmenter(VisionTransformer(64, 16, width=24, depth=2, heads=3), MaskTransformer(24, 24, 1, 3, 5))


def backbone_state(network: nn.Module) -> dict[str, Tensor]:
    """Made-up values for the entries of a network's backbone, in its own names."""
    parts = ("backbone.downsample_layers.", "backbone.stages.", "encoder.", "layer")
    names = [n for n in network.state_dict() if n.startswith(parts) and not n.startswith("encoder.head.")]
    state = {n: torch.rand_like(network.state_dict()[n].float()) for n in names if not n.endswith("tracked")}
    return {re.sub(r"^(backbone|encoder)\.", "", name): value for name, value in state.items()}


def timm_convnext(name: str) -> str:
    name = re.sub(r"^downsample_layers\.0\.stem\.", "stem.stem.", name)
    name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
    name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
    return name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")


def semseg_resnet(name: str) -> str:
    if not name.startswith("layer0."):
        return name
    _, index, rest = name.split(".")
    return f"{'conv' if int(index) % 3 == 0 else 'bn'}{int(index) // 3 + 1}.{rest}"


def same_name(name: str) -> str:
    return name


CASES = {
    "ConvNeXt": (lambda: upernet(None), same_name, "", CONVNEXT),
    "ConvNeXt, timm": (lambda: upernet(None), timm_convnext, "", TIMM),
    "ConvNeXt-CvSt, timm": (lambda: upernet((4, 8)), timm_convnext, "module.base_model.", TIMM | NORMALISER),
    "ConvNeXt-CvSt of three layers": (lambda: upernet((4, 6, 8)), timm_convnext, "module.", TIMM | NORMALISER),
    "ViT": (segmenter, same_name, "module.", {"head.weight": torch.zeros(10, 24)} | NORMALISER),
    "ResNet": (lambda: DilatedSegmenter((1, 2, 1, 1), ASPP, 5), semseg_resnet, "", {"fc.weight": torch.zeros(3, 4)}),
    "ResNet of DDC-AT": (lambda: DDCAT((1, 1, 1, 1), ASPP, 5), semseg_resnet, "module.", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_backbones_load_and_the_rest_stays(case: str) -> None:
    build, rename, prefix, beside = CASES[case]
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wanted = backbone_state(network)
    published = {prefix + rename(name): value for name, value in wanted.items()}
    others = {name if name in NORMALISER else prefix + name: value for name, value in beside.items()}
    load_backbone(network, {**published, **others}, source="x.pth")
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert {re.sub(r"^(backbone|encoder)\.", "", name) for name in changed} == set(wanted)
    after = {re.sub(r"^(backbone|encoder)\.", "", name): value for name, value in network.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in wanted.items())


def test_the_table_of_positions_is_resized() -> None:
    network, ramp = segmenter(), torch.arange(14.0)
    state = backbone_state(network)
    patches = (ramp[:, None] + 100 * ramp[None]).reshape(1, 196, 1).expand(1, 196, 24)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 24), 7.0), patches], 1).half()
    load_backbone(network, state, source="x.pth")
    table = network.encoder.pos_embed[0, :, 0]
    grid = (torch.arange(4) + 0.5) * 14 / 4 - 0.5
    assert table[0] == 7
    assert torch.allclose(table[1:].reshape(4, 4), grid[:, None] + 100 * grid[None], atol=1)


@pytest.mark.parametrize(
    ("build", "spoil", "message"),
    [
        (segmenter, {"pos_embed": torch.zeros(1, 18, 24)}, r"pos_embed \(\[1, 18, 24\]"),
        (segmenter, {"dist_token": torch.zeros(1, 1, 24)}, "1 not the model's: dist_token"),
        (lambda: upernet(None), {"stages.0.0.gamma": torch.zeros(9)}, "1 of another shape"),
        (lambda: nn.Conv2d(3, 5, 1), {}, "Conv2d has no ConvNeXt, ViT or ResNet"),
    ],
)
def test_what_does_not_fit_is_an_error(build, spoil, message) -> None:
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_backbone(network, backbone_state(network) | spoil, source="x.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_resnet_with_another_stem_is_an_error() -> None:
    network = DilatedSegmenter((1, 1, 1, 1), ASPP, 5)
    state = {semseg_resnet(name): value for name, value in backbone_state(network).items()}
    state = {n: v for n, v in state.items() if not n.startswith(("conv2", "conv3", "bn2", "bn3"))}
    with pytest.raises(UserError, match=r"missing: layer0\.3\.weight.*another shape: layer0\.0\.weight"):
        load_backbone(network, state | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, source="resnet50.pth")
