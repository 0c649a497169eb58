"""The training loop: what it computes, what it writes, and what it says where something does not fit."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import robseg
from robseg.data import open_data
from robseg.data.base import IGNORE_INDEX
from robseg.data.loader import training_batches
from robseg.data.samples import SampleList
from robseg.data.sets.shapes import Shapes
from robseg.errors import UserError
from robseg.loading.model_folder import read_model_folder
from robseg.metrics.counts import concatenate, image_counts
from robseg.metrics.scores import scores
from robseg.models.architectures import ARCHITECTURES
from robseg.models.ddcat import DDCAT
from robseg.models.dilated import ASPP, DilatedSegmenter
from robseg.models.dropout import Dropout2d
from robseg.models.vit import Block
from robseg.models.wrapper import SegmentationModel
from robseg.records.training_run import read_metrics
from robseg.training.batch_norm import SharedBatchNorm2d, share_batch_norm
from robseg.training.inner_attack import perturb
from robseg.training.network import build
from robseg.training.recipes.files import load_recipe
from robseg.training.schedule import Schedule
from robseg.training.trainee import Trainee
from small_runs import distance, fit, fresh, recipe, same, steps_of, train, weights


@pytest.mark.parametrize("method", ["clean", "at", "sat"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(method: str, tmp_path: Path) -> None:
    networks = []
    data = open_data(recipe()["data"]["train"])
    for place, seed in enumerate((1, 1, 2)):
        # Dropout draws from the global generator, which the loop has to take in hand.
        networks.append(nn.Sequential(fresh(), nn.Dropout(0.2)))
        torch.manual_seed(place)
        before = torch.get_rng_state()
        fit(networks[-1], data, load_recipe(recipe(method=method, seed=seed, steps=3)))
        assert torch.equal(before, torch.get_rng_state())
        assert not networks[-1].training
    first, second, other = (network.state_dict() for network in networks)
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("method", ["clean", "at"])
def test_a_training_learns_and_its_folder_is_a_model_to_evaluate(method: str, tmp_path: Path) -> None:
    told: list[tuple[str, float, float, str]] = []
    result = train(
        tmp_path / "run", lambda *said: told.append(said),
        method=method, steps=30, optimiser={"lr": 1e-2}, attack={"eps": 2.0}, validation={"times": 2},
        model={"arguments": {"width": 8}}, data={"train": "shapes?split=train&count=4&size=32"},
    )  # fmt: skip
    lines = steps_of(result.folder)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["epoch"] == 30
    assert lines[-1]["loss"] == result.loss < 0.7 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.7
    assert [line["rate"] for line in lines] == [Schedule(1e-2, 30, warmup=8).rate(step) for step in range(30)]
    assert all(line["images_per_s"] > 0 and line["gradient"] > 0 for line in lines)
    assert all(line["loss"] == pytest.approx(sum(line["parts"].values())) for line in lines)
    assert [line["step"] for line in read_metrics(result.folder) if "validation" in line] == [15, 30]
    assert any("training" in label and "loss" in note and "images/s" in note for label, _, _, note in told)

    again = robseg.evaluate(
        str(result.folder), "shapes?split=val&count=5&size=32", eps=4, attack="fgsm", out=tmp_path / "eval",
        progress=False, device="cpu",
    )  # fmt: skip
    assert again.clean.miou == pytest.approx(result.validation["validation"]["clean"]["miou"], abs=1e-6)
    assert again.clean.aacc == pytest.approx(result.validation["validation"]["clean"]["aacc"], abs=1e-6)
    stored = read_model_folder(result.folder).description.training
    assert (stored["step"], stored["seed"], stored["final_loss"]) == (30, 0, result.loss)
    assert stored["validation"]["criterion"] == ("clean.miou" if method == "clean" else "attacked.miou")
    assert load_recipe(result.folder / "recipe.yaml") == result.recipe
    run = yaml.safe_load((result.folder / "run.yaml").read_text())
    assert (run["steps"], run["data"]["images"], run["device"]) == (30, 4, "cpu")
    pictures = result.folder / "samples" / "0"
    assert {p.stem for p in pictures.iterdir()} == {
        "image", "label", "prediction", "adversarial", "adversarial-prediction",
    }  # fmt: skip


def test_the_best_model_is_that_of_the_best_validation(tmp_path: Path) -> None:
    result = train(tmp_path, steps=12, validation={"times": 12, "criterion": "attacked.aacc"}, optimiser={"lr": 0.05})
    found = [line for line in read_metrics(tmp_path) if "validation" in line]
    values = [line["validation"]["value"] for line in found]
    assert [line["step"] for line in found] == list(range(1, 13))
    assert values == [line["validation"]["attacked"]["aacc"] for line in found]
    assert [line["validation"]["best"] for line in found] == [
        all(v > old for old in values[:i]) for i, v in enumerate(values)
    ]
    assert len(set(values)) > 3
    assert result.best == found[values.index(max(values))]
    assert read_model_folder(tmp_path / "best").description.training["step"] == result.best["step"]
    assert read_model_folder(tmp_path).description.training["step"] == 12
    if result.best["step"] != 12:
        assert not same(weights(tmp_path / "best"), weights(tmp_path))


def test_validation_counts_every_image_once_whatever_the_batches(tmp_path: Path) -> None:
    result = train(tmp_path, steps=2, validation={"times": 1, "batch_size": 3})
    model, data = SegmentationModel(read_model_folder(tmp_path).network), open_data(recipe()["data"]["validation"])
    with torch.no_grad():
        counts = [image_counts(model(s.image[None]).argmax(1), s.label[None], 6, IGNORE_INDEX) for s in data]
    expected = scores(concatenate(counts))
    clean = result.validation["validation"]["clean"]
    assert clean["miou"] == pytest.approx(expected.miou, abs=1e-5)
    assert clean["aacc"] == pytest.approx(expected.aacc_image_mean, abs=1e-5)
    assert clean["macc"] == pytest.approx(expected.macc, abs=1e-5)
    for i, value in enumerate(expected.iou):
        assert (clean["iou"][i] is None and math.isnan(value)) or clean["iou"][i] == pytest.approx(value, abs=1e-5)


def test_a_step_is_the_optimisers_on_the_adversarial_batch_alone() -> None:
    settings = load_recipe(recipe(steps=1, schedule={"warmup": 0.0}, batch_size=3, attack={"steps": 2}))
    data = open_data(recipe()["data"]["train"])
    network, expected = fresh(), fresh().to(memory_format=torch.channels_last)
    fit(network, data, settings)

    batch = next(training_batches(data, settings.augmentation, 3, seed=0))
    found = perturb(Trainee(expected), batch.images, batch.labels, settings.attack, seed=0, keys=batch.keys)
    assert not torch.equal(found, batch.images)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in expected.parameters() if p.ndim > 1], "weight_decay": 1e-2},
            {"params": [p for p in expected.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    expected.train()
    F.cross_entropy(expected(found), batch.labels, ignore_index=IGNORE_INDEX).backward()
    optimiser.step()
    # Adam's first step is the sign of the gradient: where that is all but zero, rounding decides it.
    for name, value in expected.state_dict().items():
        differing = (network.state_dict()[name] - value).abs() > 1e-4
        assert differing.float().mean() < 0.02, name


def test_pieces_of_a_batch_add_up_to_its_gradient() -> None:
    class Plain(nn.Module):
        """No batch norm, whose statistics are those of a piece; dropout of all kinds, whose draws are an image's."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), Dropout2d(0.3), nn.GELU())
            self.block = Block(8, 2, dropout=0.2, drop_path=0.5)
            self.head = nn.Conv2d(8, 6, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            tokens = self.block(features.flatten(2).transpose(1, 2))
            logits: Tensor = self.head(tokens.transpose(1, 2).view(features.shape))
            return logits

    data = open_data("shapes?split=train&count=8&size=32")
    # Images of which unequal parts are void, so that the pieces must be weighted.
    cut = [(s.image, s.label.index_fill(0, torch.arange(4 * i), IGNORE_INDEX), s.id) for i, s in enumerate(data)]
    data = SampleList(cut, data.classes)
    for method in ("clean", "sat", "at"):
        results = []
        for micro in (8, 4, 2):
            torch.manual_seed(0)
            network = Plain()
            settings = recipe(
                method=method, batch_size=8, micro_batch=micro, steps=3, optimiser={"name": "sgd", "lr": 0.5}
            )
            fit(network, data, load_recipe(settings))
            results.append(network.state_dict())
        assert distance(results[1], results[0]) < 1e-4
        assert distance(results[2], results[0]) < 1e-4


def test_ignored_pixels_change_nothing() -> None:
    samples = list(Shapes(count=2, size=32, split="train"))
    trained = []
    settings = load_recipe(recipe(steps=3, batch_size=2, augmentation={"flip": False}))
    for fill in (0.0, 1.0):
        painted = []
        for image, label, name in samples:
            image, label = image.clone(), label.clone()
            image[:, :, 20:], label[:, 20:] = fill, IGNORE_INDEX
            painted.append((image, label, name))
        # A network of single pixels, so that what lies under ignored labels can matter through the loss only.
        network = nn.Conv2d(3, 6, 1)
        nn.init.constant_(network.weight, 0.1)
        nn.init.constant_(network.bias, 0.0)
        fit(network, SampleList(painted, Shapes().classes), settings)
        trained.append(network.weight.detach())
    assert torch.equal(trained[0], trained[1])


def test_a_batch_without_counted_pixels_has_loss_0_and_data_without_any_are_refused(tmp_path: Path) -> None:
    samples = list(Shapes(count=3, size=32, split="train"))
    void = [(s.image, torch.full_like(s.label, IGNORE_INDEX), s.id) for s in samples]
    mixed = [void[0], void[1], (samples[2].image, samples[2].label, samples[2].id)]
    settings = recipe(steps=3, batch_size=1)
    robseg.train(settings, train_data=mixed, classes=6, out=tmp_path / "mixed", device="cpu", progress=False)
    losses = [line["loss"] for line in steps_of(tmp_path / "mixed")]
    assert losses.count(0) == 2
    assert max(losses) > 1
    for changes in ({}, {"attack": {"objective": "mce-bal"}}):
        with pytest.raises(UserError, match="labelled pixel"):
            fit(fresh(), SampleList(void, Shapes().classes), load_recipe(recipe(steps=9, **changes)))
    with pytest.raises(UserError, match=r"validation data.*labelled pixel"):
        robseg.train(
            recipe(steps=1, validation={"times": 1}), validation_data=void, classes=6, out=tmp_path / "val",
            device="cpu", progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"precision": "bf16"},
        {"optimiser": {"clip": 0.1}},
        {"channels_last": False},
        {"optimiser": {"name": "sgd", "lr": 0.05}},
        {"attack": {"name": "apgd"}},
        {"attack": {"name": "fgsm"}},
        {"attack": {"bf16": True}},
        {"attack": {"objective": "mce-bal"}},
        {"eps_warmup": 0.5},
        {"workers": 1},
        {"augmentation": {"scale": [0.5, 2.0], "rotation": 10.0}},
        {"model": {"normalisation": "imagenet"}},
        {"validation": {"times": 1, "attack": None}},
        {"validation": {"times": 1, "attack": "pgd-mce-bal?steps=1"}},
    ],
    ids=str,
)
def test_each_option_changes_the_weights_and_leaves_a_folder_to_evaluate(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    plain, other = train(tmp_path / "plain"), train(tmp_path / "other", **changes)
    assert math.isfinite(other.loss)
    unchanged = "workers" in changes or "validation" in changes
    if unchanged:
        assert same(weights(plain.folder), weights(other.folder))
    elif "channels_last" not in changes:
        assert not same(weights(plain.folder), weights(other.folder))
    back = read_model_folder(other.folder)
    assert (back.mean is not None) == ("model" in changes)
    assert back.description.training["weights"] == ("averaged" if "ema" in changes else "last")


def test_averaged_weights_follow_the_formula_and_are_what_is_saved(tmp_path: Path) -> None:
    data, snapshots = open_data(recipe()["data"]["train"]), []
    for steps in (1, 2, 3):
        network = fresh()
        schedule = {"warmup": 0.0, "power": 1e-9}  # the rate stays, so that a shorter training is the beginning
        fit(network, data, load_recipe(recipe(steps=steps, schedule=schedule)))
        snapshots.append(network.state_dict())
    network = fresh()
    fit(network, data, load_recipe(recipe(steps=3, schedule=schedule, ema=0.15)))
    expected = snapshots[0]["head.weight"]
    for update, snapshot in enumerate(snapshots[1:], 1):
        share = min(0.15, (1 + update) / (10 + update))
        expected = share * expected + (1 - share) * snapshot["head.weight"]
    torch.testing.assert_close(network.state_dict()["head.weight"], expected)


def test_ddcat_leaves_a_network_without_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = (1, 1, 1, 1)
    # The published depths take a minute a step on a CPU.
    monkeypatch.setitem(ARCHITECTURES, "deeplabv3_50_ddcat", lambda num_classes: DDCAT(depths, ASPP, num_classes))
    monkeypatch.setitem(ARCHITECTURES, "deeplabv3_50", lambda num_classes: DilatedSegmenter(depths, ASPP, num_classes))
    result = train(
        tmp_path, method="ddcat", model={"architecture": "deeplabv3_50_ddcat", "arguments": {}}, steps=1, batch_size=2,
        optimiser={"name": "sgd", "lr": 0.01, "new_rate": 10},
    )  # fmt: skip
    assert set(steps_of(tmp_path)[0]["parts"]) == {"main", "auxiliary", "mask"}
    back = read_model_folder(tmp_path)
    assert back.description.architecture == "deeplabv3_50"
    assert not any(name.startswith(("cls2", "mask1", "cls1")) for name in weights(tmp_path))
    state = torch.load(next((tmp_path / "checkpoints").iterdir()), weights_only=True)["network"]
    trained = DDCAT(depths, ASPP, 6)
    trained.load_state_dict(state)
    images = torch.rand(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(trained.eval()(images), back.network(images))
    assert result.steps == 1


def test_data_and_networks_of_ones_own(tmp_path: Path) -> None:
    samples = [(torch.rand(3, 40, 28), torch.randint(0, 3, (40, 28)), f"x{i}") for i in range(4)]
    result = robseg.train(
        recipe(steps=2), out=tmp_path, train_data=samples, validation_data=samples[:2], classes=3, device="cpu",
        progress=False, **{"validation.times": 1, "optimiser": {"lr": 1e-3}},
    )  # fmt: skip
    assert len(read_model_folder(tmp_path).classes) == 3
    assert result.validation["validation"]["images"] == 2
    assert result.recipe.optimiser.lr == 1e-3


def test_a_validation_over_windows_is_that_of_an_evaluation_over_windows(tmp_path: Path) -> None:
    found = {}
    for window in (None, 20):
        result = train(tmp_path / str(window), steps=2, validation={"times": 1, "window": window})
        found[window] = result.validation["validation"]["clean"]["aacc"]
    again = robseg.evaluate(
        str(tmp_path / "20"), "shapes?split=val&count=5&size=32", eps=4, attack="fgsm", window=20, device="cpu",
        out=tmp_path / "eval", progress=False,
    )  # fmt: skip
    assert again.clean.aacc == pytest.approx(found[20], abs=1e-6)
    assert found[20] != found[None]
    assert "--window 20" in (tmp_path / "20" / "report.html").read_text()
    assert "--window" not in (tmp_path / "None" / "report.html").read_text()


def test_a_backbone_and_a_checkpoint_are_where_a_training_begins(tmp_path: Path) -> None:
    first = train(tmp_path / "first")
    settings = load_recipe(recipe(model={"checkpoint": str(first.folder / "model.safetensors")}))
    model = build(settings, 6)
    assert same(model.network.state_dict(), weights(first.folder))
    assert model.normalisation() == (None, None)
    again, other = build(load_recipe(recipe()), 6), build(load_recipe(recipe(seed=1)), 6)
    assert same(again.network.state_dict(), build(load_recipe(recipe()), 6).network.state_dict())
    assert not same(again.network.state_dict(), other.network.state_dict())
    with pytest.raises(UserError, match=r"6 classes, the model 5.*train on data of 6 classes"):
        build(settings, 5)
    with pytest.raises(UserError, match="no ConvNeXt"):
        build(load_recipe(recipe(model={"backbone": str(first.folder / "model.safetensors")})), 6)
    with pytest.raises(UserError, match="depth"):
        build(load_recipe(recipe(model={"arguments": {"depth": 3}})), 6)


def test_batch_norm_over_one_process_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robseg.training.batch_norm._sum", lambda values: values)
    ours = share_batch_norm(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.3)), torch.device("cpu"))
    theirs = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.3))
    assert isinstance(ours[1], SharedBatchNorm2d)
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, False):
        images = 5 + torch.randn(4, 3, 6, 6)
        inputs = [images.clone().requires_grad_(True) for _ in range(2)]
        results = [module.train(mode)(x) for module, x in zip((ours, theirs), inputs, strict=True)]
        torch.testing.assert_close(*results)
        for result, x in zip(results, inputs, strict=True):
            (result * torch.arange(6)).square().sum().backward()
            assert x.grad is not None
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(ours[1].weight.grad, theirs[1].weight.grad, rtol=1e-3, atol=1e-2)
        for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            torch.testing.assert_close(a, b, msg=name)


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    train(tmp_path, validation={"times": 1})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert lines[-1]["validation"]["attack"].startswith("pgd")


def test_tensorboard_gets_the_numbers_and_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: dict[tuple[str, int], float] = {}
    images: dict[str, Tensor] = {}

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars[name, step] = value

        def add_image(self, name: str, image: Tensor, step: int) -> None:
            images[name] = image

        def close(self) -> None:
            images["closed"] = torch.zeros(0)

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tmp_path, tensorboard=True, validation={"times": 1, "samples": 2})
    lines = steps_of(tmp_path)
    assert all(scalars["loss", line["step"]] == line["loss"] for line in lines)
    assert {"rate", "parts/main", "validation/clean/miou", "validation/attacked/aacc"} <= {name for name, _ in scalars}
    assert set(images) == {"samples/0", "samples/1", "closed"}
    assert images["samples/0"].shape == (3, 32, 5 * 32)
    assert 0 <= images["samples/0"].min() <= images["samples/0"].max() <= 1


# Real images

CAMVID = Path(__file__).parents[1] / "../shared/data/camvid-240x180"


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs CamVid in ../shared/data/camvid-240x180")
@pytest.mark.parametrize("name", ["camvid-small-plain", "camvid-small-robust"])
def test_training_on_camvid(name: str, tmp_path: Path) -> None:
    result = robseg.train(
        name, out=tmp_path, steps=2, batch_size=2, device="cpu", progress=False,
        **{"data.root": str(CAMVID), "validation.times": 0, "model.arguments.width": 4},
    )  # fmt: skip
    assert all(math.isfinite(line["loss"]) and line["accuracy"] > 0 for line in steps_of(tmp_path))
    assert len(read_model_folder(result.folder).classes) == 11
