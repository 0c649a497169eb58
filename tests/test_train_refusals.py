"""What a training refuses before it begins, and what it says when it diverges."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import robseg
from robseg.data import open_data
from robseg.data.samples import SampleList
from robseg.errors import UserError
from robseg.models.wrapper import SegmentationModel
from robseg.training.recipes.files import load_recipe
from robseg.training.together import Group
from small_runs import ALONE, NoNumber, fit, fresh, recipe, train


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_step_rate_and_the_last_good_state(value: float) -> None:
    settings = load_recipe(recipe(steps=4, schedule={"warmup": 0.0}))
    with pytest.raises(UserError, match=r"(nan|inf) at step 3, rate 0\.005; last good checkpoint: none"):
        fit(NoNumber(fresh(), 3, value), open_data(recipe()["data"]["train"]), settings)


def test_a_training_that_diverges_leaves_its_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged.*checkpoints holds step 1;"):
        train(tmp_path, optimiser={"lr": 1e30}, schedule={"warmup": 0.0}, checkpoint_minutes=0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.pt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"validation": "shapes?split=val&size=32", "train": "folder:{root}?classes=3", "root": "X"}}, ["X"]),
        ({"data": {"train": "shapes:{root}"}}, ["data.root=FOLDER"]),
        ({"method": "ddcat"}, ["ddcat", "SmallUNet"]),
        ({"method": "sat", "batch_size": 3, "micro_batch": 1}, ["sat", "1 images at a time"]),
        ({"tensorboard": True}, ["tensorboard"]),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    changes: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError) as said:
        train(tmp_path / "run", **changes)
    assert all(word in str(said.value) for word in words), said.value
    assert "\n" not in str(said.value)


def test_classes_that_differ_are_refused(tmp_path: Path) -> None:
    def data(names: list[str]) -> SampleList:
        named = robseg.data.classes.named_classes(names, "test")
        return SampleList([(torch.rand(3, 32, 32), torch.zeros(32, 32, dtype=torch.int64), "x")], named)

    def run(ours: list[str], theirs: list[str]) -> None:
        robseg.train(
            recipe(steps=1, validation={"times": 1}), out=tmp_path, train_data=data(ours), validation_data=data(theirs),
            device="cpu", progress=False,
        )  # fmt: skip

    with pytest.raises(UserError, match=r"2 classes.*3"):
        run(["a", "b"], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"Class 1 is 'b'.*'c'"):
        run(["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match=r"gives 3 classes.*has 6"):
        fit(
            SegmentationModel(fresh(num_classes=3)),
            open_data(recipe()["data"]["train"]),
            load_recipe(recipe()),
            group=ALONE,
        )


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"batch_size": 4}, 3, "batch_size 4.*3 processes"),
        ({"batch_size": 12, "micro_batch": 4}, 2, "6 images.*micro_batch 4"),
        ({"batch_size": 6, "method": "sat"}, 2, "'sat'.*3 images"),
    ],
)
def test_batches_that_processes_cannot_share(changes: dict[str, Any], processes: int, words: str) -> None:
    group = Group(0, processes, torch.device("cpu"), lambda: None)
    with pytest.raises(UserError, match=words):
        fit(
            SegmentationModel(fresh()),
            open_data(recipe()["data"]["train"]),
            load_recipe(recipe(**changes)),
            group=group,
        )


def test_a_folder_that_is_in_the_way_or_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        train(tmp_path / "file" / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        train(tmp_path / "full")
    with pytest.raises(UserError, match=r"/proc.*choose another"):
        train(Path("/proc/robseg-run"))
    assert (tmp_path / "full" / "thesis.txt").is_file()
