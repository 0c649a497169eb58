"""Checkpoints become safetensors files with a card, which load again and give the same logits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn
from typer.testing import CliRunner

import robseg.loading.convert as converting
from foreign import enliven, pictures
from robseg.cli import app
from robseg.errors import UserError
from robseg.loading.card import read_card
from robseg.loading.convert import convert
from robseg.loading.model_source import open_model
from robseg.models.architectures import ARCHITECTURES
from robseg.models.ddcat import DDCAT
from robseg.models.dilated import PSP
from robseg.models.published import IMAGENET_MEAN, PUBLISHED


def unet(classes: int = 5, seed: int = 0) -> nn.Module:
    return enliven(ARCHITECTURES["small_unet"](num_classes=classes), seed)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As a training would leave it: under DataParallel, beside its optimiser."""
    state = {f"module.{key}": value for key, value in unet().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_architecture_there_and_back(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "new" / "out.safetensors"
    result = CliRunner().invoke(
        app, ["convert", str(checkpoint), str(out), "--model", "small_unet", "--classes", "5"]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with safetensors.safe_open(out, framework="pt") as file:
        assert set(file.keys()) == set(unet().state_dict())
    card, page = read_card(out), (out.parent / "out.safetensors.md").read_text()
    assert card is not None
    assert (card.model, card.num_classes, card.mean, card.left_out) == ("small_unet", 5, None, 0)
    assert card.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert all(
        word in page for word in (card.source_sha256, hashlib.sha256(out.read_bytes()).hexdigest(), "not stated")
    )
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        again = open_model("small_unet", num_classes=5, checkpoint=str(out)).eval()
        torch.testing.assert_close(again(images), unet()(images))
    # What is converted already says what it is.
    assert convert(str(out), tmp_path / "twice.safetensors").num_classes == 5


def test_published_model_is_found_out(tmp_path: Path, monkeypatch) -> None:
    """A published model in small: found by its entries, without the branches of training, and by its card later on."""
    from dataclasses import replace
    from functools import partial

    from robseg.models.ddcat import without_branches

    blocks = (1, 1, 1, 1)
    name = "pspnet50_ddcat_voc"
    small = replace(PUBLISHED[name], build=partial(without_branches, blocks, PSP), num_classes=4)
    monkeypatch.setitem(PUBLISHED, name, small)
    network = enliven(DDCAT(blocks, PSP, 4))
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "in.pth")
    card = convert(str(tmp_path / "in.pth"), tmp_path / "out.safetensors")
    assert (card.model, card.num_classes, card.data, card.source) == (name, 4, "voc", small.source)
    assert card.mean == pytest.approx(IMAGENET_MEAN)
    assert card.left_out > 0
    kept = small.build(4).state_dict()
    with safetensors.safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(kept)
    images = pictures(2, 3, 33, 33)
    with torch.no_grad():
        first = open_model(name, num_classes=4, checkpoint=str(tmp_path / "in.pth")).eval()(images)
        for model, file in ((name, "out.safetensors"), (str(tmp_path / "out.safetensors"), None)):
            again = open_model(model, num_classes=4, checkpoint=file and str(tmp_path / file)).eval()
            torch.testing.assert_close(again(images), first)
    assert first.std() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "small_unet"}, "say with --classes"),
        ({"model": "small_unet", "classes": 7}, r"has 5 classes, the model 7"),
        ({"model": "upernet_convnext_t_cvst_voc", "classes": 19}, "has 21 classes, not 19"),
        ({"model": "nonsense", "classes": 2}, "Unknown model 'nonsense'"),
        ({}, "no published model"),
    ],
)
def test_nothing_is_written_after_an_error(tmp_path: Path, checkpoint: Path, arguments, words) -> None:
    with pytest.raises(UserError, match=words):
        convert(str(checkpoint), tmp_path / "out.safetensors", **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_outputs_that_cannot_be(tmp_path: Path, checkpoint: Path, monkeypatch) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    for out, words in (("there.safetensors", "there already"), ("out.pth", "must be called")):
        with pytest.raises(UserError, match=words):
            convert(str(checkpoint), tmp_path / out, model="small_unet", classes=5)
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    with pytest.raises(UserError, match=r"cannot be written: (Not a directory|File exists)"):
        convert(str(checkpoint), tmp_path / "in.pth/out.safetensors", model="small_unet", classes=5)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converting.safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        convert(str(checkpoint), tmp_path / "out.safetensors", model="small_unet", classes=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "there.safetensors"]
