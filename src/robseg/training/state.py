"""A training under way: its state in memory and on disk, what is recorded of it, and how it ends before its time."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robseg.data.base import Dataset
from robseg.errors import UserError
from robseg.evaluation.progress import Stages
from robseg.models.sliding import with_window
from robseg.models.wrapper import SegmentationModel
from robseg.records.settings import first_difference
from robseg.training.checkpoints import checkpoints, read_newest, write_checkpoint
from robseg.training.recipes.recipe import Recipe
from robseg.training.run_folder import TrainingFolder, fixed_keys
from robseg.training.schedule import Schedule
from robseg.training.stopping import Stop
from robseg.training.tensorboard import Board
from robseg.training.together import Group
from robseg.training.trainee import Trainee


@dataclass
class Run:
    """model: as it was given; network: its weights; trainee: what is trained through, perhaps compiled, with them.
    labelled: whether a pixel counted so far. step: updates done; written: of the newest state on disk, -1 for none.
    loss: of the last step. validations: lines of metrics.jsonl."""

    recipe: Recipe
    data: Dataset
    validation: Dataset | None
    model: SegmentationModel
    network: nn.Module
    trainee: Trainee
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    schedule: Schedule
    group: Group
    folder: TrainingFolder | None
    stop: Stop
    shown: Stages
    board: Board | None
    class_weights: Tensor | None
    labelled: bool = False
    step: int = 0
    written: int = -1
    loss: float | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)


def write_state(run: Run) -> None:
    """The state after `run.step` steps, unless it is on the disk. Batches and random numbers follow from seed and step,
    so these are all there is to know of them. UserError where the weights are not finite: none such is written."""
    refuse_non_finite(run)
    if run.folder is None or run.written == run.step:
        return
    state = {
        "recipe": fixed_keys(run.recipe.model_dump(mode="json")),
        "network": run.network.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
    }
    write_checkpoint(run.folder.checkpoints, run.step, state)
    run.written = run.step


def restore(run: Run, folder: Path | None) -> None:
    """Load the newest whole state of a folder, if there is any, and forget what was measured after it.

    Damaged ones are reported on stderr. Raises UserError where none is whole, it is of another training, or the
    processes see different ones.
    """
    report = _warn if run.group.rank == 0 else _say_nothing
    state = None if folder is None else read_newest(folder, report)
    if state is not None:
        _load(run, state, f"The state of step {state.get('step')} in {folder}")
    if int(run.group.sum(torch.tensor([float(run.step)]))[0]) != run.step * run.group.count:
        raise UserError(f"The processes see different states in {folder}; it must be a folder that all share.")
    if run.folder is not None:
        lines = run.folder.go_on_from(run.step)
        run.validations = [line for line in lines if "validation" in line]
        run.loss = next((line["loss"] for line in reversed(lines) if "loss" in line), None)
    if run.group.count > 1:
        # Only the first process reads the record; all must know which validations are done.
        found = [run.validations]
        torch.distributed.broadcast_object_list(found, 0, device=run.group.device)
        run.validations = found[0]


def _load(run: Run, state: dict[str, Any], what: str) -> None:
    found = first_difference(state.get("recipe"), fixed_keys(run.recipe.model_dump(mode="json")))
    if found is not None:
        raise UserError(
            f"{what} is of another training ({found[0] or 'recipe'} is {found[1]} there and {found[2]} here); remove "
            "it, or choose another --out."
        )
    try:
        run.network.load_state_dict(state["network"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.scaler.load_state_dict(state["scaler"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        run.step = run.written = state["step"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        # What torch says of weights of another network fills a page.
        raise UserError(f"{what} does not fit this network; remove it, or choose another --out.") from error


def save_model(run: Run, place: str, validation: dict[str, Any] | None) -> None:
    """Write the model as it is now into the run's folder or one in it; where averaged weights are kept, these."""
    if run.folder is None:
        return
    training: dict[str, Any] = {"step": run.step, "of": run.schedule.steps, "seed": run.recipe.seed}
    training |= {"weights": "averaged" if run.average is not None else "last", "method": run.recipe.method}
    if run.loss is not None:
        training["final_loss"] = run.loss
    if validation is not None and validation["step"] == run.step:
        found = validation["validation"]
        training["validation"] = {"criterion": found["criterion"], "value": found["value"]}
    run.folder.save(judged(run), place, training)


def judged_model(run: Run) -> SegmentationModel:
    """`judged` with all that is around it in a validation."""
    mean, std = run.model.normalisation()
    model = SegmentationModel(judged(run), mean=mean, std=std, output=run.model.output, precision=run.recipe.precision)
    window = run.recipe.validation.window
    return (model if window is None else with_window(model, window)).to(run.group.device)


def judged(run: Run) -> nn.Module:
    """The network that is validated and saved."""
    return run.network if run.average is None else run.average.module


def record(run: Run, line: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl, and to TensorBoard's files where asked for."""
    if run.folder is not None:
        run.folder.log(line)
    if run.board is not None:
        run.board.add(line)


def leave(run: Run) -> None:
    """Write a state and end the process."""
    write_state(run)
    run.group.wait()
    if run.group.rank == 0:
        kept = f"; its state is in {run.folder.path}" if run.folder is not None else ""
        print(f"stopped after step {run.step} of {run.schedule.steps}{kept}", file=sys.stderr)
    run.stop.leave()


def diverged(run: Run, what: str, step: int) -> UserError:
    """The error that ends a training whose numbers are none; step: the number of the update that shows it, from 1."""
    kept = [] if run.folder is None else [one for one, _ in checkpoints(run.folder.checkpoints) if one < step]
    good = f"{run.folder.checkpoints} holds step {kept[-1]}" if run.folder is not None and kept else "none"
    return UserError(
        f"The training diverged: {what} at step {step}, rate {run.schedule.rate(step - 1):.3g}; last good checkpoint: "
        f"{good}; begin anew with a lower optimiser.lr or with optimiser.clip, in another folder."
    )


def refuse_non_finite(run: Run) -> None:
    """UserError where the weights are not finite."""
    if not all(bool(value.isfinite().all()) for value in run.network.state_dict().values()):
        raise UserError(
            f"The training diverged: weights are not finite after step {run.step}; begin anew with a lower "
            "optimiser.lr, in another folder."
        )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _say_nothing(text: str) -> None:
    pass
