"""The published models: what to build for a checkpoint, how to feed it, and the numbers its authors report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from robseg.models.architectures import ARCHITECTURES, RESNET50
from robseg.models.ddcat import BRANCHES, without_branches
from robseg.models.dilated import ASPP, PSP, Context

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PIR_AT = "PIR-AT, arXiv 2306.12941"
DDC_AT = "DDC-AT, arXiv 2003.06555"

RAW = "RGB in [0, 1] as it is: its authors feed no mean or std, whatever the backbone was trained behind"
NORMALISED = "RGB normalised with ImageNet's mean and std"


@dataclass(frozen=True)
class Score:
    """A published result on the whole validation set, worst case of SEA with three attacks where eps is not 0.

    eps: radius in the max norm, in 255ths. miou, aacc: per cent; aacc None where it was not printed.
    source: where it was printed.
    """

    eps: int
    miou: float
    aacc: float | None = None
    source: str = PIR_AT


@dataclass(frozen=True)
class PublishedModel:
    """One published checkpoint.

    build: takes the number of classes, gives the network as it is at test time; its names are those of the file
        after `prefix`.
    num_classes, data: what it was trained on.
    architecture: its name in `ARCHITECTURES`.
    mean, std: what its input is normalised with, or None where it takes images in [0, 1] as they are.
    input: the same in words, with what is odd about it.
    page: where its authors offer the file. file: which one of that page.
    licence: of the weights, None where the authors state none.
    prefix: what stands before every name in the file.
    ignore: how the entries begin that served in training alone and have no place in the network.
    source: the method and its paper. scores: what was published of it; empty where nothing comparable was.
    """

    name: str
    architecture: str
    build: Callable[[int], nn.Module]
    num_classes: int
    data: str
    source: str
    input: str
    page: str
    file: str
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    licence: str | None = None


def _resnet(architecture: str, data: str, num_classes: int) -> PublishedModel:
    return PublishedModel(
        f"{architecture}_{data}",
        architecture,
        ARCHITECTURES[architecture],
        num_classes,
        data,
        f"undefended baseline of {DDC_AT}",
        NORMALISED,
        page=DDC_AT_PAGE,
        file=_in_archive(architecture, data, "no_defense"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prefix="module.",
    )


def _ddcat(architecture: str, context: Context, data: str, num_classes: int, *scores: Score) -> PublishedModel:
    return PublishedModel(
        f"{architecture}_ddcat_{data}",
        f"{architecture}_ddcat",
        partial(without_branches, RESNET50, context),
        num_classes,
        data,
        DDC_AT,
        NORMALISED,
        page=DDC_AT_PAGE,
        file=_in_archive(architecture, data, "ddcat"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prefix="module.",
        ignore=BRANCHES,
        scores=scores,
    )


def _in_archive(architecture: str, data: str, training: str) -> str:
    """The folder of a model in the one archive of the DDC-AT authors."""
    folders = {"voc": "voc2012", "pspnet50": "pspnet", "deeplabv3_50": "deeplabv3"}
    return f"pretrain/{folders.get(data, data)}/{folders[architecture]}/{training} of the archive"


def _pir_at(architecture: str, data: str, num_classes: int, file: str, *scores: Score) -> PublishedModel:
    return PublishedModel(
        f"{architecture}_{data}",
        architecture,
        ARCHITECTURES[architecture],
        num_classes,
        data,
        PIR_AT,
        RAW,
        page=PIR_AT_PAGE,
        file=file,
        scores=scores,
    )


PIR_AT_PAGE = "https://github.com/nmndeep/Robust-Segmentation (table of models in the README)"
DDC_AT_PAGE = "https://github.com/dvlab-research/Robust-Semantic-Segmentation (Pretrained Model in the README)"
VOC, CITYSCAPES, ADE20K = 21, 19, 151

PUBLISHED: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        _pir_at(
            "upernet_convnext_t_cvst",
            "voc",
            VOC,
            "UperNet-ConvNext-T_CVST, PASCAL-VOC",
            Score(0, 75.2, 92.7),
            Score(4, 64.9, 88.6),
            Score(8, 34.6, 71.7),
            Score(12, 5.5, 28.1),
        ),
        _pir_at(
            "upernet_convnext_s_cvst",
            "voc",
            VOC,
            "UperNet-ConvNext-S_CVST, PASCAL-VOC",
            Score(0, 76.6),
            Score(4, 66.0),
            Score(8, 36.4),
        ),
        _pir_at(
            "upernet_convnext_t_cvst",
            "ade20k",
            ADE20K,
            "UperNet-ConvNext-T_CVST, ADE20K",
            Score(0, 31.7),
            Score(4, 17.2),
            Score(8, 4.9),
        ),
        _pir_at(
            "upernet_convnext_s_cvst",
            "ade20k",
            ADE20K,
            "UperNet-ConvNext-S_CVST, ADE20K",
            Score(0, 32.1),
            Score(4, 17.9),
            Score(8, 5.4),
        ),
        _pir_at(
            "segmenter_vit_s",
            "ade20k",
            ADE20K,
            "Segmenter ViT-S, ADE20K",
            Score(0, 28.7),
            Score(4, 14.9),
            Score(8, 5.3),
        ),
        _resnet("pspnet50", "voc", VOC),
        _resnet("deeplabv3_50", "voc", VOC),
        _ddcat("pspnet50", PSP, "voc", VOC, Score(0, 75.9, 95.1), Score(4, 0.0, 0.0)),
        _ddcat("deeplabv3_50", ASPP, "voc", VOC),
        _resnet("pspnet50", "cityscapes", CITYSCAPES),
        _resnet("deeplabv3_50", "cityscapes", CITYSCAPES),
        _ddcat("pspnet50", PSP, "cityscapes", CITYSCAPES),
        _ddcat("deeplabv3_50", ASPP, "cityscapes", CITYSCAPES),
    )
}
"""The published checkpoints by name."""
