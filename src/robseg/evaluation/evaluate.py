"""The evaluation of a model: data, model, attacks, records, scores, report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from robseg.attacks.catalogue import AttackConfig, find_attacks
from robseg.data import Dataset
from robseg.errors import UserError
from robseg.evaluation.judge import Batch, Condition, conditions, judge, keep_worst
from robseg.evaluation.prepare import Job, begin, prepare
from robseg.evaluation.processes import join_processes
from robseg.evaluation.progress import Listener, Stages, stages
from robseg.evaluation.scoring import make_result
from robseg.evaluation.survey import batches
from robseg.models.probe import check_answer, probe
from robseg.models.wrapper import Precision
from robseg.records.files import write_text
from robseg.records.result import Result, read_result
from robseg.records.settings import SaveImages
from robseg.report.page import write_report

PROBE_IMAGES = 4


# A caller who has gradients switched off means its own passes, not the attacks.
@torch.inference_mode(False)
@torch.enable_grad()
def evaluate(
    model: str | nn.Module,
    data: str | Dataset | Sequence[Any],
    *,
    eps: float | Sequence[float] = (4, 8),
    attack: str | AttackConfig | Sequence[str | AttackConfig] = "sea",
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    classes: int | None = None,
    steps: int | None = None,
    norm: Literal["linf", "l2"] = "linf",
    limit: int | None = None,
    seed: int = 0,
    train_data: str | Dataset | Sequence[Any] | None = None,
    save_images: SaveImages = "no",
    window: int | None = None,
    long_side: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: Precision | None = None,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool | Listener = True,
) -> Result:
    """Attack a model on a data set, and score it clean, under each attack and in the worst case.

    model: a torch.nn.Module (see `SegmentationModel` for what lies between images and logits) or what the command
        line takes: a name, a folder of a training run, "package.module:factory".
    data: a text such as "camvid:CamVid?split=val", a Dataset, or a sequence of (image, label, id).
    eps: one or several radii in n/255; 0 is the clean image. attack: "sea" and other names of
        `robseg.attacks.catalogue`, with options, or configurations. steps: of every attack, None as published.
    out: the run folder; a run that died there goes on. None: a new temporary folder (`Result.folder` names it).
    checkpoint: weights for the model. classes: number of classes, where the data set does not say it.
    limit: only the first so many images. train_data: where the class weights of mce-bal are counted (else in `data`).
    save_images: "float" or "8bit" keep all adversarial images, the latter rounded and judged as rounded.
    window: predict over sliding windows of so many pixels (stride 2/3, probabilities averaged), all of which one
        adversarial image passes through; long_side scales images to that first, scores are of the original size.
    mean, std: normalisation of the model's input. precision: fp32 (None: the model's own), tf32, bf16, fp16, fp64.
    device: "auto", or a torch device; a model given as an object is moved there.
    batch_size: images attacked together; what is found for an image does not depend on it.
    progress: whether to show a bar on stderr, or a function told (stage, units done, units in all, note).

    Returns the content of result.json. Several processes (accelerate launch, torchrun) share the images. Raises
    UserError, one sentence, for what the caller can mend.
    """
    processes = join_processes(device)
    with ExitStack() as until_done, stages(progress if processes.rank == 0 else False) as shown:
        job = prepare(
            model, data, train_data, processes, shown, out, precision,
            {
                "eps": _radii(eps), "norm": norm,
                "attacks": find_attacks([attack] if isinstance(attack, (str, AttackConfig)) else list(attack), steps),
                "checkpoint": None if checkpoint is None else str(checkpoint), "classes": classes, "limit": limit,
                "seed": seed, "save_images": save_images, "window": window, "long_side": long_side,
                "mean": mean, "std": std, "batch_size": batch_size,
            },
        )  # fmt: skip
        with _float32_arithmetic(tf32=job.settings.precision == "tf32"):
            warnings = _probe(job)
            begin(job, until_done)
            _attack_all(job, shown)
        processes.wait()
        if processes.rank == 0:
            _finish(job, warnings)
        processes.wait()
    return read_result(job.folder.path)


def _radii(eps: Any) -> tuple[float, ...]:
    """One number or several, of whatever library, as floats."""
    try:
        if isinstance(eps, (str, bytes)):
            raise TypeError
        return (float(eps),) if np.ndim(eps) == 0 else tuple(float(radius) for radius in eps)
    except (TypeError, ValueError):
        raise UserError(f"eps is {eps!r}; it must be a number or a list of numbers, in n/255.") from None


def _probe(job: Job) -> list[str]:
    """Check the model on a few images of one size that have counted pixels, and on one image of every other size."""
    plan = batches(job.surveyed.sizes, min(PROBE_IMAGES, max(job.settings.batch_size, 2)))
    wanted = [indices for indices in plan if any(job.surveyed.counted[i] for i in indices)] or plan
    # What an answer owes to the other images of the batch shows in a batch of several.
    chosen = next((indices for indices in wanted if len(indices) > 1), wanted[0])
    classes, seen = len(job.dataset.classes), {job.surveyed.sizes[chosen[0]]}
    for indices in plan:
        if job.surveyed.sizes[indices[0]] not in seen:
            seen.add(job.surveyed.sizes[indices[0]])
            check_answer(job.model, _load(job, indices[:1]).images, classes)
    batch = _load(job, chosen)
    return probe(job.model, batch.images, batch.labels, classes)


def _load(job: Job, indices: Sequence[int]) -> Batch:
    samples = [job.dataset[index] for index in indices]
    dtype = torch.float64 if job.settings.precision == "fp64" else torch.float32
    return Batch(
        torch.stack([sample.image for sample in samples]).to(job.processes.device, dtype),
        torch.stack([sample.label for sample in samples]).to(job.processes.device),
        [sample.id for sample in samples],
        list(indices),
    )


def _attack_all(job: Job, shown: Stages) -> None:
    """Every batch through every condition that is not yet recorded for all of its images."""
    plan = conditions(job.settings)
    mine = batches(job.surveyed.sizes, job.settings.batch_size)[job.processes.rank :: job.processes.count]
    own = {index for indices in mine for index in indices}
    for condition in plan:
        recorded = job.folder.records(condition.name)
        job.accuracies[condition.name] = {i: _accuracy(recorded[i].counts) for i in recorded if i in own}
    shown.begin("attacking", len(own) * len(plan))
    done = sum(len(known) for known in job.accuracies.values())
    shown.show(done, _running(job))
    for indices in mine:
        todo = [c for c in plan if not job.accuracies[c.name].keys() >= set(indices)]
        if not todo:
            continue
        batch = _load(job, indices)
        for condition in todo:
            known = job.accuracies[condition.name]
            missing = len(set(indices) - known.keys())
            with _moving(job, shown, condition, done, missing, len(indices)):
                known |= judge(job.model, batch, condition, job.settings, job.weights, job.folder, set(known))
            done += missing
            shown.show(done, _running(job))
        keep_worst(job.folder, _worst_at(job, job.settings.eps[-1]))


def _accuracy(counts: Any) -> float:
    pixels = int(counts.target.sum())
    return int(counts.intersection.sum()) / pixels if pixels else math.nan


def _worst_at(job: Job, eps: float) -> dict[int, float]:
    """Lowest accuracy over the attacks and the clean image, of the images that went through all of them."""
    tables = [job.accuracies[c.name] for c in conditions(job.settings) if c.attack is None or c.eps == eps]
    common = set.intersection(*(set(table) for table in tables))
    return {index: min(table[index] for table in tables) for index in common}


def _running(job: Job) -> str:
    parts = []
    for eps in job.settings.eps:
        known = [value for value in _worst_at(job, eps).values() if value == value]
        if known:
            parts.append(f"{eps:g}/255: {sum(known) / len(known):.1%}")
    return f"worst-case aAcc {', '.join(parts)}" if parts else ""


@contextmanager
def _moving(job: Job, shown: Stages, condition: Condition, done: float, missing: int, batch: int) -> Iterator[None]:
    """Let the bar move with the forward passes of an attack, which may take minutes."""
    steps = (condition.attack.steps * condition.attack.restarts if condition.attack else 0) + 2
    passes = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal passes
        passes += 1
        shown.show(done + missing * min(passes / steps, 1.0))

    handle = job.model.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _finish(job: Job, warnings: Sequence[str]) -> None:
    result = make_result(
        job.folder, job.settings, job.dataset, job.surveyed, job.model_entry, job.weights_entry,
        job.processes.device, warnings,
    )  # fmt: skip
    worst = {
        image.index: min([image.clean_accuracy, *(a for a in image.radii[-1].accuracy.values() if a is not None)])
        for image in result.images
        if image.clean_accuracy is not None
    }
    keep_worst(job.folder, worst)
    write_text(job.folder.path / "result.json", result.model_dump_json(indent=1) + "\n")
    write_report([(job.settings.model, job.folder.path)], job.folder.path / "report.html")


@contextmanager
def _float32_arithmetic(tf32: bool) -> Iterator[None]:
    """On NVIDIA GPUs torch convolves in TF32 unless told otherwise; a published number should not depend on that."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
