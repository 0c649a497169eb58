"""Trainings of networks that are not robseg's: of the user's code, of another library, given as an object."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robseg
from foreign import MEAN, STD, segformer, write_processor
from robseg.cli import main
from robseg.errors import UserError
from robseg.loading.model_folder import DESCRIPTION
from robseg.loading.model_source import open_model
from robseg.models.wrapper import SegmentationModel
from robseg.records.yaml_files import read_yaml
from robseg.training.network import build
from robseg.training.recipes.files import load_recipe
from small_runs import dropping, recipe, same, weights, write_recipe

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.head, self.aux = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        features = torch.relu(self.stem(x))
        out = {"out": self.head(features)}
        return {**out, "aux": self.aux(features)} if self.training else out

def make(num_classes):
    return Net(num_classes)

def three():
    return Net(3)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    (tmp_path / "mynet.py").write_text(FACTORY)
    write_recipe(Path("mine.yaml"), model={"architecture": "mynet:make", "arguments": {}}, validation={"times": 1})
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", shlex.split(line))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_a_network_of_ones_own_code_from_training_to_evaluation(here: Path, capsys: Any) -> None:
    code, out, err = command(capsys, "robseg train mine.yaml --out run --device cpu model.normalisation=imagenet")
    assert code == 0, err
    advice = next(line for line in out.splitlines() if line.startswith("go on: "))[7:]
    assert "robseg evaluate mynet:make --checkpoint run/best --data" in advice
    assert "mynet:make --checkpoint run/best" in (here / "run" / "report.html").read_text()
    code, out, err = command(capsys, f"{advice} --device cpu --steps 1 --attack pgd")
    assert code == 0, err
    # The normalisation of the recipe comes with the weights.
    reread = open_model("mynet:make", num_classes=6, checkpoint="run")
    assert reread.normalisation()[0] == pytest.approx([0.485, 0.456, 0.406])
    assert same(reread.network.state_dict(), weights(Path("run")))
    found = robseg.evaluate(
        reread, "shapes?split=val&count=5&size=32", eps=4, attack="fgsm", out="eval", device="cpu", progress=False
    )
    lines = [line for line in (here / "run" / "metrics.jsonl").read_text().splitlines() if "validation" in line]
    assert f'"miou": {round(found.clean.miou, 6)}' in lines[-1]


def test_a_folder_never_says_which_code_is_run(here: Path, capsys: Any) -> None:
    assert command(capsys, "robseg train mine.yaml --out run --device cpu")[0] == 0
    code, _, err = command(capsys, "robseg evaluate run --data 'shapes?count=2' --out eval")
    assert code == 2
    assert "robseg evaluate mynet:make --checkpoint run" in err
    assert not (here / "eval").exists()


def test_a_training_of_ones_own_code_goes_on(here: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "progress": False, "steps": 4, "checkpoint_minutes": 0}
    whole = robseg.train("mine.yaml", out="whole", **settings)
    robseg.train("mine.yaml", out="run", **settings)
    for place in ("model.safetensors", "checkpoints/step-000000004.pt"):
        (here / "run" / place).unlink()
    robseg.train(out="run", resume=True, device="cpu", progress=False)
    assert same(weights(here / "run"), weights(whole.folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.architecture=nonet:make", ["nonet:make", "cannot be imported", "nonet"]),
        ("model.architecture=mynet:mak", ["'mak'", "make"]),
        ("model.architecture=mynet:three", ["3 classes", "has 6"]),
        ("model.architecture=hf:nowhere/at/all", ["no folder 'nowhere/at/all'"]),
        ("model.checkpoint=nowhere", ["nowhere"]),
    ],
)
def test_mistakes_with_foreign_networks_are_one_sentence(
    here: Path, change: str, words: list[str], capsys: Any
) -> None:
    code, _, err = command(capsys, f"robseg train mine.yaml --out run --device cpu {change}")
    assert code == 2
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert all(word in err for word in words), err


def test_a_network_that_is_given_is_trained_in_place(tmp_path: Path) -> None:
    settings = recipe(steps=3)
    torch.manual_seed(0)
    network = dropping(6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = SegmentationModel(network, mean=MEAN, std=STD)
    robseg.train(settings, network=given, out=tmp_path / "run", device="cpu", progress=False)
    assert not same(network.state_dict(), before)
    assert same(network.state_dict(), weights(tmp_path / "run"))
    described = read_yaml(tmp_path / "run" / DESCRIPTION)
    assert described["normalisation"] == {"mean": list(MEAN), "std": list(STD)}
    with pytest.raises(UserError, match=r"given in Python.*robseg evaluate package\.module:factory --checkpoint"):
        open_model(str(tmp_path / "run"), num_classes=6)
    # The folder is a checkpoint, also of a training.
    start = build(load_recipe(recipe(model={"checkpoint": str(tmp_path / "run")} | GIVEN)), 6, dropping(6))
    assert same(start.network.state_dict(), weights(tmp_path / "run"))
    assert start.normalisation() == (list(MEAN), list(STD))


GIVEN: dict[str, Any] = {"architecture": "given", "arguments": {}}


def test_a_training_of_a_given_network_goes_on_with_that_network_only(tmp_path: Path) -> None:
    def again(network: nn.Module | None, **more: Any) -> Any:
        return robseg.train(
            recipe(steps=4, **more), network=network, out=tmp_path, device="cpu",
            progress=False,
        )  # fmt: skip

    again(dropping(6))
    network = dropping(6)
    assert again(network).steps == 4
    assert same(network.state_dict(), weights(tmp_path))
    with pytest.raises(UserError, match="give it again as network"):
        robseg.train(out=tmp_path, resume=True, device="cpu", progress=False)
    with pytest.raises(UserError, match=r"another training.*Sequential of [\d,]+ parameters"):
        again(nn.Conv2d(3, 6, 1))


class Crooked(nn.Module):
    """Its logits stand at a place that is not the first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 6, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"boundary": images, "map": self.head(images)}


def test_a_given_model_says_where_its_logits_are(tmp_path: Path) -> None:
    settings = recipe(steps=1, validation={"times": 1})
    result = robseg.train(
        settings, network=SegmentationModel(Crooked(), output="map"), out=tmp_path, device="cpu", progress=False
    )
    assert result.validation["validation"]["clean"]["miou"] is not None
    with pytest.raises(UserError, match="no logits"):
        robseg.train(settings, network=Crooked(), out=tmp_path / "other", device="cpu", progress=False)


def test_a_model_of_the_transformers_library(tmp_path: Path, capsys: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = segformer(transformers)
    config.num_labels = 6
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    write_processor(tmp_path / "segformer")
    name = f"hf:{tmp_path / 'segformer'}"
    file = write_recipe(tmp_path / "hf.yaml", model={"architecture": name, "arguments": {}}, steps=2)
    code, out, err = command(capsys, f"robseg train {file} --out {tmp_path}/run --device cpu")
    assert code == 0, err
    assert f"robseg evaluate {name} --checkpoint {tmp_path}/run --data" in out
    trained = open_model(name, num_classes=6, checkpoint=str(tmp_path / "run"))
    assert trained.normalisation() == (list(MEAN), list(STD))
    assert same(trained.network.state_dict(), weights(tmp_path / "run"))
    assert not same(trained.network.state_dict(), open_model(name, num_classes=6).network.state_dict())
