"""The published attack on sliding windows, each by itself (arXiv 2003.06555): for comparison with its numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robseg.attacks.catalogue import AttackConfig
from robseg.models.sliding import MEAN_COLOUR, average_windows, on_canvas, window_at, window_places
from robseg.models.wrapper import SegmentationModel


def attack_each_window(
    model: SegmentationModel,
    images: Tensor,
    labels: Tensor,
    attack: AttackConfig,
    *,
    eps: float,
    crop: int,
    stride: float = 2 / 3,
    fill: Sequence[float] = MEAN_COLOUR,
    class_weights: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Log probabilities (B, C, H, W), averaged over windows that were each attacked with the labels in them.

    No adversarial image comes out, because there is none: where windows overlap, each has a perturbation of its own.
    The numbers are therefore not those of an attack on the picture, for which the windows belong into the model
    (`robseg.models.sliding.with_window`). DDC-AT's test is `attack` "bim" within eps 0.03, without mirrored windows.

    model: of a window; images in [0, 1] to logits. images: (B, 3, H, W) in [0, 1]; labels: (B, H, W). eps: in the
    images' units. fill: the colour, in [0, 1], around images smaller than the window. The rest as in
    `AttackConfig.run`.
    """
    names = [str(index) for index in range(len(images))] if image_ids is None else list(image_ids)
    canvas = on_canvas(images, crop, torch.tensor(list(fill)))
    height, width = canvas.images.shape[-2:]
    around = (canvas.left, width - canvas.left - canvas.width, canvas.top, height - canvas.top - canvas.height)
    truth = F.pad(labels, around, value=ignore_index)
    places = window_places(canvas.images, crop, stride)
    found = []
    for place in places:
        window = attack.run(
            model, window_at(canvas.images, place, crop).contiguous(), window_at(truth, place, crop).contiguous(),
            eps=eps, class_weights=class_weights, seed=seed, ignore_index=ignore_index,
            image_ids=[f"{name}/window {place[0]},{place[1]}" for name in names],
        ).adversarial  # fmt: skip
        with torch.no_grad():
            found.append(model(window).log_softmax(1))
    return canvas.cut(average_windows(found, places, canvas.images))
