"""What every attack shares: the problem it solves, one look at a point, its result, and the check of that result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor, nn

from robseg.attacks.objectives import OBJECTIVES, Objective, ce, is_right, objective_arguments
from robseg.attacks.threat import THREATS, Threat
from robseg.errors import unknown_name
from robseg.models.modes import attack_mode
from robseg.seeding import image_generator

Model = Callable[[Tensor], Tensor]
Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for each image of a batch.

    adversarial: (B, 3, H, W), the point with the fewest counted pixels right (for methods that keep the last
        iterate, that one).
    accuracy: (B,) float64, share of counted pixels right at `adversarial`; NaN for an image with no counted pixel,
        which is returned as it came.
    best_loss, best_loss_adversarial: (B,) and (B, 3, H, W), the highest tracked loss (mean over H*W) and its point.
    forward_passes, backward_passes: (B,) int64, how often each image went through the model.
    invalid_points: (B,) int64, how many points gave a NaN or infinite loss; such a point is never taken as a result.
    """

    adversarial: Tensor
    accuracy: Tensor
    best_loss: Tensor
    best_loss_adversarial: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    invalid_points: Tensor


NEVER = torch.iinfo(torch.int64).max
"""Stands for the pixels right at a point where the model's answer is no number: more than any image has."""


class Look(NamedTuple):
    """The model's answer at one point per image: tracked loss, pixels right, gradient of the objective, validity.

    Where it is not valid the loss is -inf, the pixels right are NEVER, and the gradient is 0 where it is no number.
    """

    tracked: Tensor
    correct: Tensor
    gradient: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Problem:
    """The images under attack with all that decides how good a perturbation of them is."""

    model: Model
    images: Tensor
    labels: Tensor
    objective: Objective
    tracked: Objective
    class_weights: Tensor | None
    threat: Threat
    ignore_index: int
    highest_label: int

    def select(self, rows: Tensor) -> Problem:
        """The same problem for some of the images."""
        weights = self.class_weights
        if weights is not None and weights.dim() == 2:
            weights = weights[rows]
        return replace(self, images=self.images[rows], labels=self.labels[rows], class_weights=weights)

    def counted(self) -> Tensor:
        """Pixels of each image that count, (B,) int64."""
        return (self.labels != self.ignore_index).flatten(1).sum(1)

    def look(self, points: Tensor, *, progress: float, gradient: bool) -> Look:
        """One forward pass at `points`, and one backward pass where the gradient is wanted.

        The gradient is that of the summed, not the mean, per-pixel loss: steps use its direction alone, and the
        mean's small values would underflow in half precision.
        """
        with torch.set_grad_enabled(gradient):
            points = points.detach().requires_grad_(gradient)
            logits = self.model(points)
            self.check(logits, points)
            known: dict[str, Any] = {"ignore_index": self.ignore_index, "class_weights": self.class_weights}
            known |= {"progress": progress, "right": is_right(logits, self.labels, ignore_index=self.ignore_index)}
            if "cross_entropy" in objective_arguments(self.objective) or ce in (self.objective, self.tracked):
                known["cross_entropy"] = ce(logits, self.labels, ignore_index=self.ignore_index)
            per_pixel = _value(self.objective, logits, self.labels, known)
        with torch.no_grad():
            same = self.tracked is self.objective
            tracked = per_pixel if same else _value(self.tracked, logits, self.labels, known)
            tracked = tracked.detach().flatten(1).mean(1)
            # A NaN answer is the model breaking down, not an attack succeeding, even where no pixel counts; one sum
            # is cheaper than a look at every logit.
            valid = tracked.isfinite() & logits.detach().sum((1, 2, 3), dtype=tracked.dtype).isfinite()
            correct = torch.where(valid, known["right"].flatten(1).sum(1), NEVER)
        # The backward pass reuses the memory of the logits, which are the largest tensor here.
        del logits, known
        slope = _slope(per_pixel, points) if gradient else torch.zeros_like(points)
        return Look(torch.where(valid, tracked, -math.inf), correct, slope, valid)

    def check(self, logits: Tensor, points: Tensor) -> None:
        """ValueError unless the logits are what the labels and class weights ask for."""
        check_logits(logits, points)
        classes = logits.shape[1]
        if self.highest_label >= classes:
            raise ValueError(f"labels hold {self.highest_label}, but the model gives {classes} classes")
        if self.class_weights is not None and self.class_weights.shape[-1] != classes:
            raise ValueError(
                f"class_weights are for {self.class_weights.shape[-1]} classes, but the model gives {classes}"
            )

    def gradient(self, points: Tensor, *, progress: float) -> Tensor:
        """The gradient that `look` finds, by the same two passes and without judging the points."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = self.model(points)
            self.check(logits, points)
            known: dict[str, Any] = {"ignore_index": self.ignore_index, "class_weights": self.class_weights}
            per_pixel = _value(self.objective, logits, self.labels, known | {"progress": progress})
        return _slope(per_pixel, points)


def _slope(per_pixel: Tensor, points: Tensor) -> Tensor:
    """The gradient of the summed loss; 0 where it is no number."""
    if not per_pixel.requires_grad:
        # A model that cuts the graph, or part of it, has gradient zero there: the checks before a run warn of it.
        return torch.zeros_like(points)
    (found,) = torch.autograd.grad(per_pixel.sum(), points, allow_unused=True)
    return torch.zeros_like(points) if found is None else found.nan_to_num(0, 0, 0)


def _value(objective: Objective, logits: Tensor, labels: Tensor, known: Mapping[str, Any]) -> Tensor:
    """An objective with those of the known arguments that it declares; CE where it is known is not computed again."""
    if objective is ce and "cross_entropy" in known:
        found: Tensor = known["cross_entropy"]
        return found
    wanted = objective_arguments(objective) & known.keys()
    return objective(logits, labels, **{name: known[name] for name in wanted})


def make_problem(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    objective: str | Objective,
    tracked: str | Objective | None,
    class_weights: Tensor | None,
    threat: str | Threat,
    ignore_index: int,
) -> Problem:
    """Check what the caller of an attack gave and bind it together; ValueError says what is wrong."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (B, 3, H, W) floats, got {tuple(images.shape)} of {images.dtype}")
    if labels.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(
            f"labels must be (B, H, W) like the images, got {tuple(labels.shape)} for {tuple(images.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    labels = labels.long()
    known = labels[labels != ignore_index]
    if known.numel() and int(known.min()) < 0:
        raise ValueError(f"labels must be 0 or more, or {ignore_index} where ignored, got {int(known.min())}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("images must lie in [0, 1]; normalisation belongs inside the model (SegmentationModel)")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a finite number >= 0, got {eps}")
    objective = find_objective(objective)
    tracked = objective if tracked is None else find_objective(tracked)
    wanted = objective_arguments(objective) | objective_arguments(tracked)
    if "class_weights" in wanted and class_weights is None:
        raise ValueError("this objective needs class_weights, (C,) or (B, C); see inverse_frequency_weights")
    if isinstance(threat, str):
        if threat not in THREATS:
            raise unknown_name("threat model", threat, THREATS)
        threat = THREATS[threat]
    if class_weights is not None:
        class_weights = class_weights.to(images.device, images.dtype)
        if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
            raise ValueError("class_weights must be finite numbers of 0 or more")
    highest = int(known.max()) if known.numel() else -1
    return Problem(model, images, labels, objective, tracked, class_weights, threat, ignore_index, highest)


def shares_right(problem: Problem, points: Tensor, correct: Tensor, forward_passes: Tensor) -> Tensor:
    """Shares of counted pixels right (B,) float64 at what an attack returns; NaN where none counts.

    correct: pixels right, (B,), NEVER where no valid point was seen. Such an image comes back as it stands in `points`,
    at which one look more, added to its `forward_passes`, tells; where even that is no number, every pixel is taken
    for right.
    """
    counted = problem.counted()
    unseen = (correct == NEVER) & (counted > 0)
    if bool(unseen.any()):
        rows = unseen.nonzero().flatten()
        seen = problem.select(rows).look(points[rows], progress=0.0, gradient=False).correct
        correct = correct.index_copy(0, rows, torch.minimum(seen, counted[rows]))
        forward_passes += unseen
    return torch.where(counted > 0, correct / counted.clamp_min(1).double(), torch.nan)


def loss_type(images: Tensor) -> torch.dtype:
    """In what losses of images are kept: float32 also for narrower images."""
    return torch.promote_types(images.dtype, torch.float32)


def find_objective(objective: str | Objective) -> Objective:
    """An objective by name; a function is returned as it is. UserError names the near ones."""
    if not isinstance(objective, str):
        return objective
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]


def objective_name(objective: str | Objective) -> str:
    """What an objective is called in the streams of random numbers."""
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "custom")


def generators(seed: int, image_ids: Sequence[str] | None, count: int, stream: str) -> list[Generator]:
    """One generator per image; without ids, images are known by their position in the batch."""
    ids = [str(i) for i in range(count)] if image_ids is None else list(image_ids)
    if len(ids) != count:
        raise ValueError(f"{len(ids)} image ids for {count} images")
    return [image_generator(seed, image_id, stream) for image_id in ids]


def in_own_mode(attack: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """The attack with gradients, whatever its caller has switched off: `torch.no_grad` or `torch.inference_mode`."""

    @functools.wraps(attack)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Found:
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode cannot be differentiated through; copies of them can.
            copied = [_usable(value) for value in arguments]
            return attack(*copied, **{key: _usable(value) for key, value in named.items()})  # type: ignore[arg-type]

    return run


def _usable(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def attacked(model: Model) -> AbstractContextManager[None]:
    """Evaluation mode and frozen parameters for the time of an attack, where the model is a module."""
    return attack_mode(model) if isinstance(model, nn.Module) else nullcontext()


def check_logits(logits: Tensor, images: Tensor) -> None:
    """ValueError unless the logits are (B, C, H, W) at the images' size."""
    if logits.dim() != 4 or logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"the model gave {tuple(logits.shape)} for images {tuple(images.shape)}; logits must be (B, C, H, W) at "
            "the images' size: wrap the network in robseg.SegmentationModel, which resizes them"
        )


def check_perturbation(images: Tensor, adversarial: Tensor, eps: float, threat: Threat) -> None:
    """RuntimeError unless `adversarial` is finite, in [0, 1] and within eps of `images`, up to float rounding."""
    if not bool(adversarial.isfinite().all()):
        raise RuntimeError("an adversarial image holds NaN or infinity")
    if adversarial.numel() and not (adversarial.min() >= 0 and adversarial.max() <= 1):
        raise RuntimeError(f"adversarial values leave [0, 1]: {adversarial.min():.6g} to {adversarial.max():.6g}")
    size = threat.size((adversarial - images).double())
    # Differences of numbers in [0, 1] are off by at most half an ulp of 1 each; a norm adds relative rounding.
    slack = torch.finfo(images.dtype).eps
    if bool((size > eps * (1 + 1e-5) + 2 * slack).any()):
        raise RuntimeError(f"a perturbation of {threat.name} size {size.max():.6g} exceeds eps = {eps:.6g}")
