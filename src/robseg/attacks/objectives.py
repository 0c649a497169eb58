"""What an attack maximises: functions of (logits, labels) that give one value per pixel.

Common to all of them:

- logits: (B, C, H, W), any floating dtype; half precision is computed in float32.
- labels: (B, H, W) int64 in 0..C-1, or `ignore_index`.
- returned: (B, H, W), 0 where the pixel is ignored. An image's loss is the mean over H*W.

An objective that weights pixels by whether they are (still) right does so without gradient through that weight.
Nearly all are functions of the cross-entropy CE = -log p_y alone, so they cost one log-softmax whatever C is and
are finite at any logit gap. A caller that has CE (with its gradient), or whether the prediction is the label, both
(B, H, W), hands them over as `cross_entropy` and `right` so that they are not computed again.
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


def mce(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    cross_entropy: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """Masked cross-entropy: only pixels that are still right count (arXiv 2306.12941)."""
    if cross_entropy is None:
        cross_entropy = ce(logits, labels, ignore_index=ignore_index)
    return cross_entropy * (is_right(logits, labels, ignore_index=ignore_index) if right is None else right)


def mce_bal(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor,
    ignore_index: int = 255,
    cross_entropy: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """Class-balanced masked cross-entropy (arXiv 2306.12941v2): masked CE times the weight of the pixel's class.

    class_weights: (C,), or (B, C) with a row per image; published: inversely proportional to the classes' pixels in
    the training set, with sum 1 (`inverse_frequency_weights`).
    """
    known = torch.where(labels == ignore_index, 0, labels)
    weights = class_weights.to(logits.device)
    per_image = weights.expand(labels.shape[0], -1)
    pixel_weights = per_image.gather(1, known.flatten(1)).view_as(labels)
    return pixel_weights * mce(logits, labels, ignore_index=ignore_index, cross_entropy=cross_entropy, right=right)


def js(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, cross_entropy: Tensor | None = None) -> Tensor:
    """Jensen-Shannon divergence between p = softmax(logits) and onehot(y) (arXiv 2306.12941).

    With m = (p + onehot) / 2 every class but y adds p_k log 2 to KL(p || m), so the sum over classes depends on
    q = p_y alone: js = ((1 - q) log 2 + q log q - (1 + q) log((1 + q) / 2)) / 2. Written with log q = -CE and
    d = 1 - q, value and gradient stay finite where p is one-hot, right or wrong, and the value cannot round below 0.
    """
    log_q = -(ce(logits, labels, ignore_index=ignore_index) if cross_entropy is None else cross_entropy)
    q, d = log_q.exp(), -torch.expm1(log_q)
    divergence = 0.5 * (d * math.log(2) + q * log_q - (1 + q) * torch.log1p(-d / 2))
    return divergence * (labels != ignore_index)


def msl(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, right: Tensor | None = None) -> Tensor:
    """Masked spherical loss, -logit_y / ||logits||_2 on pixels still right (arXiv 2306.12941v1)."""
    counted = labels != ignore_index
    logits = _at_least_float32(logits)
    # Scaling by the largest entry first keeps the squares of huge logits finite; all-zero logits give 0 / 1.
    largest = logits.detach().abs().amax(1, keepdim=True)
    scaled = logits / torch.where(largest > 0, largest, 1)
    label_logit = scaled.gather(1, torch.where(counted, labels, 0).unsqueeze(1)).squeeze(1)
    square = scaled.square().sum(1)
    norm = torch.where(square > 0, square, 1).sqrt()
    return (
        -label_logit
        / norm
        * (is_right(logits, labels, ignore_index=ignore_index) if right is None else right)
        * counted
    )


def segpgd(
    logits: Tensor,
    labels: Tensor,
    *,
    progress: float = 0.0,
    ignore_index: int = 255,
    cross_entropy: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """SegPGD's balanced CE (arXiv 2207.12391): (1 - l) CE on right pixels, l CE on wrong ones.

    progress: t / T in [0, 1], the share of the attack that is done; l = progress / 2.
    """
    if cross_entropy is None:
        cross_entropy = ce(logits, labels, ignore_index=ignore_index)
    if right is None:
        right = is_right(logits, labels, ignore_index=ignore_index)
    weight = progress / 2
    return cross_entropy * torch.where(right, 1 - weight, weight)


def cospgd(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, cross_entropy: Tensor | None = None) -> Tensor:
    """CosPGD as published (arXiv 2302.02213): CE weighted by cos(sigmoid(logits), onehot(y))."""
    if cross_entropy is None:
        cross_entropy = ce(logits, labels, ignore_index=ignore_index)
    return cross_entropy * _cosine(_at_least_float32(logits.detach()).sigmoid(), labels, ignore_index)


def cospgd_softmax(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, cross_entropy: Tensor | None = None
) -> Tensor:
    """CosPGD with softmax instead of sigmoid under the cosine, the stronger of its two forms."""
    if cross_entropy is None:
        cross_entropy = ce(logits, labels, ignore_index=ignore_index)
    return cross_entropy * _cosine(_at_least_float32(logits.detach()).softmax(1), labels, ignore_index)


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


OFFERED = frozenset({"ignore_index", "class_weights", "progress", "cross_entropy", "right"})


def objective_arguments(objective: Objective) -> frozenset[str]:
    """Which of the arguments beside logits and labels that attacks offer (`OFFERED`) an objective declares."""
    return frozenset(inspect.signature(objective).parameters) & OFFERED


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


def is_right(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Where no class has a larger logit than the label, (B, H, W) bool; False where the label is ignored.

    Unlike the argmax, a class of exactly the label's logit does not count as an error: comparing with the maximum
    takes a twentieth of the time, and what is scored in the end is the argmax.
    """
    counted = labels != ignore_index
    logits = logits.detach()
    label_logit = logits.gather(1, torch.where(counted, labels, 0).unsqueeze(1)).squeeze(1)
    return (label_logit >= logits.amax(1)) & counted


def _cosine(scores: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cosine between the scores of a pixel's classes and onehot(y), (B, H, W)."""
    label_score = scores.gather(1, torch.where(labels == ignore_index, 0, labels).unsqueeze(1)).squeeze(1)
    # sigmoid can underflow to 0 in every class; a zero vector is at right angles to everything.
    cosine: Tensor = label_score / scores.norm(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
    return cosine
