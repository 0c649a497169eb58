"""Trainings that are killed or stopped end with the weights of one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dying_runs import killed_in_step, same_run, train
from robseg.records.training_run import read_metrics
from robseg.training import loop
from robseg.training.checkpoints import checkpoints
from small_runs import write_recipe


@pytest.mark.parametrize("step", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("minutes", [0, 60])
def test_a_training_that_died_in_any_step_ends_with_the_same_weights(
    step: int, minutes: float, tmp_path: Path, whole: Path
) -> None:
    killed_in_step(tmp_path, step, checkpoint_minutes=minutes)
    # Measurements after the state, and half a line, as a crash leaves them.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4000, "epoch": 1, "loss": 1}\n{"step": 12, "lo')
    train(tmp_path, resume=True)
    same_run(tmp_path, whole)


@pytest.mark.parametrize("method", ["clean", "sat"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_going_on_is_exact_for_every_optimiser_and_without_averaging(name: str, method: str, tmp_path: Path) -> None:
    changes = {"optimiser": {"name": name, "lr": 0.01}, "ema": None, "method": method, "steps": 5}
    train(tmp_path / "whole", **changes)
    killed_in_step(tmp_path / "cut", 3, **changes)
    train(tmp_path / "cut", **changes)
    same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_training_that_died_while_it_validated_validates_again(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "validate", dies)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path)
    monkeypatch.undo()
    assert len(read_metrics(tmp_path)) == 3
    train(tmp_path)
    same_run(tmp_path, whole)


def _child(out: str) -> None:
    torch.set_num_threads(1)
    train(Path(out))


def test_killed_at_random_points_again_and_again(tmp_path: Path, whole: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["robseg.training.train", "small_runs"])
    draw = random.Random(os.getpid())
    file, kills = tmp_path / "metrics.jsonl", 0
    for _ in range(40):
        process = context.Process(target=_child, args=(str(tmp_path),))
        process.start()
        if kills < 4:
            lines = file.read_bytes().count(b"\n") if file.is_file() else 0
            deadline = time.monotonic() + 60
            while (
                process.is_alive()
                and time.monotonic() < deadline
                and (not file.is_file() or file.read_bytes().count(b"\n") <= lines)
            ):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    same_run(tmp_path, whole)


def test_sigterm_writes_a_state_and_leaves(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, exits, step in ((signal.SIGTERM, SystemExit, 2), (signal.SIGINT, KeyboardInterrupt, 5)):
        original = loop.update

        def signalled(run: Any, *arguments: Any, at: int = step, number: int = number, original: Any = original) -> Any:
            if run.step == at:
                os.kill(os.getpid(), number)
            return original(run, *arguments)

        handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        monkeypatch.setattr(loop, "update", signalled)
        with pytest.raises(exits) as left:
            train(tmp_path, checkpoint_minutes=60)
        monkeypatch.setattr(loop, "update", original)
        # The step in which it came is finished, and nothing after it is begun.
        assert checkpoints(tmp_path / "checkpoints")[-1][0] == step + 1
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
        if number == signal.SIGTERM:
            assert left.value.code == 128 + signal.SIGTERM
    train(tmp_path, checkpoint_minutes=60)
    same_run(tmp_path, whole)


def test_a_signal_ends_a_validation_too(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.validate

    def signalled(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "validate", signalled)
    with pytest.raises(SystemExit):
        train(tmp_path, checkpoint_minutes=60)
    monkeypatch.undo()
    assert not any("validation" in line for line in read_metrics(tmp_path))
    train(tmp_path, checkpoint_minutes=60)
    same_run(tmp_path, whole)


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_a_signal_to_the_whole_group_does_not_reach_the_workers(tmp_path: Path) -> None:
    """As SLURM and terminals send it: workers that died of it would end the training in the midst of a step."""
    file = write_recipe(tmp_path / "r.yaml", steps=400, workers=1, checkpoint_minutes=60)
    command = [sys.executable, "-m", "robseg", "train", str(file), "--device", "cpu", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 3):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    step = checkpoints(tmp_path / "run" / "checkpoints")[-1][0]
    assert f"stopped after step {step} of 400" in said
    assert "Traceback" not in said
