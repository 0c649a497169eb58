"""SEA, the Segmentation Ensemble Attack (arXiv 2306.12941), on one batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robseg.attacks.catalogue import AttackConfig, find_attacks
from robseg.attacks.objectives import OBJECTIVES, inverse_frequency_weights, objective_arguments
from robseg.attacks.problem import AttackResult, Model, attacked


@dataclass(frozen=True)
class SeaResult:
    """What an ensemble found for a batch.

    attacks: name -> result of each attack.
    chosen: (B,) int64, position in `attacks` of the one with the lowest accuracy per image.
    adversarial, accuracy: (B, 3, H, W) and (B,), of the chosen attack. Accuracy is NaN where no pixel counts.
    class_weights: (C,), those of mce-bal; weights_source: "training labels", "evaluated labels", or "unused".

    The worst case of mIoU is a choice over the whole data set, not per image: `robseg.evaluate` makes it.
    """

    attacks: dict[str, AttackResult]
    chosen: Tensor
    adversarial: Tensor
    accuracy: Tensor
    class_weights: Tensor | None
    weights_source: str


def sea(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    attacks: str | Sequence[str | AttackConfig] = "sea",
    steps: int | None = None,
    threat: str = "linf",
    training_pixels: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> SeaResult:
    """Run an ensemble on a batch; by default mce-bal, mce and js of 300 steps with reduced radius.

    attacks: "sea" (or "sea-v2"), "sea-v1", or a list of names and configurations (`robseg.attacks.catalogue`).
    steps: of every attack, None for the published number. eps: in the images' units (4/255).
    training_pixels: (C,) pixels of each class in the training set, for the weights of mce-bal; else they are counted
        in `labels`. Other shapes, and what is raised, as in `robseg.apgd`.
    """
    configs = find_attacks([attacks] if isinstance(attacks, str) else attacks, steps)
    weights, source = None, "unused"
    if needs_class_weights(configs):
        source = "evaluated labels" if training_pixels is None else "training labels"
        if training_pixels is None:
            counted = labels[labels != ignore_index]
            with torch.no_grad(), attacked(model):
                classes = model(images[:1]).shape[1]
            training_pixels = torch.bincount(counted, minlength=classes)
        # Without any counted pixel nothing is attacked and no weight is used.
        empty = not bool((training_pixels > 0).any())
        weights = torch.ones_like(training_pixels).double() if empty else inverse_frequency_weights(training_pixels)
    results = {
        config.name: config.run(
            model, images, labels,
            eps=eps, threat=threat, class_weights=weights, seed=seed, image_ids=image_ids, ignore_index=ignore_index,
        )
        for config in configs
    }  # fmt: skip
    found = list(results.values())
    accuracies = torch.stack([result.accuracy for result in found])
    chosen = accuracies.nan_to_num(1).argmin(0)
    rows = torch.arange(len(images), device=images.device)
    points = torch.stack([result.adversarial for result in found])
    return SeaResult(results, chosen, points[chosen, rows], accuracies[chosen, rows], weights, source)


def needs_class_weights(attacks: Sequence[AttackConfig]) -> bool:
    """Whether any of the attacks weights classes (mce-bal)."""
    names = [name for config in attacks for name in (config.objective, config.tracked) if name is not None]
    return any("class_weights" in objective_arguments(OBJECTIVES[name]) for name in names)
