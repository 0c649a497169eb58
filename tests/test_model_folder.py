"""The small network, and the folder of a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from robseg.data.base import ClassList
from robseg.errors import UserError
from robseg.loading.model_folder import read_model_folder, save_model
from robseg.models.small_unet import small_unet

TRAINED = {"method": "clean", "steps": 3, "lr": 1e-3}
TWO = ClassList(("left", "right"), ((0, 0, 0), (255, 0, 0)))


def fresh(seed: int = 0, num_classes: int = 6, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_unet(num_classes, width)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


# The network


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (45, 60), (180, 240)])
def test_small_unet_gives_logits_of_the_size_of_any_image(size: tuple[int, int]) -> None:
    network = fresh(num_classes=11).eval()
    images = torch.rand(2, 3, *size)
    logits = network(images)
    assert logits.shape == (2, 11, *size)
    torch.testing.assert_close(network(images[1:]), logits[1:], rtol=1e-4, atol=1e-5)


def test_small_unet_sees_the_whole_of_a_small_image() -> None:
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(fresh().eval()(images)[0, :, 16, 16].sum(), images)
    assert (gradient.abs().sum((0, 1)) > 0).float().mean() > 0.9


def test_small_unet_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="12 x 40"):
        fresh()(torch.rand(1, 3, 12, 40))
    with pytest.raises(UserError, match="num_classes"):
        small_unet(1)


# The folder of a model


def save(folder: Path, **changes: object) -> nn.Module:
    network = fresh(num_classes=2).to(memory_format=torch.channels_last)
    settings: dict[str, object] = {
        "architecture": "small_unet",
        "arguments": {"num_classes": 2, "width": 4},
        "classes": TWO,
        "training": {"data": "shapes", "final_loss": 0.25, "recipe": TRAINED},
    }
    save_model(folder, network, **{**settings, **changes})
    return network


@pytest.mark.parametrize("norm", [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}])
def test_a_model_comes_back_as_it_was_saved(norm: dict[str, object], tmp_path: Path) -> None:
    network = save(tmp_path / "new" / "model", **norm)
    network = save(tmp_path / "new" / "model", **norm)
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == ["model.safetensors", "model.yaml"]
    back = read_model_folder(tmp_path / "new" / "model")
    assert same_weights(network, back.network)
    assert not back.network.training
    assert back.classes == TWO
    assert (back.mean, back.std) == (norm.get("mean"), norm.get("std"))
    assert back.description.training["data"] == "shapes"
    assert back.description.training["final_loss"] == 0.25
    assert back.description.training["recipe"] == TRAINED


def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = save(tmp_path)
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, training={"data": "other"})
    monkeypatch.undo()
    assert same_weights(network, read_model_folder(tmp_path).network)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.yaml"]


def edit(folder: Path, **changes: object) -> None:
    content = yaml.safe_load((folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump({**content, **changes}))


def no_description(folder: Path) -> None:
    (folder / "model.yaml").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def not_yaml(folder: Path) -> None:
    (folder / "model.yaml").write_text("format: 1\nclasses: [a\nb: {")


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def renamed_entry(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["another"] = weights.pop("head.weight")
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_description, ["model.yaml"]),
        (no_weights, ["model.safetensors"]),
        (not_yaml, ["model.yaml", "line"]),
        (cut_weights, ["model.safetensors", "damaged"]),
        (renamed_entry, ["head.weight", "another"]),
        (lambda f: edit(f, architecture="big_unet"), ["big_unet", "small_unet"]),
        (
            lambda f: edit(f, arguments={"num_classes": 2, "width": 8}),
            ["model.safetensors", "[4] in the file, [8] in the model"],
        ),
        (lambda f: edit(f, arguments={"num_classes": 2, "depth": 8}), ["depth"]),
        (lambda f: edit(f, arguments={"num_classes": 3, "width": 4}), ["2 classes", "num_classes is 3"]),
        (lambda f: edit(f, format=2), ["format"]),
        (lambda f: edit(f, classes="two"), ["classes"]),
        (lambda f: edit(f, normalisation={"mean": [0, 0, 0], "std": [1, 1, 0]}), ["normalisation.std"]),
        (lambda f: (f / "model.yaml").write_text(""), ["model.yaml"]),
    ],
)
def test_folders_that_are_no_model_are_explained(damage: object, words: list[str], tmp_path: Path) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        read_model_folder(tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_folders_that_are_not_there_and_architectures_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_model_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="small_unet"):
        save(tmp_path / "x", architecture="small_unett")
    assert not (tmp_path / "x").exists()
