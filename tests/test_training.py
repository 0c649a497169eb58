"""The small network, the training loop and the folder of a trained model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robseg.data import open_data
from robseg.data.base import IGNORE_INDEX, ClassList, Sample
from robseg.data.samples import SampleList
from robseg.data.shapes import Shapes
from robseg.errors import UserError
from robseg.loading.model_folder import read_model_folder, save_model
from robseg.models.small_unet import small_unet
from robseg.training.fit import Recipe, augment, fit, learning_rate, perturb

QUICK = Recipe(steps=3, batch_size=2, lr=1e-3)
TWO = ClassList(("left", "right"), ((0, 0, 0), (255, 0, 0)))


def fresh(seed: int = 0, num_classes: int = 6, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_unet(num_classes, width)


def some_images(count: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    samples = list(Shapes(count=count, size=size, split="train"))
    return torch.stack([s.image for s in samples]), torch.stack([s.label for s in samples])


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


# Training


@pytest.mark.parametrize("method", ["clean", "at"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(method: str) -> None:
    recipe = dataclasses.replace(QUICK, method=method)
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(networks))
        # Dropout draws from the global generator, which the loop has to take in hand.
        networks.append(nn.Sequential(fresh(), nn.Dropout(0.2)))
        before = torch.get_rng_state()
        fit(networks[-1], Shapes(count=5, size=32, split="train"), recipe, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
    assert same_weights(networks[0], networks[1])
    assert not same_weights(networks[0], networks[2])


@pytest.mark.parametrize("method", ["clean", "at"])
def test_training_learns_and_writes_its_record(method: str, tmp_path: Path) -> None:
    recipe = Recipe(method=method, steps=30, batch_size=4, lr=1e-2, attack_steps=1, eps=2.0)
    seen: list[int] = []
    network = fresh(width=8)
    history = fit(
        network,
        Shapes(count=4, size=32, split="train"),
        recipe,
        out=tmp_path / "run",
        progress=lambda p: seen.append(p.step),
    )
    assert seen == [p.step for p in history] == list(range(1, 31))
    assert history[-1].loss < 0.7 * history[0].loss
    assert history[-1].accuracy > 0.7
    assert not network.training
    lines = (tmp_path / "run" / "training.csv").read_text().splitlines()
    assert lines[0] == "step,loss,accuracy,lr"
    assert len(lines) == 31
    assert float(lines[-1].split(",")[1]) == pytest.approx(history[-1].loss, rel=1e-5)


def test_perturb_stays_in_the_ball_raises_the_loss_and_leaves_the_network_as_it_was() -> None:
    network = fresh()
    network.train()
    images, labels = some_images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keys = ["a", "b", "c"]
    found = perturb(network, images, labels, eps=8 / 255, alpha=3 / 255, steps=3, seed=0, keys=keys)

    assert (found - images).abs().max() <= 8 / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    network.eval()
    losses = [F.cross_entropy(network(x), labels, ignore_index=IGNORE_INDEX) for x in (images, found)]
    assert losses[1] > losses[0]

    # An image's perturbation does not depend on the company it is in.
    alone = perturb(network, images[1:2], labels[1:2], eps=8 / 255, alpha=3 / 255, steps=3, seed=0, keys=["b"])
    assert ((alone - found[1:2]).abs() > 1e-6).float().mean() < 0.01


def test_perturb_with_everything_ignored_only_adds_the_random_start() -> None:
    images, labels = some_images()
    labels = torch.full_like(labels, IGNORE_INDEX)
    arguments = {"eps": 8 / 255, "alpha": 3 / 255, "seed": 0, "keys": ["a", "b", "c"]}
    still = perturb(fresh(), images, labels, steps=3, **arguments)
    assert torch.equal(still, perturb(fresh(), images, labels, steps=0, **arguments))
    assert not torch.equal(still[0] - images[0], still[1] - images[1])


def test_ignored_pixels_change_nothing_and_a_batch_without_counted_pixels_is_no_nan() -> None:
    images, labels = some_images(2)
    weights = []
    for fill in (0.0, 1.0):
        painted = images.clone()
        hidden = labels.clone()
        hidden[:, :, 20:] = IGNORE_INDEX
        painted[:, :, :, 20:] = fill
        data = SampleList([(painted[i], hidden[i], str(i)) for i in range(2)], Shapes().classes)
        # A network of single pixels, so that what lies under ignored labels can matter through the loss only.
        network = nn.Conv2d(3, 6, 1)
        nn.init.constant_(network.weight, 0.1)
        nn.init.constant_(network.bias, 0.0)
        fit(network, data, dataclasses.replace(QUICK, method="at", flip=False))
        weights.append(network.weight.detach())
    assert torch.equal(weights[0], weights[1])

    void = SampleList([(images[0], torch.full_like(labels[0], IGNORE_INDEX), "void")], Shapes().classes)
    assert fit(fresh(), void, dataclasses.replace(QUICK, method="at"))[-1].loss == 0


def test_the_gradient_of_a_step_is_that_of_the_adversarial_batch_alone() -> None:
    data = Shapes(count=2, size=32, split="train")
    recipe = Recipe(method="at", steps=1, batch_size=2, lr=1e-3, warmup=0, flip=False)
    network = fresh()
    fit(network, data, recipe, seed=4)
    trained = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    expected = fresh().to(memory_format=torch.channels_last)
    order = sorted(range(2), key=lambda i: data.ids[i])
    images, labels = (torch.stack([data[i][k] for i in order]) for k in (0, 1))
    keys = [f"{data.ids[i]}/epoch 0" for i in order]
    found = perturb(expected, images, labels, eps=4 / 255, alpha=3 / 255, steps=2, seed=4, keys=keys)
    expected.train()
    F.cross_entropy(expected(found), labels, ignore_index=IGNORE_INDEX).backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(trained[name], parameter.grad, rtol=2e-2, atol=2e-3)


def test_learning_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    recipe = Recipe(steps=100, lr=0.5, warmup=0.1)
    rates = [learning_rate(step, recipe) for step in range(1, 101)]
    assert rates[9] == max(rates) == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.01 * recipe.lr
    assert rates[0] == pytest.approx(0.05)
    assert all(learning_rate(1, Recipe(steps=1, warmup=warmup)) > 0 for warmup in (0, 0.5, 1))


@pytest.mark.parametrize(("crop", "size"), [(24, (24, 24)), (40, (40, 40)), (None, (28, 36))])
def test_augmentation_moves_image_and_label_together(crop: int | None, size: tuple[int, int]) -> None:
    label = torch.arange(28)[:, None] % 7 * 36 + torch.arange(36) // 8
    sample = Sample((label / 252).expand(3, -1, -1), label, "x")
    results = []
    for seed in range(12):
        image, moved, _ = augment(sample, Recipe(crop=crop), torch.Generator().manual_seed(seed))
        assert tuple(moved.shape) == tuple(image.shape[1:]) == size
        inside = moved != IGNORE_INDEX
        assert torch.equal((image[0] * 252).round().long()[inside], moved[inside])
        assert (image[:, ~inside] == 0).all()
        assert inside.float().mean() == pytest.approx(min(28, size[0]) * min(36, size[1]) / math.prod(size), abs=1e-6)
        results.append(moved.numpy().tobytes())
    assert len(set(results)) > (1 if crop is None else 5) or crop == 40


def test_images_of_different_sizes_need_a_crop() -> None:
    sizes = [(32, 32), (40, 24)]
    samples = [(torch.rand(3, *size), torch.zeros(size, dtype=torch.int64), f"{size}") for size in sizes]
    data = SampleList(samples, TWO)
    with pytest.raises(UserError, match="crop"):
        fit(fresh(num_classes=2), data, QUICK)
    fit(fresh(num_classes=2), data, dataclasses.replace(QUICK, crop=32))


def test_a_diverging_training_says_at_which_step_and_rate() -> None:
    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = fresh(), 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            logits: Tensor = self.inner(images)
            return logits * (float("nan") if self.calls == 2 else 1)

    with pytest.raises(UserError, match=r"nan at step 2, rate 0\.0005"):
        fit(Poisoned(), Shapes(count=2, size=32), dataclasses.replace(QUICK, lr=5e-4, steps=2, warmup=0.9))
    with pytest.raises(UserError, match="diverged"):
        fit(fresh(), Shapes(count=2, size=32), dataclasses.replace(QUICK, lr=1e30))


def test_a_network_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(2, 3, 32, 32\).*\(2, 6, 32, 32\)"):
        fit(fresh(num_classes=3), Shapes(count=2, size=32), QUICK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"eps": -1.0},
        {"alpha": float("inf")},
        {"attack_steps": 0},
        {"crop": 0},
        {"warmup": 1.5},
        {"method": "atq"},
    ],
)
def test_recipes_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=str(next(iter(wrong)))):
        Recipe(**wrong)


# The folder of a model


def save(folder: Path, **changes: object) -> nn.Module:
    network = fresh(num_classes=2).to(memory_format=torch.channels_last)
    settings: dict[str, object] = {
        "architecture": "small_unet",
        "arguments": {"num_classes": 2, "width": 4},
        "classes": TWO,
        "training": {"data": "shapes", "final_loss": 0.25, "recipe": dataclasses.asdict(QUICK)},
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
    assert Recipe(**back.description.training["recipe"]) == QUICK


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


# Real images

CAMVID = Path(__file__).parents[1] / "../shared/data/camvid-240x180"


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs CamVid in ../shared/data/camvid-240x180")
@pytest.mark.parametrize(("crop", "method"), [(None, "clean"), (160, "at")])
def test_training_on_camvid(crop: int | None, method: str) -> None:
    data = open_data(f"camvid:{CAMVID}?split=train&without=0016E5")
    recipe = Recipe(method=method, steps=2, batch_size=2, crop=crop, attack_steps=1)
    history = fit(fresh(num_classes=11), data, recipe)
    assert all(math.isfinite(p.loss) and p.accuracy > 0 for p in history)
