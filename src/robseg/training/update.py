"""One step of a training: gradients of a batch in pieces and over all processes, and the optimiser's update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robseg.attacks.objectives import is_right
from robseg.data.base import IGNORE_INDEX
from robseg.data.loader import Batch
from robseg.seeding import derived_seed
from robseg.training.faults import step_faults
from robseg.training.methods import MethodSettings, training_step
from robseg.training.schedule import eps_share
from robseg.training.setup import autocast
from robseg.training.state import Run, diverged


def update(run: Run, batch: Batch, pieces: int) -> dict[str, Any]:
    """One update on a batch, in `pieces` whose gradients are added up; what there is to say of it.

    Raises UserError where the loss or a gradient is no number, with the weights as they were, and where the memory or
    the pieces do not suffice.
    """
    recipe, group = run.recipe, run.group
    rate = run.schedule.rate(run.step)
    counted = group.sum((batch.labels != IGNORE_INDEX).sum().float())
    all_pieces = pieces * group.count
    settings = MethodSettings(recipe.method, recipe.attack, recipe.aux_weight)
    share = eps_share(run.step, round(recipe.eps_warmup * run.schedule.steps))
    sums: dict[str, Tensor] = {}
    run.trainee.train()
    run.optimiser.zero_grad(set_to_none=True)
    for piece in range(pieces):
        # Strided, as between processes: the halves of SAT and DDC-AT are then those of the whole batch.
        rows = slice(piece, None, pieces)
        # Dropout and the like know only the global generator.
        torch.manual_seed(derived_seed(recipe.seed, "training step", str(run.step), str(group.rank), str(piece)))
        with step_faults(len(batch.keys) // pieces, recipe.augmentation.crop):
            with autocast(recipe, group.device):
                found = training_step(
                    run.trainee, batch.images[rows], batch.labels[rows], settings,
                    seed=recipe.seed, keys=batch.keys[rows], eps_share=share, class_weights=run.class_weights,
                    counted=counted.clamp_min(1) / all_pieces,
                )  # fmt: skip
            run.scaler.scale(found.loss / all_pieces).backward()  # type: ignore[no-untyped-call]
        right = is_right(found.logits, found.labels).sum().float() * all_pieces
        for name, value in {"loss": found.loss.detach(), **found.parts, "right": right}.items():
            sums[name] = sums.get(name, 0) + value / all_pieces
    parameters = [parameter for group_ in run.optimiser.param_groups for parameter in group_["params"]]
    group.add_gradients(parameters)
    run.scaler.unscale_(run.optimiser)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    totals = group.sum(torch.stack([value.float() for value in sums.values()]))
    *values, pixels, gradient = torch.cat([totals, counted.view(1), norm.view(1)]).tolist()
    known = dict(zip(sums, values, strict=True))
    run.labelled = run.labelled or pixels > 0
    # A scaler that overflows skips the step and lowers its scale; the loss is finite then.
    if not math.isfinite(known["loss"]) or not (math.isfinite(gradient) or run.scaler.is_enabled()):
        what = "loss" if not math.isfinite(known["loss"]) else "gradient"
        raise diverged(run, f"the {what} is {known['loss'] if what == 'loss' else gradient}", run.step + 1)
    if recipe.optimiser.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.optimiser.clip, norm)
    for settings_of in run.optimiser.param_groups:
        settings_of["lr"] = rate * settings_of["rate"]
    run.scaler.step(run.optimiser)
    run.scaler.update()
    if run.average is not None:
        run.average.update_parameters(run.network)
    epoch = (run.step + 1) * recipe.batch_size / len(run.data)
    accuracy = known.pop("right") / max(pixels, 1)
    return {
        "step": run.step + 1, "epoch": round(epoch, 4), "loss": known.pop("loss"), "parts": known,
        "accuracy": round(accuracy, 6), "rate": rate, "gradient": gradient if math.isfinite(gradient) else None,
    }  # fmt: skip
