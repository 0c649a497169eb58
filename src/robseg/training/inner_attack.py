"""The attack inside a training step: it makes the images that are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robseg.attacks.apgd import apgd
from robseg.attacks.objectives import OBJECTIVES, objective_arguments
from robseg.attacks.pgd import ascend
from robseg.data.base import IGNORE_INDEX
from robseg.errors import UserError, unknown_name
from robseg.models.modes import attack_mode

InnerAttack = Literal["pgd", "fgsm", "apgd"]


@dataclass(frozen=True)
class AttackSettings:
    """Linf attack on each training image; the defaults are those of PIR-AT (arXiv 2306.12941).

    name: "pgd" (arXiv 1706.06083), its last iterate; "fgsm", one step; "apgd" (arXiv 2003.01690), its best point.
    objective: what is maximised, a name of `robseg.attacks.objectives`.
    eps, alpha: radius and step in n/255, 4.0 for 4/255. alpha None: 2.55 (0.01) for PGD; for FGSM eps, or from a
        random start 1.25 eps (arXiv 2001.03994); APGD chooses its own and takes none.
    steps: gradient steps; each costs one forward and one backward pass, APGD one forward pass more in all.
    random_start: from a uniform point of the ball, else from the image itself.
    bf16: the attack's passes, and nothing else, in bfloat16 (autocast).

    Raises UserError for unknown names and values out of range.
    """

    name: InnerAttack = "pgd"
    objective: str = "ce"
    eps: float = 4.0
    alpha: float | None = None
    steps: int = 2
    random_start: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.name not in get_args(InnerAttack):
            raise unknown_name("attack in training", self.name, get_args(InnerAttack))
        if self.objective not in OBJECTIVES:
            raise unknown_name("objective", self.objective, OBJECTIVES)
        if not (0 <= self.eps <= 255 and math.isfinite(self.eps)):
            raise UserError(f"eps of the attack in training is {self.eps}; it is n of n/255, from 0 to 255.")
        if self.steps < 1:
            raise UserError(f"steps of the attack in training is {self.steps}; it must be 1 or more.")
        if self.name == "fgsm" and self.steps != 1:
            raise UserError(f"steps of the attack in training is {self.steps}; fgsm takes 1, for more use pgd.")
        if self.alpha is not None and self.name == "apgd":
            raise UserError(f"alpha of the attack in training is {self.alpha}; apgd chooses its own, leave it out.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"alpha of the attack in training is {self.alpha}; it is n of n/255, above 0.")

    @property
    def step(self) -> float:
        """alpha with its default, in n/255."""
        if self.alpha is not None:
            return self.alpha
        if self.name == "fgsm":
            return 1.25 * self.eps if self.random_start else self.eps
        return 2.55


def perturb(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    *,
    seed: int,
    keys: Sequence[str],
    eps_share: float = 1.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The adversarial images (B, 3, H, W) of a batch.

    network: images (B, 3, H, W) in [0, 1] to logits (B, C, H, W) in evaluation mode, such as `Trainee`. It is in that
        mode meanwhile and as before afterwards; gradients are taken with respect to the images only, so that neither
        its batch-norm statistics nor the `.grad` of its parameters are touched.
    labels: (B, H, W) int64, 0..C-1 or 255 (not counted).
    keys: one text an image to which, with `seed`, its random start belongs; it should change from epoch to epoch.
    eps_share: 0..1, by which radius and step are multiplied while eps is warmed up.
    class_weights: (C,), for objectives that use them.

    Raises UserError where the objective needs class weights and none are given, ValueError as `robseg.pgd` does.
    """
    if class_weights is None and "class_weights" in objective_arguments(OBJECTIVES[settings.objective]):
        raise UserError(f"The objective '{settings.objective}' of the attack in training needs class weights.")
    common: dict[str, Any] = {
        "eps": eps_share * settings.eps / 255, "steps": settings.steps, "objective": settings.objective,
        "random_start": settings.random_start, "class_weights": class_weights, "seed": seed, "image_ids": keys,
        "ignore_index": IGNORE_INDEX,
    }  # fmt: skip

    def model(points: Tensor) -> Tensor:
        with _arithmetic(settings, points.device):
            logits: Tensor = network(points)
        return logits.float() if settings.bf16 else logits

    with attack_mode(network):
        if settings.name == "apgd":
            return apgd(model, images, labels, **common).adversarial
        return ascend(model, images, labels, alpha=eps_share * settings.step / 255, **common)


def _arithmetic(settings: AttackSettings, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if settings.bf16 else nullcontext()
