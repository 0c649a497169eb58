"""APGD (arXiv 2003.01690) for segmentation, with constant and reduced radius (arXiv 2306.12941)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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

Radius = Literal["constant", "reduced"]

REDUCED_STAGES = ((0.3, 2.0), (0.3, 1.5), (None, 1.0))
"""Share of the steps and multiple of eps of each stage of the reduced radius; None takes what is left."""


@in_own_mode
def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    objective: str | Objective = "ce",
    tracked: str | Objective | None = None,
    steps: int = 100,
    radius: Radius = "constant",
    threat: str | Threat = "linf",
    random_start: bool = True,
    start: Tensor | None = None,
    restarts: int = 1,
    class_weights: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> AttackResult:
    """Auto-PGD: signed steps with momentum, halved where a checkpoint finds no progress (arXiv 2003.01690).

    model: (B, 3, H, W) in [0, 1] -> logits (B, C, H, W). images: float, in [0, 1]. labels: (B, H, W) int64.
    eps: radius in the images' units (4/255). steps: gradient steps in all; they cost one forward and one backward
        pass each, and one forward pass more a stage (one stage, or three with the reduced radius).
    objective: what is maximised; tracked: what decides restarts from the best point (None: the objective itself;
        the published ensemble tracks "ce").
    radius: "constant", or "reduced": 30 % of the steps at 2 eps, 30 % at 1.5 eps, the rest at eps.
    random_start: from a uniform point of the (first stage's) ball, drawn from (seed, image id, objective, restart);
        else from `start` (B, 3, H, W), projected into the ball, or from the image itself.
    restarts: independent runs, the best per image is kept; more than one needs the random start.
    class_weights: (C,), or (B, C) with a row per image, for objectives that use them.

    Each image is attacked as if it were alone; one whose counted pixels are all wrong leaves the batch. Raises
    ValueError for arguments that do not fit together, RuntimeError if a result left its ball.
    """
    problem = make_problem(
        model, images, labels,
        eps=eps, objective=objective, tracked=tracked, class_weights=class_weights, threat=threat,
        ignore_index=ignore_index,
    )  # fmt: skip
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    if radius not in ("constant", "reduced"):
        raise ValueError(f"radius must be 'constant' or 'reduced', got '{radius}'")
    if start is not None and (random_start or start.shape != images.shape):
        raise ValueError("a given start needs random_start=False and the images' shape")
    if restarts > 1 and not random_start:
        raise ValueError("restarts without a random start would all be the same run")

    counted = problem.counted()
    best = _Best.at(problem, images if start is None else problem.threat.project(images, start, eps))
    stages = _stages(steps, eps, radius) if eps > 0 else [(0, 0.0)]
    with attacked(model):
        for restart in range(restarts):
            rows = ((counted > 0) & (best.correct > 0)).nonzero().flatten()
            if len(rows) == 0:
                break
            part = problem.select(rows)
            if random_start:
                draws = generators(seed, image_ids, len(images), f"apgd/{objective_name(objective)}/restart {restart}")
                point = part.threat.random_point(part.images, stages[0][1], [draws[i] for i in rows.tolist()])
            else:
                point = best.fewest_point[rows]
            best.merge(rows, _run(part, point, stages))
        accuracy = shares_right(problem, best.fewest_point, best.correct, best.forward_passes)
    check_perturbation(images, best.fewest_point, eps, problem.threat)
    return AttackResult(
        best.fewest_point, accuracy, best.loss, best.loss_point,
        best.forward_passes, best.backward_passes, best.invalid_points,
    )  # fmt: skip


def _stages(steps: int, eps: float, radius: Radius) -> list[tuple[int, float]]:
    """(steps, eps) of each stage; a stage too short for one step is left out."""
    if radius == "constant":
        return [(steps, eps)]
    plan: list[tuple[int, float]] = []
    for share, multiple in REDUCED_STAGES:
        plan.append((steps - sum(n for n, _ in plan) if share is None else int(share * steps), multiple * eps))
    return [(n, e) for n, e in plan if n > 0]


@dataclass
class _Best:
    """The best of each image so far: fewest pixels right (the result), and highest tracked loss."""

    fewest_point: Tensor
    correct: Tensor
    loss_point: Tensor
    loss: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    invalid_points: Tensor

    @classmethod
    def at(cls, problem: Problem, point: Tensor) -> _Best:
        """Nothing found yet."""
        correct = torch.full_like(problem.counted(), NEVER)
        none = torch.zeros_like(correct)
        loss = torch.full((len(point),), -torch.inf, dtype=loss_type(point), device=point.device)
        return cls(point.clone(), correct, point.clone(), loss, none.clone(), none.clone(), none.clone())

    def merge(self, rows: Tensor, new: _Best) -> None:
        """Take over, for the images `rows`, what a further run found; on equal accuracy the later point stays."""
        better = (new.correct <= self.correct[rows]) & (new.correct < NEVER)
        self.fewest_point[rows[better]] = new.fewest_point[better]
        self.correct[rows[better]] = new.correct[better]
        higher = new.loss > self.loss[rows]
        self.loss_point[rows[higher]] = new.loss_point[higher]
        self.loss[rows[higher]] = new.loss[higher]
        self.forward_passes[rows] += new.forward_passes
        self.backward_passes[rows] += new.backward_passes
        self.invalid_points[rows] += new.invalid_points


def _run(problem: Problem, point: Tensor, stages: list[tuple[int, float]]) -> _Best:
    """One run through its stages; each starts from the last one's lowest-accuracy point, projected into its ball."""
    spent = torch.zeros(3, len(point), dtype=torch.int64, device=point.device)
    for steps, eps in stages:
        point = problem.threat.project(problem.images, point, eps)
        best = _run_stage(problem, point, eps, steps)
        spent += torch.stack([best.forward_passes, best.backward_passes, best.invalid_points])
        point = best.fewest_point
    best.forward_passes, best.backward_passes, best.invalid_points = spent.unbind()
    return best


@dataclass
class _Path:
    """Where each image that is still in the batch stands. `rows` says which image of the stage it is."""

    rows: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    step: Tensor
    tracked: Tensor
    best_gradient: Tensor
    rises: Tensor
    halved: Tensor
    best_at_checkpoint: Tensor

    def select(self, keep: Tensor) -> _Path:
        return _Path(*(getattr(self, field.name)[keep] for field in fields(self)))


def _run_stage(problem: Problem, start: Tensor, eps: float, steps: int) -> _Best:
    """`steps` steps at radius eps from `start`, with a step-size schedule of their own."""
    everything, best = problem, _Best.at(problem, start)
    path = _first_look(problem, best, start, eps, gradient=steps > 0)
    gap, until_checkpoint = max(int(0.22 * steps), 1), max(int(0.22 * steps), 1)
    for i in range(steps):
        keep = best.correct[path.rows] > 0
        if not bool(keep.all()):
            path = path.select(keep)
            problem = everything.select(path.rows)
        if len(path.rows) == 0:
            break
        _step(problem, best, path, eps, i, steps)
        until_checkpoint -= 1
        if until_checkpoint == 0:
            _checkpoint(best, path, gap)
            gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            until_checkpoint = gap
    return best


def _first_look(problem: Problem, best: _Best, start: Tensor, eps: float, *, gradient: bool) -> _Path:
    look = problem.look(start, progress=0.0, gradient=gradient)
    rows = torch.arange(len(start), device=start.device)
    _remember(best, rows, start, look.tracked, look.correct)
    best.forward_passes += 1
    best.backward_passes += int(gradient)
    best.invalid_points += ~look.valid
    return _Path(
        rows, start, start, look.gradient,
        step=torch.full((len(start), 1, 1, 1), 2 * eps, dtype=start.dtype, device=start.device),
        tracked=look.tracked, best_gradient=look.gradient, rises=torch.zeros_like(rows),
        # Before the first checkpoint there is no last one at which a step could have stayed whole.
        halved=torch.ones_like(rows, dtype=torch.bool), best_at_checkpoint=look.tracked,
    )  # fmt: skip


def _step(problem: Problem, best: _Best, path: _Path, eps: float, i: int, steps: int) -> None:
    """Step i of `steps`: move, look, and note what is better than before."""
    project, x = problem.threat.project, path.point
    z = project(problem.images, x + path.step * problem.threat.steepest(path.gradient), eps)
    if i > 0:
        z = project(problem.images, x + 0.75 * (z - x) + 0.25 * (x - path.previous), eps)
    path.previous, path.point = x, z
    # After the last step nothing follows the gradient.
    gradient = i < steps - 1
    look = problem.look(z, progress=(i + 1) / steps, gradient=gradient)
    higher = _remember(best, path.rows, z, look.tracked, look.correct)
    best.forward_passes[path.rows] += 1
    best.backward_passes[path.rows] += int(gradient)
    best.invalid_points[path.rows] += ~look.valid
    # To the letter of the published code, which keeps its history of losses in float32 (a rise below its resolution
    # is none) and compares the first step with an empty slot (always a rise).
    rose = look.tracked.float() > path.tracked.float() if i > 0 else torch.ones_like(look.valid)
    path.rises = path.rises + rose
    path.tracked, path.gradient = look.tracked, look.gradient
    path.best_gradient = torch.where(higher.view(-1, 1, 1, 1), look.gradient, path.best_gradient)


def _remember(best: _Best, rows: Tensor, point: Tensor, tracked: Tensor, correct: Tensor) -> Tensor:
    """Update both bests; on equal accuracy the later point stays. Returns where the tracked loss is a new high."""
    tracked = tracked.to(best.loss.dtype)
    fewer = (correct <= best.correct[rows]) & (correct < NEVER)
    best.correct[rows] = torch.where(fewer, correct, best.correct[rows])
    best.fewest_point[rows] = torch.where(fewer.view(-1, 1, 1, 1), point, best.fewest_point[rows])
    higher = tracked > best.loss[rows]
    best.loss[rows] = torch.where(higher, tracked, best.loss[rows])
    best.loss_point[rows] = torch.where(higher.view(-1, 1, 1, 1), point, best.loss_point[rows])
    return higher


def _checkpoint(best: _Best, path: _Path, steps_since: int) -> None:
    """Halve the step and go back to the best point where the loss rose too seldom, or a whole step brought nothing."""
    best_loss = best.loss[path.rows]
    seldom = path.rises <= 0.75 * steps_since
    stalled = ~path.halved & (path.best_at_checkpoint >= best_loss)
    path.halved = seldom | stalled
    path.best_at_checkpoint = best_loss
    back = path.halved.view(-1, 1, 1, 1)
    path.step = torch.where(back, path.step / 2, path.step)
    path.point = torch.where(back, best.loss_point[path.rows], path.point)
    path.gradient = torch.where(back, path.best_gradient, path.gradient)
    path.rises = torch.zeros_like(path.rises)
