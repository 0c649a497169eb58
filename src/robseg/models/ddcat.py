"""The branches of DDC-AT (arXiv 2003.06555): present in training, absent from every prediction at test time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robseg.models.dilated import Context, DilatedSegmenter, to_image_size
from robseg.models.resnet import pad_to_stride

MAIN_NAMES = ("cls1", "aux_cls1")
"""The attributes of the main branch and of the auxiliary classifier in DDC-AT's checkpoints."""

BRANCHES = ("cls2.", "mask1.")
"""How the names of the entries begin that a network without branches has no place for."""


class DDCATOutputs(NamedTuple):
    """What the DDC-AT loss needs; every tensor at the size of the images.

    joined: (B, C, H, W), the adversarial branch's logits where the mask branch says 1, else the main branch's.
    mask: (B, 2, H, W), logits of the mask branch.
    auxiliary: (B, C, H, W), logits of the auxiliary classifier on stage 3.
    main: (B, C, H, W), logits of the main branch alone.
    """

    joined: Tensor
    mask: Tensor
    auxiliary: Tensor
    main: Tensor


class DDCAT(DilatedSegmenter):
    """PSPNet or DeepLabv3 with two more classifiers on its context: an adversarial branch and a 2-way mask branch.

    Input as for DilatedSegmenter.
    Evaluation mode: the main branch's logits (B, num_classes, H, W); the other branches do not run.
    Training mode: DDCATOutputs.
    """

    def __init__(self, depths: tuple[int, int, int, int], context: Context, num_classes: int) -> None:
        super().__init__(depths, context, num_classes, MAIN_NAMES)
        self.cls2 = context.classifier(num_classes)
        self.mask1 = context.classifier(2)

    def training_outputs(self, images: Tensor) -> DDCATOutputs:
        """The outputs of all branches, whatever the mode."""
        context, main_branch, auxiliary = self.parts()
        stage3, stage4 = self.stages(pad_to_stride(images))
        features = context(stage4)
        branches = (main_branch, self.cls2, self.mask1)
        main, adversarial, mask = (to_image_size(branch(features), images) for branch in branches)
        joined = torch.where(mask.argmax(1, keepdim=True) == 1, adversarial, main)
        return DDCATOutputs(joined, mask, to_image_size(auxiliary(stage3), images), main)


def without_branches(depths: tuple[int, int, int, int], context: Context, num_classes: int) -> DilatedSegmenter:
    """The network that DDCAT is at test time, under the same names: load its weights with `ignore=BRANCHES`."""
    return DilatedSegmenter(depths, context, num_classes, MAIN_NAMES)
