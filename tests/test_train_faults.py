"""Faults in the midst of a training that are not robseg's: each is one sentence, and what was done is kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robseg
from robseg.errors import UserError
from robseg.models.small_unet import small_unet
from robseg.training import update
from robseg.training.checkpoints import checkpoints
from small_runs import recipe, same, weights


def train(out: Path, network: nn.Module | None = None, **changes: Any) -> Any:
    return robseg.train(recipe(**changes), network=network, out=out, device="cpu", progress=False)


def one_sentence(said: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(said.value)
    assert str(said.value).endswith((".", "?"))


class Evaluates(nn.Module):
    """A network that in evaluation mode, on images of one size alone, gives what `spoil` makes of its logits."""

    def __init__(self, spoil: Any, side: int = 32) -> None:
        super().__init__()
        self.inner, self.spoil, self.side = small_unet(6, 4), spoil, side

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits if self.training or images.shape[-1] != self.side else self.spoil(logits)


def not_a_number(logits: Tensor) -> Tensor:
    return logits * float("nan")


def refuse(logits: Tensor) -> Tensor:
    raise RuntimeError("shape mismatch, says a stranger\nand much more")


SMALL = {"train": "shapes?split=train&count=7&size=48", "validation": "shapes?split=val&count=5&size=32"}


def test_logits_that_are_no_numbers_in_a_validation_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"diverged: the logits of the validation are not finite at step 2, rate .*checkpoint: none"
    ) as said:
        train(
            tmp_path, Evaluates(not_a_number), data=SMALL, augmentation={"crop": 48}, steps=4, validation={"times": 2}
        )
    one_sentence(said)
    assert not (tmp_path / "model.yaml").exists()
    assert not (tmp_path / "best").exists()
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [2]


def test_validation_images_that_the_network_does_not_take_are_said_before_the_training(tmp_path: Path) -> None:
    words = r"fails on a validation image of 32 x 32: RuntimeError: shape mismatch, says a stranger\."
    with pytest.raises(UserError, match=words):
        train(tmp_path, Evaluates(refuse), data=SMALL, augmentation={"crop": 48}, validation={"times": 1})
    assert not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").read_text() == ""


def test_of_several_sizes_the_image_is_named_that_fails(tmp_path: Path) -> None:
    samples = [(torch.rand(3, side, side), torch.zeros(side, side).long(), f"of {side}") for side in (48, 32)]
    with pytest.raises(UserError, match=r"fails on the validation image 'of 32' of 32 x 32"):
        robseg.train(
            recipe(steps=1, augmentation={"crop": 48}, validation={"times": 1}), network=Evaluates(refuse), classes=6,
            validation_data=samples, out=tmp_path, device="cpu", progress=False,
        )  # fmt: skip


def test_crops_that_the_network_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fails on training crops of 8 x 8: ValueError: images are 8 x 8") as said:
        train(tmp_path, augmentation={"crop": 8})
    one_sentence(said)


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 2, "micro_batch": 1}])
def test_a_batch_norm_with_a_single_value(changes: dict[str, Any], tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Upsample(32))
    with pytest.raises(UserError, match=r"single value per channel, from 1 crops of 32 x 32.*micro_batch") as said:
        train(tmp_path, network, method="clean", **changes)
    one_sentence(said)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes")],
)
def test_too_little_memory(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(update, "training_step", step)
    with pytest.raises(UserError, match=r"memory does not suffice for 4 crops of 32 x 32.*micro_batch below 4") as said:
        train(tmp_path)
    one_sentence(said)


def test_a_fault_of_ours_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise ValueError("something that should not be")

    monkeypatch.setattr(update, "training_step", step)
    with pytest.raises(ValueError, match="should not be"):
        train(tmp_path)


class KillsItsReader:
    """Data of which one image ends the process that decodes it."""

    def __init__(self) -> None:
        self.ids = [str(index) for index in range(8)]
        self.parent = os.getpid()
        self.deadly = True

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        if index == 5 and self.deadly and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 32, 32), index / 10), torch.full((32, 32), index % 6), str(index)


def test_a_killed_reader_is_said_and_the_training_goes_on(tmp_path: Path) -> None:
    data = KillsItsReader()

    def again(out: Path) -> Any:
        return robseg.train(
            recipe(steps=6, batch_size=2, workers=1), train_data=data, classes=6, out=out, device="cpu", progress=False
        )

    with pytest.raises(UserError, match="process that decodes images was killed") as said:
        again(tmp_path / "run")
    one_sentence(said)
    data.deadly = False
    assert again(tmp_path / "run").steps == 6
    again(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
