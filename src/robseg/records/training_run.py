"""The folder of a training: what it was told, what it measured, and the models that came out.

    recipe.yaml         the resolved recipe: every key with its value, whatever it inherited
    run.yaml            what the recipe does not say: data, steps, parameters, devices, versions
    metrics.jsonl       one line per step and one per validation, see below
    checkpoints/        step-000001000.pt: the last two states to go on from
    model.safetensors, model.yaml   the last weights, for `robseg evaluate FOLDER`
    best/               the same of the best validation, for `robseg evaluate FOLDER/best`
    samples/INDEX/      of the last validation, as PNG: image, label, prediction, and under attack adversarial and
                        adversarial-prediction; labels and predictions are indices of classes, 255 is void
    tensorboard/        where asked for
    report.html

A line of metrics.jsonl is a JSON object; `step` counts finished updates, so the first line has step 1.
- step, epoch, loss, parts ({name: value}), accuracy, rate, gradient (norm before clipping), images_per_s; or
- step, epoch, validation: {images, clean: {miou, aacc, macc, iou: [per class]}, attacked: the same or null, attack,
  eps (n/255), criterion, value, best: whether it was the highest so far, seconds}.
In a validation, shares are fractions, and null where nothing was counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robseg.errors import UserError

RECIPE, RUN, METRICS, CHECKPOINTS, BEST, SAMPLES = (
    "recipe.yaml", "run.yaml", "metrics.jsonl", "checkpoints", "best", "samples",
)  # fmt: skip


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without a last one that was cut off; empty where there is no file.

    Raises UserError for a line that is damaged.
    """
    file = folder / METRICS
    if not file.is_file():
        return []
    lines = []
    for number, text in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not _is_line(line):
            raise UserError(f"{file}, line {number}, is damaged; delete the line.")
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    """Whether a value is what one of the two kinds of lines must be to be understood."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    if "validation" not in line:
        return isinstance(line.get("loss"), (int, float))
    found = line["validation"]
    return isinstance(found, dict) and {"clean", "attacked", "criterion", "value", "best"} <= found.keys()
