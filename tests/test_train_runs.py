"""Trainings that are killed, stopped, damaged and shared: they end with the weights of one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import robseg
from robseg.cli import main
from robseg.data.loader import training_batches
from robseg.errors import UserError
from robseg.records.files import only_user, whole_file
from robseg.records.training_run import read_metrics
from robseg.training import loop
from robseg.training.checkpoints import checkpoints, read_checkpoint, write_checkpoint
from small_runs import distance, recipe, same, weights, write_recipe

STEPS = 10
# All that has a state: averaged weights, Adam's moments, validations in between, epochs that end within a batch.
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "ema": 0.9, "checkpoint_minutes": 0, "validation": {"times": 3}, "schedule": {"warmup": 0.3},
}  # fmt: skip


def train(out: Path, resume: bool = False, **changes: Any) -> Any:
    settings = {**SETTINGS, **changes}
    return robseg.train(recipe(**settings), out=out, resume=resume, device="cpu", progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_format(path: Path) -> None:
    torch.save({"format": 99}, path)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, other_format])
def test_a_damaged_newest_state_is_reported_and_the_one_before_used(
    damage: Any, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_in_step(tmp_path, 6)
    kept = checkpoints(tmp_path / "checkpoints")
    assert [step for step, _ in kept] == [5, 6]
    damage(kept[-1][1])
    train(tmp_path, resume=True)
    assert "step-000000006.pt" in capsys.readouterr().err
    same_run(tmp_path, whole)


def test_when_all_states_are_damaged_nothing_is_thrown_away(tmp_path: Path) -> None:
    killed_in_step(tmp_path, 6)
    for _, path in checkpoints(tmp_path / "checkpoints"):
        cut(path)
    with pytest.raises(UserError, match="None of the 2 checkpoints"):
        train(tmp_path, resume=True)
    assert len(checkpoints(tmp_path / "checkpoints")) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here, a disk that is always full")
def test_a_full_disk_is_one_sentence_whatever_torch_makes_of_it(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    (tmp_path / f".{file.name}.{os.getpid()}.part").symlink_to("/dev/full")
    words = r"No space is left on the disk while writing .*state\.pt"
    with pytest.raises(UserError, match=words), whole_file(file) as temporary, temporary.open("wb") as opened:
        torch.save({"weights": torch.zeros(100_000)}, opened)
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_works_in_a_folder(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    train(folder, steps=2)
    with only_user(folder), pytest.raises(UserError, match="Another process works in"):
        train(folder, steps=2)
    with only_user(tmp_path / "sea"), pytest.raises(UserError, match="Another process works in"):
        robseg.evaluate(str(whole), "shapes?count=2", out=tmp_path / "sea", device="cpu", progress=False)
    train(folder, steps=2)


def test_a_model_whose_states_are_gone_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    before = weights(tmp_path)
    for state in (tmp_path / "checkpoints").iterdir():
        state.unlink()
    for steps in (2, 3):
        with pytest.raises(UserError, match="holds the model of a training, and no state"):
            train(tmp_path, steps=steps)
    assert same(weights(tmp_path), before)
    assert len(read_metrics(tmp_path)) > 2


def test_a_state_of_another_training_is_not_taken_over(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    state = "checkpoints/step-000000009.pt"
    train(run)
    train(tmp_path / "other", seed=7)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / state).write_bytes((tmp_path / "other" / state).read_bytes())
    with pytest.raises(UserError, match=r"step 9 .*is of another training \(seed is 7 there and 0 here\)"):
        train(run)
    # Of this training by what it says, and of another network.
    content = read_checkpoint(whole / state)
    content["network"] = {"weight": torch.zeros(3)}
    write_checkpoint(run / "checkpoints", 9, {key: content[key] for key in content if key not in ("format", "step")})
    with pytest.raises(UserError, match=r"step 9 .*does not fit this network") as said:
        train(run)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("name", "text"), [("run.yaml", "identity: 5"), ("run.yaml", "identity:"), ("run.yaml", "{}")])
def test_a_training_goes_on_whatever_its_record_has_lost(name: str, text: str, tmp_path: Path, whole: Path) -> None:
    killed_in_step(tmp_path, 5, checkpoint_minutes=0)
    (tmp_path / name).write_text(text)
    train(tmp_path)
    same_run(tmp_path, whole)


@pytest.mark.parametrize("text", ["data: 5", "data:", "name: x"])
def test_a_damaged_recipe_is_said(text: str, tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match="holds another training"):
        train(tmp_path, steps=2)
    with pytest.raises(UserError, match="recipe"):
        robseg.train(out=tmp_path, resume=True, device="cpu", progress=False)


def test_states_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    for step in (1, 2, 3):
        (tmp_path / f".step-{step:09d}.pt.77.part").write_bytes(b"left by one that was killed")
        write_checkpoint(tmp_path, step, {"value": step})
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="No space"):
        write_checkpoint(tmp_path, 4, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002.pt", "step-000000003.pt"]
    assert read_checkpoint(tmp_path / "step-000000003.pt")["value"] == 3


def test_a_finished_training_is_left_as_it_is_and_another_is_refused(tmp_path: Path, whole: Path) -> None:
    result = train(whole)
    again = robseg.train(out=whole, resume=True, device="cpu", progress=False)
    assert (again.steps, again.loss, again.best) == (result.steps, result.loss, result.best) != (0, None, None)
    assert robseg.train(recipe(**SETTINGS, workers=1), out=whole, device="cpu", progress=False).loss == result.loss
    for changes, key in (
        ({"optimiser": {"lr": 1e-3}}, "optimiser.lr"),
        ({"steps": 11}, "steps is 10 there and 11 now"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(UserError, match=key):
            train(whole, **changes)
    data = [(torch.rand(3, 32, 32), torch.zeros(32, 32, dtype=torch.int64), f"{i}") for i in range(4)]
    for count in (3, 4):
        arguments = {"train_data": data[:count], "classes": 2, "device": "cpu", "progress": False}
        if count == 3:
            robseg.train(recipe(), out=tmp_path / "own", **arguments)
        else:
            with pytest.raises(UserError, match="data_ids"):
                robseg.train(recipe(), out=tmp_path / "own", **arguments)
    with pytest.raises(UserError, match="holds no training"):
        robseg.train(out=tmp_path / "nothing", resume=True)


def test_a_recipe_that_did_not_work_may_be_mended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged"):
        train(
            tmp_path, optimiser={"lr": 1e30}, schedule={"warmup": 0.0}, checkpoint_minutes=60, validation={"times": 0}
        )
    assert train(tmp_path).steps == STEPS
    assert len([line for line in read_metrics(tmp_path) if "loss" in line]) == STEPS


# Several processes


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
