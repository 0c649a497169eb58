"""A training of ten steps that has all that a state must hold, and ways for it to die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import robseg
from robseg.records.training_run import read_metrics
from robseg.training import loop
from small_runs import recipe, same, weights

STEPS = 10
# All that has a state: averaged weights, Adam's moments, validations in between, epochs that end within a batch.
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "ema": 0.9, "checkpoint_minutes": 0, "validation": {"times": 3}, "schedule": {"warmup": 0.3},
}  # fmt: skip


def train(out: Path, resume: bool = False, **changes: Any) -> Any:
    settings = {**SETTINGS, **changes}
    return robseg.train(recipe(**settings), out=out, resume=resume, device="cpu", progress=False)


def same_run(folder: Path, whole: Path) -> None:
    """The same weights, and the same record but for how long things took."""
    assert same(weights(folder), weights(whole))
    assert same(weights(folder / "best"), weights(whole / "best"))
    records = []
    for place in (folder, whole):
        lines = read_metrics(place)
        for line in lines:
            line.pop("images_per_s", None)
            line.get("validation", {}).pop("seconds", None)
        records.append(lines)
    assert records[0] == records[1]


def killed_in_step(folder: Path, step: int, **changes: Any) -> None:
    """Train until a step, and die there."""

    class Killed(BaseException):
        pass

    def dies(run: Any, *arguments: Any) -> Any:
        if run.step == step:
            raise Killed
        return original(run, *arguments)

    original = loop.update
    loop.update = dies
    try:
        with pytest.raises(Killed):
            train(folder, **changes)
    finally:
        loop.update = original
