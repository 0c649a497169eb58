"""Checks of a model before it is attacked: what cannot work is an error, what makes a number doubtful a warning."""

from __future__ import annotations

import torch
from torch import Tensor

from robseg.errors import UserError
from robseg.models.modes import attack_mode
from robseg.models.wrapper import SegmentationModel

DEAD_SHARE = 0.99
"""Share of pixels with zero or NaN gradient from which on a model counts as masking its gradient."""


def probe(
    model: SegmentationModel, images: Tensor, labels: Tensor, num_classes: int, ignore_index: int = 255
) -> list[str]:
    """Try the model on some labelled images and say what is doubtful about it, one sentence each.

    images: (B, 3, H, W) in [0, 1]. labels: (B, H, W). num_classes: of the data.

    Raises UserError where the model fails on the images, gives NaN or infinite logits, or has another number of
    classes than the data. Warns of a model whose answer to the same input differs from call to call, or depends on
    the other images of the batch, and of one whose input gradient is zero or NaN almost everywhere.
    """
    with attack_mode(model):
        logits = check_answer(model, images, num_classes)
        # What changes from call to call says nothing about the batch.
        doubt = _repeats(model, images, logits) or _depends_on_batch(model, images, logits)
        found = (doubt, _gradient_dies(model, images, labels, ignore_index))
        return [warning for warning in found if warning is not None]


def check_answer(model: SegmentationModel, images: Tensor, num_classes: int) -> Tensor:
    """The logits (B, C, H, W) of images (B, 3, H, W) in [0, 1]; UserError where the model fails on them, gives NaN or
    infinite logits, or has another number of classes."""
    with attack_mode(model):
        logits = _first_answer(model, images)
    _check_answer(logits, images, num_classes)
    return logits


def _first_answer(model: SegmentationModel, images: Tensor) -> Tensor:
    size = "x".join(map(str, images.shape))
    try:
        with torch.no_grad():
            logits: Tensor = model(images)
            return logits
    except torch.OutOfMemoryError:
        raise UserError(f"The memory does not suffice for images of {size}; lower --batch-size.") from None
    except UserError:
        raise
    except Exception as error:
        # Whatever a stranger's network raises is the user's to mend; the chain keeps its traceback for Python callers.
        reason = str(error).strip().splitlines() or [""]
        raise UserError(f"The model fails on images of {size}: {type(error).__name__}: {reason[0]}") from error


def _check_answer(logits: Tensor, images: Tensor, num_classes: int) -> None:
    if logits.shape[0] != images.shape[0]:
        raise UserError(f"The model gave {logits.shape[0]} answers to {images.shape[0]} images.")
    if logits.shape[1] != num_classes:
        hint = (
            "; a single logit is no softmax over 2 classes: give the classes as logits (0, z)" if logits.shape[1] == 1
            else "; choose the model or the data set's class list so that they agree (see --classes)"
        )  # fmt: skip
        raise UserError(f"The model has {logits.shape[1]} classes and the data {num_classes}{hint}.")
    if not bool(logits.isfinite().all()):
        kind = "NaN" if bool(logits.isnan().any()) else "infinite"
        share = 1 - logits.isfinite().float().mean().item()
        raise UserError(
            f"The model gives {kind} logits on clean images ({share:.1%} of them); check the checkpoint and the "
            "normalisation, or use a wider --precision."
        )


def _repeats(model: SegmentationModel, images: Tensor, logits: Tensor) -> str | None:
    with torch.no_grad():
        again = model(images)
    if torch.equal(again.argmax(1), logits.argmax(1)) and torch.allclose(again, logits, rtol=1e-3, atol=1e-4):
        return None
    changed = (again.argmax(1) != logits.argmax(1)).float().mean().item()
    return (
        f"The model answers differently to the same input ({changed:.2%} of the predictions changed on a second call): "
        "dropout left on, or a randomised defence; an attack that does not average over the randomness "
        "overstates its robustness."
    )


def _depends_on_batch(model: SegmentationModel, images: Tensor, logits: Tensor) -> str | None:
    if len(images) < 2:
        return None
    with torch.no_grad():
        alone = model(images[:1])
    changed = (alone.argmax(1) != logits[:1].argmax(1)).float().mean().item()
    # Half precision and other kernels for other batch sizes may flip a few pixels that are on the edge.
    if changed < 0.01:
        return None
    return (
        f"The model's answer to an image depends on the other images of the batch ({changed:.2%} of the predictions "
        "of the first image changed when it came alone), as batch statistics in evaluation do; use --batch-size 1."
    )


def _gradient_dies(model: SegmentationModel, images: Tensor, labels: Tensor, ignore_index: int) -> str | None:
    """The gradient of the cross-entropy, which every attack here starts from."""
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(x), labels, ignore_index=ignore_index, reduction="sum")
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    counted = labels != ignore_index
    if not bool(counted.any()):
        return None
    dead = 1.0
    if gradient is not None:
        alive = gradient.isfinite() & (gradient != 0)
        # Far from any counted pixel no image has a gradient.
        dead = 1 - alive.any(1)[counted].float().mean().item()
    if dead < DEAD_SHARE:
        return None
    return (
        f"The gradient of the loss with respect to the image is zero or NaN at {dead:.1%} of the pixels (gradient "
        "masking): gradient attacks cannot measure this model, and its accuracy under them says little."
    )
