"""The training methods: what one batch is made into, and the loss of it.

Clean training, adversarial training (AT, arXiv 1706.06083; PIR-AT, arXiv 2306.12941, is AT from a robust backbone),
SAT and DDC-AT (arXiv 2003.06555).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.data.base import IGNORE_INDEX
from robseg.errors import UserError, unknown_name
from robseg.models.dropout import draws_from
from robseg.models.modes import attack_mode
from robseg.seeding import image_generator
from robseg.training.inner_attack import AttackSettings, perturb
from robseg.training.trainee import Outputs, Trainee


@dataclass(frozen=True)
class MethodSettings:
    """How the loss of a batch is made.

    method: a name of METHODS: "clean", "at", "sat" or "ddcat".
    attack: makes the adversarial images; unused by "clean".
    aux_weight: weight of the auxiliary head's cross-entropy, where the network has such a head.

    Raises UserError for an unknown method or a weight that is no number of 0 or more.
    """

    method: str = "clean"
    attack: AttackSettings = field(default_factory=AttackSettings)
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("training method", self.method, METHODS)
        if not 0 <= self.aux_weight < float("inf"):
            raise UserError(f"aux_weight of the training is {self.aux_weight}; it must be 0 or more.")


@dataclass(frozen=True)
class Step:
    """The loss of one batch.

    loss: scalar with its graph, to call backward on.
    parts: its unweighted terms without their graphs: "main", "auxiliary" and "mask", those that there are.
    logits: (B, C, H, W) without graph; images, labels: the (B, 3, H, W) and (B, H, W) that were trained on, B as given.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor
    images: Tensor
    labels: Tensor


class Attack(Protocol):
    """`perturb` for some images of the batch, given by their rows."""

    def __call__(self, rows: slice) -> Tensor: ...


def training_step(
    trainee: Trainee,
    images: Tensor,
    labels: Tensor,
    settings: MethodSettings,
    *,
    seed: int,
    keys: Sequence[str],
    eps_share: float = 1.0,
    counted: Tensor | float | None = None,
    class_weights: Tensor | None = None,
) -> Step:
    """The loss of one batch under a method; the caller goes backward and updates.

    trainee: what is attacked, in evaluation mode; the caller has put it into training mode before, where it is again
        after. Neither its batch-norm statistics nor the `.grad` of its parameters are touched by the attack.
    images, labels: (B, 3, H, W) in [0, 1] and (B, H, W) int64, 0..C-1 or 255. sat and ddcat leave the first half of
        them clean and need B of 2 or more.
    keys: one text an image that occurs once in the whole training: with `seed` it decides the image's random start,
        and its draws in the modules of `robseg.models.dropout`.
    eps_share: 0..1, multiplies eps and alpha (warm-up of eps).
    counted: what the summed cross-entropy is divided by; None: the batch's own counted pixels, as the published code
        has it on each device. Where gradients of several batches (processes, accumulation) are averaged, give the
        mean of their counted pixels: the result is then that of one joint batch.
    class_weights: (C,), for attack objectives that use them.

    Raises UserError for batches, networks and settings that do not fit together.
    """
    if settings.method in ("sat", "ddcat") and len(images) < 2:
        raise UserError(f"The method '{settings.method}' halves each batch; it needs 2 images or more on each device.")

    def attack(rows: slice) -> Tensor:
        return perturb(
            trainee, images[rows], labels[rows], settings.attack,
            seed=seed, keys=keys[rows], eps_share=eps_share, class_weights=class_weights,
        )  # fmt: skip

    trained_on, mask_target = METHODS[settings.method](trainee, images, attack)
    # One image's dropout, too, is its own, whatever else is in the batch. Too many draws to be made on the CPU.
    generators = [image_generator(seed, key, "dropout", images.device) for key in keys]
    with draws_from(generators):
        outputs = trainee(trained_on)
    if not isinstance(outputs, Outputs):
        raise ValueError("the training pass gave logits alone: call trainee.train() before")
    return batch_loss(
        outputs, trained_on, labels, mask_target=mask_target, aux_weight=settings.aux_weight, counted=counted
    )


def clean(trainee: Trainee, images: Tensor, attack: Attack) -> tuple[Tensor, Tensor | None]:
    """The images as they are."""
    return images, None


def at(trainee: Trainee, images: Tensor, attack: Attack) -> tuple[Tensor, Tensor | None]:
    """All of the batch adversarial."""
    return attack(slice(None)), None


def sat(trainee: Trainee, images: Tensor, attack: Attack) -> tuple[Tensor, Tensor | None]:
    """The first half clean, the second adversarial."""
    half = len(images) // 2
    return torch.cat([images[:half], attack(slice(half, None))]), None


def ddcat(trainee: Trainee, images: Tensor, attack: Attack) -> tuple[Tensor, Tensor | None]:
    """The halves of SAT, and the target of the mask branch (dynamic division).

    Its target (B, H, W) is 1 where, on the clean half, the joined prediction changes under attack, else 0 (arXiv
    2003.06555). The attack is on the main branch, which is what the network gives in evaluation mode.
    """
    half = len(images) // 2
    adversarial = attack(slice(None))
    target = divide(trainee, images[:half], adversarial[:half])
    none = torch.zeros_like(target[:1]).expand(len(images) - half, -1, -1)
    return torch.cat([images[:half], adversarial[half:]]), torch.cat([target, none])


METHODS: dict[str, Callable[[Trainee, Tensor, Attack], tuple[Tensor, Tensor | None]]] = {
    "clean": clean,
    "at": at,
    "sat": sat,
    "ddcat": ddcat,
}
"""What each method makes of a batch: the images trained on, (B, 3, H, W), and DDC-AT's mask target."""


def divide(trainee: Trainee, images: Tensor, adversarial: Tensor) -> Tensor:
    """DDC-AT's dynamic division: where the joined predictions on two batches differ, (B, H, W) int64 of 0 and 1.

    Without gradient and, as published, in evaluation mode. UserError for a network without DDC-AT's branches.
    """
    with torch.no_grad(), attack_mode(trainee):
        first, second = (_joined(trainee, points).argmax(1) for points in (images, adversarial))
    return (first != second).long()


def _joined(trainee: Trainee, images: Tensor) -> Tensor:
    if not hasattr(trainee.network, "training_outputs"):
        raise _no_branches(trainee.network)
    outputs = trainee.all_outputs(images)
    if outputs.mask is None:
        raise _no_branches(trainee.network)
    return outputs.logits


def _no_branches(network: nn.Module) -> UserError:
    return UserError(
        f"The method 'ddcat' needs a network with an adversarial and a mask branch, which {type(network).__name__} has "
        "not; use an architecture whose name ends in _ddcat."
    )


def batch_loss(
    outputs: Outputs,
    images: Tensor,
    labels: Tensor,
    *,
    mask_target: Tensor | None = None,
    aux_weight: float = 0.4,
    counted: Tensor | float | None = None,
) -> Step:
    """CE(logits) + CE(mask, mask_target) + aux_weight * CE(auxiliary), the last two where the network has the branch.

    outputs: the network's of `images` (B, 3, H, W); labels: (B, H, W). mask_target: (B, H, W) of 0 and 1, None: all 0.
    The mask's is a mean over all pixels; of the others, `counted` is described in `training_step`.
    """
    parts = {"main": pixel_loss(outputs.logits, labels, counted)}
    loss = parts["main"]
    if outputs.mask is not None:
        # Another method trains a network that has a mask branch as if nothing were divided.
        target = torch.zeros_like(labels) if mask_target is None else mask_target
        parts["mask"] = F.cross_entropy(_float32(outputs.mask), target)
        loss = loss + parts["mask"]
    if outputs.auxiliary is not None:
        parts["auxiliary"] = pixel_loss(outputs.auxiliary, labels, counted)
        loss = loss + aux_weight * parts["auxiliary"]
    return Step(loss, {name: part.detach() for name, part in parts.items()}, outputs.logits.detach(), images, labels)


def pixel_loss(logits: Tensor, labels: Tensor, counted: Tensor | float | None = None) -> Tensor:
    """Cross-entropy of (B, C, H, W) and (B, H, W), summed over the pixels that are not 255, divided by `counted`.

    None divides by their number, which makes it their mean; a batch without any counted pixel has loss 0.
    """
    if counted is None:
        counted = (labels != IGNORE_INDEX).sum().clamp_min(1)
    return F.cross_entropy(_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="sum") / counted


def _float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
