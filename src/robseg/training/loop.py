"""The training loop: a batch, its adversarial images, their loss, a step; and states on disk to go on from."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robseg.attacks.objectives import is_right
from robseg.data.base import IGNORE_INDEX, Dataset
from robseg.data.loader import Batch, training_batches
from robseg.evaluation.progress import Listener, stages
from robseg.models.sliding import with_window
from robseg.models.wrapper import SegmentationModel
from robseg.records.training_run import BEST
from robseg.seeding import derived_seed
from robseg.training.batch_norm import share_batch_norm
from robseg.training.ema import averaged
from robseg.training.methods import MethodSettings, training_step
from robseg.training.recipe import Recipe
from robseg.training.run_folder import TrainingFolder
from robseg.training.schedule import Schedule, eps_share
from robseg.training.setup import (
    arithmetic,
    autocast,
    check_outputs,
    make_optimiser,
    objective_weights,
    pieces_of,
    validation_steps,
)
from robseg.training.state import (
    Run,
    diverged,
    judged,
    leave,
    record,
    refuse_non_finite,
    restore,
    save_model,
    write_state,
)
from robseg.training.stopping import deaf_children, stop_on_signals
from robseg.training.tensorboard import Board
from robseg.training.together import Group
from robseg.training.trainee import Trainee
from robseg.training.validate import Interrupted, validate


@dataclass(frozen=True)
class Trained:
    """What came out: steps done, the loss of the last one (None where there was none to do), and the last and the best
    validation as in metrics.jsonl, each with its step (None without validation)."""

    steps: int
    loss: float | None
    validation: dict[str, Any] | None
    best: dict[str, Any] | None


def fit(
    model: SegmentationModel,
    data: Dataset,
    recipe: Recipe,
    *,
    group: Group,
    validation: Dataset | None = None,
    folder: TrainingFolder | None = None,
    checkpoints: Path | None = None,
    progress: bool | Listener = False,
) -> Trained:
    """Train the network of `model` in place as a recipe says, of which `data` and `model` are not read; it is left in
    evaluation mode.

    model: its network may be anything that `Trainee` takes. data, validation: labels of 0..C-1 or 255; one list of
    classes. folder: where states, measurements and models are written, of the first process alone. checkpoints: the
    folder of the states to go on from, for all processes; None: begin anew.

    Randomness comes from the recipe's seed, the step and the ids of images; the global generators stay as they were.
    SIGTERM and Ctrl-C write a state and then end the process as ever. Raises UserError where the loss or a gradient is
    no number, where network, data, recipe and processes do not fit, and as the data set and the disk do.
    """
    pieces = pieces_of(recipe, group)
    device, steps = group.device, recipe.total_steps(len(data))
    network = model.network
    network.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)  # type: ignore[call-overload]
    if group.count > 1 and recipe.sync_batch_norm:
        network = share_batch_norm(network, device)
    trainee = Trainee(network, *model.normalisation(), model.output).to(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(arithmetic(recipe))
        run = Run(
            recipe, data, validation, model, network, trainee, make_optimiser(network, recipe),
            torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
            None if recipe.ema is None else averaged(network, recipe.ema),
            Schedule(recipe.optimiser.lr, steps, warmup=round(recipe.schedule.warmup * steps),
                     **recipe.schedule.model_dump(exclude={"warmup"})),
            group, folder, stack.enter_context(stop_on_signals()),
            stack.enter_context(stages(progress if group.rank == 0 else False)),
            stack.enter_context(Board.open(folder.path)) if folder is not None and recipe.tensorboard else None,
            objective_weights(recipe, data, device),
        )  # fmt: skip
        restore(run, checkpoints)
        if recipe.compile is not None:
            trainee.network = torch.compile(network, mode=recipe.compile)  # type: ignore[assignment]
        _train(run, pieces)
    network.eval()
    refuse_non_finite(run)
    if run.average is not None:
        # What is saved and judged is what the caller gets.
        network.load_state_dict(run.average.module.state_dict())
    best = max((line for line in run.validations if line["validation"]["best"]), key=_step_of, default=None)
    return Trained(run.step, run.loss, run.validations[-1] if run.validations else None, best)


def _train(run: Run, pieces: int) -> None:
    """All steps that are left."""
    recipe, group, steps = run.recipe, run.group, run.schedule.steps
    batches = training_batches(
        run.data, recipe.augmentation, recipe.batch_size,
        seed=recipe.seed, first=run.step, rank=group.rank, processes=group.count, workers=recipe.workers,
        device=group.device,
    )  # fmt: skip
    due = validation_steps(recipe, steps) if run.validation is not None else set()
    saved = time.monotonic()
    first, pace = run.step, 0.0
    label = "training" if first == 0 else f"training from step {first}"
    run.shown.begin(label, steps - first)
    with deaf_children():
        batch = next(batches)
    check_outputs(run.trainee, batch.images[:1], run.data)
    while True:
        if run.step in due and run.step not in {entry["step"] for entry in run.validations}:
            write_state(run)
            _validate(run)
            run.shown.begin(label, steps - first)
            saved = time.monotonic()
        if run.step >= steps:
            break
        if group.any(run.stop.asked is not None):
            leave(run)
        begun = time.perf_counter()
        line = _step(run, batch, pieces)
        run.step, run.loss = run.step + 1, line["loss"]
        if run.step < steps:
            batch = next(batches)
        speed = recipe.batch_size / (time.perf_counter() - begun)
        pace = speed if pace == 0 else 0.9 * pace + 0.1 * speed
        record(run, {**line, "images_per_s": round(speed, 2)})
        run.shown.show(run.step - first, f"loss {line['loss']:.3f}, rate {line['rate']:.2e}, {pace:.3g} images/s")
        if time.monotonic() - saved >= 60 * recipe.checkpoint_minutes:
            write_state(run)
            saved = time.monotonic()
    write_state(run)
    save_model(run, "", run.validations[-1] if run.validations else None)


def _step(run: Run, batch: Batch, pieces: int) -> dict[str, Any]:
    """One update on a batch, in `pieces` whose gradients are added up; what there is to say of it."""
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
    # A scaler that overflows skips the step and lowers its scale; the loss is finite then.
    if not math.isfinite(known["loss"]) or not (math.isfinite(gradient) or run.scaler.is_enabled()):
        what = "loss" if not math.isfinite(known["loss"]) else "gradient"
        raise diverged(run, f"the {what} is {known['loss'] if what == 'loss' else gradient}", rate)
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


def _validate(run: Run) -> None:
    """A pass over the validation set, its record, and the best model."""
    assert run.validation is not None
    recipe, settings = run.recipe, run.recipe.validation
    run.group.share_buffers(judged(run))
    mean, std = run.model.normalisation()
    model = SegmentationModel(judged(run), mean=mean, std=std, output=run.model.output, precision=recipe.precision)
    if settings.window is not None:
        model = with_window(model, settings.window)
    model.to(run.group.device)
    run.shown.begin("validating", len(run.validation))
    try:
        found, pictures = validate(
            model, run.validation,
            attack=settings.config(), eps=settings.eps, batch_size=settings.batch_size, samples=settings.samples,
            seed=recipe.seed, group=run.group, class_weights=run.class_weights,
            stop=lambda: run.stop.asked is not None, done=run.shown.show,
        )  # fmt: skip
    except Interrupted:
        leave(run)
    condition, measure = recipe.criterion.split(".")
    value = (found[condition] or {}).get(measure)
    before = [entry["validation"]["value"] for entry in run.validations]
    best = value is not None and all(old is None or value > old for old in before)
    found |= {"criterion": recipe.criterion, "value": value, "best": best}
    epoch = run.step * recipe.batch_size / len(run.data)
    line = {"step": run.step, "epoch": round(epoch, 4), "validation": found}
    if run.folder is not None:
        run.folder.save_samples(pictures)
        for place in (*((BEST,) if best else ()), ""):
            save_model(run, place, line)
        if run.board is not None:
            run.board.add_pictures(run.step, pictures, run.data.classes)
    record(run, line)
    run.validations.append(line)


def _step_of(line: dict[str, Any]) -> int:
    step: int = line["step"]
    return step
