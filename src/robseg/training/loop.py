"""The training loop: a batch, its adversarial images, their loss, a step; and states on disk to go on from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robseg.data.base import Dataset
from robseg.data.loader import Batch, training_batches
from robseg.errors import UserError
from robseg.evaluation.progress import Listener, stages
from robseg.models.wrapper import SegmentationModel
from robseg.records.training_run import BEST
from robseg.training.batch_norm import share_batch_norm
from robseg.training.ema import averaged
from robseg.training.faults import loader_faults
from robseg.training.recipes.recipe import Recipe
from robseg.training.run_folder import TrainingFolder
from robseg.training.schedule import Schedule
from robseg.training.setup import (
    arithmetic,
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
    judged_model,
    leave,
    record,
    restore,
    save_model,
    write_state,
)
from robseg.training.stopping import deaf_children, stop_on_signals
from robseg.training.tensorboard import Board
from robseg.training.together import Group
from robseg.training.trainee import Trainee
from robseg.training.update import update
from robseg.training.validate import Interrupted, NotFinite, check_first, validate


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
        with loader_faults():
            _train(run, pieces)
    network.eval()
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
    if run.validation is not None and due:
        check_first(judged_model(run), run.validation, group.device)
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
        line = update(run, batch, pieces)
        run.step, run.loss = run.step + 1, line["loss"]
        if not run.labelled and (run.step - first) * recipe.batch_size >= len(run.data):
            raise UserError(f"No image of the training data '{run.data.name}' has a labelled pixel to learn from.")
        if run.step < steps:
            batch = _next(run, batches)
        speed = recipe.batch_size / (time.perf_counter() - begun)
        pace = speed if pace == 0 else 0.9 * pace + 0.1 * speed
        record(run, {**line, "images_per_s": round(speed, 2)})
        run.shown.show(run.step - first, f"loss {line['loss']:.3f}, rate {line['rate']:.2e}, {pace:.3g} images/s")
        if time.monotonic() - saved >= 60 * recipe.checkpoint_minutes:
            write_state(run)
            saved = time.monotonic()
    write_state(run)
    save_model(run, "", run.validations[-1] if run.validations else None)


def _next(run: Run, batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except RuntimeError:
        # Between two steps there is a state to keep; torch may raise in the midst of one, too.
        write_state(run)
        raise


def _validate(run: Run) -> None:
    """A pass over the validation set, its record, and the best model."""
    assert run.validation is not None
    recipe, settings = run.recipe, run.recipe.validation
    run.group.share_buffers(judged(run))
    model = judged_model(run)
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
    except NotFinite:
        raise diverged(run, "the logits of the validation are not finite", run.step) from None
    if found["clean"]["aacc"] is None:
        raise UserError(f"No image of the validation data '{run.validation.name}' has a labelled pixel.")
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
