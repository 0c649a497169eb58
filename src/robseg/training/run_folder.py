"""The folder of a training: what it was told, what it measured, and the models that came out.

    recipe.yaml         the resolved recipe: every key with its value, whatever it inherited
    run.yaml            what the recipe does not say: data, sizes, steps, devices, versions
    metrics.jsonl       one line per step and one per validation, see below
    checkpoints/        step-000001000.pt: the last two states to go on from
    model.safetensors, model.yaml   the last weights, for `robseg evaluate FOLDER`
    best/               the same of the best validation, for `robseg evaluate FOLDER/best`
    samples/INDEX/      image, label, prediction and their adversarial counterparts as PNG, of the last validation
    report.html

A line of metrics.jsonl is a JSON object; `step` counts finished updates, so the first line has step 1.
- step, epoch, loss, parts ({name: value}), accuracy, rate, gradient (norm before clipping), images_per_s; or
- step, epoch, validation: {images, clean: {miou, aacc, macc, iou: [per class]}, attacked: the same or null, attack,
  eps (n/255), criterion, value, best: whether it is the highest so far, seconds}.
In a validation, shares are fractions and null where nothing was counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from robseg.data.base import ClassList
from robseg.errors import UserError
from robseg.loading.model_folder import save_model
from robseg.records.files import disk_errors, write_text

FORMAT = 1
RECIPE, RUN, METRICS, CHECKPOINTS, BEST, SAMPLES = (
    "recipe.yaml", "run.yaml", "metrics.jsonl", "checkpoints", "best", "samples",
)  # fmt: skip
