"""What lies in the folder of a training: damaged, of another training, in use, on a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import robseg
from dying_runs import SETTINGS, STEPS, killed_in_step, same_run, train
from robseg.errors import UserError
from robseg.records.files import only_user, whole_file
from robseg.records.training_run import read_metrics
from robseg.training.checkpoints import checkpoints, read_checkpoint, write_checkpoint
from small_runs import recipe, same, weights


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
