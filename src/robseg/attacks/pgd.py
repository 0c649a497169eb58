"""Plain projected gradient ascent: FGSM, BIM and PGD, and with their objectives SegPGD and CosPGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robseg.attacks.objectives import Objective
from robseg.attacks.problem import (
    NEVER,
    AttackResult,
    Model,
    Problem,
    attacked,
    check_perturbation,
    generators,
    in_own_mode,
    loss_type,
    make_problem,
    objective_name,
    shares_right,
)
from robseg.attacks.threat import Threat

Keep = Literal["best", "last"]


@in_own_mode
def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    objective: str | Objective = "ce",
    threat: str | Threat = "linf",
    random_start: bool = True,
    keep: Keep = "best",
    restarts: int = 1,
    class_weights: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> AttackResult:
    """Projected gradient ascent with a constant step (arXiv 1706.06083); SegPGD and CosPGD with their objectives.

    model, images, labels, eps, objective, class_weights: as in `robseg.apgd`. alpha: step size in the images' units.
    steps: they cost steps + 1 forward and `steps` backward passes a restart.
    keep: "best" returns the point with the fewest counted pixels right, "last" the last iterate, as most published
        code does (the better of the restarts either way).
    random_start: from a uniform point of the ball drawn from (seed, image id, objective, restart).

    The tracked loss is the objective. Raises ValueError for arguments that do not fit together, RuntimeError if a
    result left its ball.
    """
    problem = make_problem(
        model, images, labels,
        eps=eps, objective=objective, tracked=None, class_weights=class_weights, threat=threat,
        ignore_index=ignore_index,
    )  # fmt: skip
    if steps < 1 or restarts < 1 or not alpha >= 0:
        raise ValueError(f"steps and restarts must be at least 1 and alpha >= 0, got {steps}, {restarts}, {alpha}")
    if restarts > 1 and not random_start:
        raise ValueError("restarts without a random start would all be the same run")
    counted = problem.counted()
    best_point, best_loss_point = images.clone(), images.clone()
    correct, best_loss = torch.full_like(counted, NEVER), torch.full_like(counted, -torch.inf, dtype=loss_type(images))
    forward, backward, invalid = (torch.zeros_like(counted) for _ in range(3))
    with attacked(model):
        for restart in range(restarts):
            point = _random_point(problem, eps, objective, restart, seed, image_ids) if random_start else images
            last, last_correct = images, torch.full_like(counted, NEVER)
            for i in range(steps + 1):
                look = problem.look(point, progress=i / steps, gradient=i < steps)
                forward += counted > 0
                backward += (counted > 0) & (i < steps)
                invalid += ~look.valid
                # The last iterate is the last at which the model's answer was a number.
                last = torch.where(look.valid.view(-1, 1, 1, 1), point, last)
                last_correct = torch.where(look.valid, look.correct, last_correct)
                if keep == "best" or i == steps:
                    seen = look.correct if keep == "best" else last_correct
                    fewer = (seen <= correct) & (seen < NEVER) & (counted > 0)
                    correct = torch.where(fewer, seen, correct)
                    taken = point if keep == "best" else last
                    best_point = torch.where(fewer.view(-1, 1, 1, 1), taken, best_point)
                tracked = look.tracked.to(best_loss.dtype)
                higher = tracked > best_loss
                best_loss = torch.where(higher, tracked, best_loss)
                best_loss_point = torch.where(higher.view(-1, 1, 1, 1), point, best_loss_point)
                if i < steps:
                    point = _moved(problem, point, look.gradient, eps, alpha)
        accuracy = shares_right(problem, best_point, correct, forward)
    check_perturbation(images, best_point, eps, problem.threat)
    return AttackResult(best_point, accuracy, best_loss, best_loss_point, forward, backward, invalid)


@in_own_mode
def ascend(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    objective: str | Objective = "ce",
    threat: str | Threat = "linf",
    random_start: bool = True,
    class_weights: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """The last iterate of `pgd`, (B, 3, H, W), without a look at how good it is: what training needs of an attack.

    It costs `steps` forward and `steps` backward passes. Arguments and what is raised as in `pgd`.
    """
    problem = make_problem(
        model, images, labels,
        eps=eps, objective=objective, tracked=None, class_weights=class_weights, threat=threat,
        ignore_index=ignore_index,
    )  # fmt: skip
    if steps < 1 or not alpha >= 0:
        raise ValueError(f"steps must be at least 1 and alpha >= 0, got {steps}, {alpha}")
    point = _random_point(problem, eps, objective, 0, seed, image_ids) if random_start else images
    with attacked(model):
        for i in range(steps):
            gradient = problem.gradient(point, progress=i / steps)
            point = _moved(problem, point, gradient, eps, alpha)
    check_perturbation(images, point, eps, problem.threat)
    return point


def _random_point(
    problem: Problem, eps: float, objective: str | Objective, restart: int, seed: int, image_ids: Sequence[str] | None
) -> Tensor:
    stream = f"pgd/{objective_name(objective)}/restart {restart}"
    draws = generators(seed, image_ids, len(problem.images), stream)
    return problem.threat.random_point(problem.images, eps, draws)


def _moved(problem: Problem, point: Tensor, gradient: Tensor, eps: float, alpha: float) -> Tensor:
    return problem.threat.project(problem.images, point + alpha * problem.threat.steepest(gradient), eps)


def fgsm(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    objective: str | Objective = "ce",
    threat: str | Threat = "linf",
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> AttackResult:
    """Fast gradient sign method (arXiv 1412.6572): one step of length eps from the image."""
    return pgd(
        model, images, labels,
        eps=eps, alpha=eps, steps=1, objective=objective, threat=threat, random_start=False, keep="last",
        class_weights=class_weights, ignore_index=ignore_index,
    )  # fmt: skip


def bim(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.03,
    alpha: float = 0.01,
    steps: int = 2,
    objective: str | Objective = "ce",
    threat: str | Threat = "linf",
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> AttackResult:
    """Basic iterative method (arXiv 1607.02533): PGD from the image itself that returns its last iterate.

    The defaults are those of the test of DDC-AT (arXiv 2003.06555): 2 steps of 0.01 within 0.03.
    """
    return pgd(
        model, images, labels,
        eps=eps, alpha=alpha, steps=steps, objective=objective, threat=threat, random_start=False, keep="last",
        class_weights=class_weights, ignore_index=ignore_index,
    )  # fmt: skip
