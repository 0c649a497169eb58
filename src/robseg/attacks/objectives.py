"""What an attack maximises: functions of (logits, labels) that give one value per pixel.

Common to all of them:

- logits: (B, C, H, W), any floating dtype; half precision is computed in float32.
- labels: (B, H, W) int64 in 0..C-1, or `ignore_index`.
- returned: (B, H, W), 0 where the pixel is ignored. An image's loss is the mean over H*W.

An objective that weights pixels by whether they are (still) right does so without gradient through that weight.
Nearly all are functions of the cross-entropy CE = -log p_y alone, so they cost one log-softmax whatever C is and
are finite at any logit gap.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[..., Tensor]


def ce(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, -log p_y."""
    return F.cross_entropy(_at_least_float32(logits), labels, reduction="none", ignore_index=ignore_index)


def mce(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Masked cross-entropy: only pixels that are still right count (arXiv 2306.12941, section 3)."""
    return _still_right(logits, labels) * ce(logits, labels, ignore_index=ignore_index)


def mce_bal(logits: Tensor, labels: Tensor, *, class_weights: Tensor, ignore_index: int = 255) -> Tensor:
    """Class-balanced masked cross-entropy (arXiv 2306.12941v2): masked CE times the weight of the pixel's class.

    class_weights: (C,), or (B, C) with a row per image; published: inversely proportional to the classes' pixels in
    the training set, with sum 1 (`inverse_frequency_weights`).
    """
    known = torch.where(labels == ignore_index, 0, labels)
    weights = class_weights.to(logits.device)
    per_image = weights.expand(labels.shape[0], -1)
    pixel_weights = per_image.gather(1, known.flatten(1)).view_as(labels)
    return pixel_weights * mce(logits, labels, ignore_index=ignore_index)


def js(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Jensen-Shannon divergence between p = softmax(logits) and onehot(y) (arXiv 2306.12941, section 3).

    With m = (p + onehot) / 2 every class but y adds p_k log 2 to KL(p || m), so the sum over classes depends on
    q = p_y alone: js = ((1 - q) log 2 + q log q - (1 + q) log((1 + q) / 2)) / 2. Written with log q = -CE and
    d = 1 - q, value and gradient stay finite where p is one-hot, right or wrong, and the value cannot round below 0.
    """
    log_q = -ce(logits, labels, ignore_index=ignore_index)
    q, d = log_q.exp(), -torch.expm1(log_q)
    divergence = 0.5 * (d * math.log(2) + q * log_q - (1 + q) * torch.log1p(-d / 2))
    return divergence * (labels != ignore_index)


def msl(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Masked spherical loss, -logit_y / ||logits||_2 on pixels still right (arXiv 2306.12941v1)."""
    counted = labels != ignore_index
    logits = _at_least_float32(logits)
    # Scaling by the largest entry first keeps the squares of huge logits finite; all-zero logits give 0 / 1.
    largest = logits.detach().abs().amax(1, keepdim=True)
    scaled = logits / torch.where(largest > 0, largest, 1)
    label_logit = scaled.gather(1, torch.where(counted, labels, 0).unsqueeze(1)).squeeze(1)
    square = scaled.square().sum(1)
    norm = torch.where(square > 0, square, 1).sqrt()
    return -label_logit / norm * _still_right(logits, labels) * counted


def segpgd(logits: Tensor, labels: Tensor, *, progress: float = 0.0, ignore_index: int = 255) -> Tensor:
    """SegPGD's balanced CE (arXiv 2207.12391, eq. 4-5): (1 - l) CE on right pixels, l CE on wrong ones.

    progress: t / T in [0, 1], the share of the attack that is done; l = progress / 2.
    """
    right = _still_right(logits, labels)
    weight = progress / 2
    return ((1 - weight) * right + weight * (1 - right)) * ce(logits, labels, ignore_index=ignore_index)


def cospgd(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """CosPGD as published (arXiv 2302.02213, eq. 6): CE weighted by cos(sigmoid(logits), onehot(y))."""
    return _cosine_weighted(logits, labels, torch.sigmoid, ignore_index)


def cospgd_softmax(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """CosPGD with softmax instead of sigmoid under the cosine, the stronger of its two forms."""
    return _cosine_weighted(logits, labels, lambda scores: scores.softmax(1), ignore_index)


OBJECTIVES: dict[str, Objective] = {
    "ce": ce,
    "mce": mce,
    "mce-bal": mce_bal,
    "js": js,
    "msl": msl,
    "segpgd": segpgd,
    "cospgd": cospgd,
    "cospgd-softmax": cospgd_softmax,
}


def objective_arguments(objective: Objective) -> frozenset[str]:
    """Which of the optional arguments (class_weights, progress, ignore_index) an objective declares."""
    return frozenset(inspect.signature(objective).parameters) & {"class_weights", "progress", "ignore_index"}


def inverse_frequency_weights(class_pixels: Tensor) -> Tensor:
    """Class weights of mce-bal: inversely proportional to the pixels of each class, sum 1 (arXiv 2306.12941v2).

    class_pixels: (C,) counts. A class without a pixel gets the weight of the rarest class that has some, so that it
    neither vanishes nor, as 1/0, drowns all others. Returns (C,) float64. Raises ValueError where no class has pixels.
    """
    pixels = class_pixels.to(torch.float64)
    if not bool((pixels > 0).any()):
        raise ValueError("class weights need at least one labelled pixel")
    rarest = pixels[pixels > 0].min()
    weights = 1 / torch.where(pixels > 0, pixels, rarest)
    return weights / weights.sum()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _still_right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the prediction is the label, else 0, (B, H, W); an ignored label is no class, so it gives 0."""
    return (logits.detach().argmax(1) == labels).to(_at_least_float32(logits).dtype)


def _cosine_weighted(logits: Tensor, labels: Tensor, squash: Callable[[Tensor], Tensor], ignore_index: int) -> Tensor:
    with torch.no_grad():
        scores = squash(_at_least_float32(logits))
        label_score = scores.gather(1, torch.where(labels == ignore_index, 0, labels).unsqueeze(1)).squeeze(1)
        # sigmoid can underflow to 0 in every class; a zero vector is at right angles to everything.
        cosine = label_score / scores.norm(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
    return cosine * ce(logits, labels, ignore_index=ignore_index)
