"""`robseg train` by several processes and as a user types it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import robseg
from robseg.cli import main
from robseg.data.loader import training_batches
from robseg.records.training_run import read_metrics
from small_runs import distance, recipe, weights, write_recipe


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}",
        "-m", "robseg", "train", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of `test_two_processes...`, by two gloo processes."""
    folder = tmp_path_factory.mktemp("shared")
    file = write_recipe(folder / "recipe.yaml", **PARALLEL)
    done = launch(2, str(file), "--out", str(folder / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1
    return folder


# SGD: where a gradient is all but zero, Adam's first steps go where rounding says.
PARALLEL: dict[str, Any] = {
    "method": "sat", "steps": 4, "ema": 0.5, "optimiser": {"name": "sgd", "lr": 0.05},
    "attack": {"steps": 1, "alpha": 0.5}, "validation": {"times": 2, "batch_size": 2},
    "model": {"architecture": "small_runs:dropping", "arguments": {}},
}  # fmt: skip


def test_two_processes_train_as_one_up_to_rounding(shared: Path, tmp_path: Path) -> None:
    robseg.train(recipe(**PARALLEL), out=tmp_path, device="cpu", progress=False)
    settings = robseg.training.recipes.files.load_recipe(recipe(**PARALLEL))
    start = robseg.training.network.build(settings, 6).network.state_dict()
    trained = weights(tmp_path)
    moved = min(distance({n: trained[n]}, start) for n in start if n.endswith(("conv.weight", "head.weight")))
    # Batch norm that is not shared between the processes leads to differences above 1.
    assert distance(weights(shared / "two"), trained) < 1e-3 < 0.05 * moved
    for ours, theirs in zip(read_metrics(shared / "two"), read_metrics(tmp_path), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["gradient"] == pytest.approx(theirs["gradient"], rel=1e-3)
            assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=2e-3)
        else:
            assert ours["validation"]["images"] == 5
            assert ours["validation"]["clean"]["aacc"] == pytest.approx(theirs["validation"]["clean"]["aacc"], abs=5e-3)


def test_two_processes_go_on_where_they_stopped(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    two = shared / "two"
    for name in ("recipe.yaml", "run.yaml", "metrics.jsonl", "checkpoints/step-000000002.pt"):
        (tmp_path / name).write_bytes((two / name).read_bytes())
    done = launch(2, "--resume", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert distance(weights(tmp_path), weights(two)) < 1e-6


def test_a_mistake_is_said_by_processes_too(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "recipe.yaml", batch_size=3)
    done = launch(2, str(file), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "batch_size 3 cannot be shared by 2 processes" in done.stderr


def test_processes_get_disjoint_parts_of_each_batch_in_the_order_of_one() -> None:
    settings = robseg.training.recipes.files.load_recipe(recipe())
    data = robseg.open_data(recipe()["data"]["train"])
    one = next(training_batches(data, settings.augmentation, 4, seed=3))
    parts = [next(training_batches(data, settings.augmentation, 4, seed=3, rank=r, processes=2)) for r in (0, 1)]
    assert [key for pair in zip(parts[0].keys, parts[1].keys, strict=True) for key in pair] == one.keys
    assert torch.equal(torch.stack([p.images for p in parts], 1).flatten(0, 1), one.images)


def test_the_command_line_trains_where_nothing_is_said_in_runs(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.yaml")
    command = [sys.executable, "-m", "robseg", "train", "mine.yaml", "steps=2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 steps" in done.stdout
    assert "robseg evaluate runs/mine" in done.stdout
    folder = tmp_path / "runs" / "mine"
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "robseg recipes"),
        (["steps=3"], "robseg recipes"),
        (["--resume"], "robseg recipes"),
        (["--resume", "--out", "nothing"], "nothing holds no training"),
        (["demo-plan"], "demo-plain"),
        (["demo-plain", "stesp=3"], "steps"),
        (["demo-plain", "steps"], "key=value"),
        (["demo-plain", "--device", "gpu"], "gpu"),
        (["demo-plain", "data.train=nothing"], "nothing"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["robseg", "train", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_recipes_are_listed_and_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robseg", "recipes", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        return capsys.readouterr().out

    listed = said()
    assert all(f"{name} " in listed for name in robseg.training.recipes.files.recipe_names())
    (tmp_path / "printed.yaml").write_text(said("demo-robust", "attack.steps=4"))
    assert robseg.training.recipes.files.load_recipe(tmp_path / "printed.yaml").attack.steps == 4
