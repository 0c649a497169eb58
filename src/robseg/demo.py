"""The demo: two small models of one architecture and data, trained plainly and adversarially, under SEA."""

from __future__ import annotations

import multiprocessing
import queue
import shutil
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from robseg.loading.model_folder import DESCRIPTION, WEIGHTS
from robseg.loading.model_source import demo_folder
from robseg.records.result import Result, read_result
from robseg.report.page import write_report

EPS = (2.0, 4.0, 8.0)
STEPS = 100
IMAGES = 24
EVALUATION = f"shapes?split=val&count={IMAGES}"


@dataclass(frozen=True)
class Side:
    """One of the two models: its name (also `demo-NAME` for `robseg evaluate`), its title in the report, its recipe."""

    name: str
    title: str
    recipe: str


SIDES = (
    Side("plain", "trained plainly", "demo-plain"),
    Side("robust", "trained adversarially", "demo-robust"),
)


def run_demo(out: Path, console: Console) -> list[Result]:
    """Train and evaluate both models, each in a process of one thread, and write OUT/report.html.

    Returns the results in the order of SIDES. What is already finished in `out` is not made again.
    """
    context = multiprocessing.get_context("spawn")
    bars = Progress(
        TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("{task.fields[stage]}"), console=console,
    )  # fmt: skip
    with context.Manager() as manager, bars, ProcessPoolExecutor(len(SIDES), mp_context=context) as pool:
        messages = manager.Queue()
        tasks = {side.name: bars.add_task(side.title, total=1.0, stage="starting") for side in SIDES}
        running = [pool.submit(run_side, side, out, messages) for side in SIDES]
        while not all(future.done() for future in running) or not messages.empty():
            try:
                name, share, stage = messages.get(timeout=0.2)
            except queue.Empty:
                _raise_first(running)
            else:
                bars.update(tasks[name], completed=share, stage=stage)
        _raise_first(running)
    write_report([(side.title, out / side.name) for side in SIDES], out / "report.html")
    return [read_result(out / side.name) for side in SIDES]


def run_side(side: Side, out: Path, messages: Any) -> None:
    """Train one model if its folder is not there yet, keep it under its name, and evaluate it."""
    import torch

    from robseg.evaluation.evaluate import evaluate

    # Two processes of one thread share two cores well; on a network this small, threads would wait for each other.
    torch.set_num_threads(1)
    model = out / "models" / side.name
    if not (model / "model.yaml").is_file():
        _train(side, model, lambda share, stage: messages.put((side.name, 0.5 * share, stage)))
    kept = demo_folder(f"demo-{side.name}")
    kept.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS, DESCRIPTION):
        shutil.copy(model / file, kept / file)

    def attacking(stage: str, done: float, total: float, note: str) -> None:
        share = 0.5 + 0.5 * done / total if stage == "attacking" else 0.5
        messages.put((side.name, share, f"{stage} {note}"))

    evaluate(
        str(model), EVALUATION,
        eps=EPS, attack="sea", steps=STEPS, out=out / side.name, batch_size=8, device="cpu", progress=attacking,
    )  # fmt: skip
    messages.put((side.name, 1.0, "done"))


def _train(side: Side, folder: Path, tell: Any) -> None:
    from robseg.training.train import train

    def training(stage: str, done: float, total: float, note: str) -> None:
        if done % 10 == 0:
            tell(done / total, f"{stage}, {note}" if note else stage)

    train(side.recipe, out=folder, device="cpu", progress=training, report=False)


def _raise_first(running: list[Future[None]]) -> None:
    for future in running:
        if future.done() and (error := future.exception()) is not None:
            raise error
