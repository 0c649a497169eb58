"""Attacks and evaluations in odd circumstances: callers without gradients, answers without numbers, narrow types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robseg
from robseg.attacks.catalogue import ATTACKS, AttackConfig
from robseg.errors import UserError
from robseg.models.probe import probe
from robseg.models.wrapper import SegmentationModel
from tiny import tiny_problem

NETWORK, IMAGES, LABELS = tiny_problem(1, 3, (2, 12, 14))
NETWORK, IMAGES = NETWORK.float(), IMAGES.float()
EPS = 8 / 255
ATTACKED: dict[str, Callable[[nn.Module, Tensor, Tensor], robseg.attacks.problem.AttackResult]] = {
    "fgsm": lambda m, x, y: robseg.fgsm(m, x, y, eps=EPS),
    "bim": lambda m, x, y: robseg.bim(m, x, y),
    "pgd": lambda m, x, y: robseg.pgd(m, x, y, eps=EPS, alpha=0.01, steps=4),
    "apgd": lambda m, x, y: robseg.apgd(m, x, y, eps=EPS, steps=6),
    "apgd reduced": lambda m, x, y: robseg.apgd(m, x, y, eps=EPS, steps=6, radius="reduced", objective="js"),
}


def right(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return (network(images).argmax(1) == LABELS).flatten(1).double().mean(1)


@pytest.mark.parametrize("name", ATTACKED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_the_caller_has_switched_off_changes_nothing(
    name: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    wanted = ATTACKED[name](NETWORK, IMAGES, LABELS)
    with mode():
        found = ATTACKED[name](NETWORK, IMAGES.clone(), LABELS.clone())
    assert torch.equal(found.adversarial, wanted.adversarial)
    assert torch.equal(found.accuracy, wanted.accuracy)
    assert (wanted.accuracy < right(NETWORK, IMAGES)).all()


def samples(count: int = 3, side: int = 16) -> list[tuple[Tensor, Tensor, str]]:
    network, images, labels = tiny_problem(1, 3, (count, side, side))
    del network
    return [(image.float(), label, str(i)) for i, (image, label) in enumerate(zip(images, labels, strict=True))]


def evaluate(model: Any, data: Any, out: Path, **changes: Any) -> robseg.Result:
    settings: dict[str, Any] = {"eps": 4, "attack": "pgd?steps=2", "classes": 3, "device": "cpu", "progress": False}
    return robseg.evaluate(model, data, out=out, **(settings | changes))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_without_the_callers_gradients(mode: Any, tmp_path: Path) -> None:
    wanted = evaluate(NETWORK, samples(), tmp_path / "plain")
    with mode():
        found = evaluate(NETWORK, samples(), tmp_path / "in mode")
    assert found.at(4).worst_case == wanted.at(4).worst_case
    assert found.warnings == wanted.warnings


class Breaks(nn.Module):
    """A network whose answer is a number for the clean images alone."""

    def __init__(self, value: float, always: bool = False) -> None:
        super().__init__()
        self.inner, self.value, self.always = NETWORK, value, always

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        moved = ~(images[:, None] == IMAGES[None]).flatten(2).all(2).any(1)
        broken = torch.ones_like(moved) if self.always else moved
        return torch.where(broken[:, None, None, None], logits.detach() * self.value, logits)


@pytest.mark.parametrize("name", ATTACKED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_points_without_numbers_are_never_the_result(name: str, value: float) -> None:
    network = Breaks(value)
    found = ATTACKED[name](network, IMAGES, LABELS)
    with torch.no_grad():
        assert network(found.adversarial).isfinite().all()
    assert (found.invalid_points > 0).all()
    assert found.accuracy.tolist() == pytest.approx(right(NETWORK, found.adversarial).tolist())


@pytest.mark.parametrize("name", ATTACKED)
def test_where_no_answer_is_a_number_the_image_stays_as_it_is(name: str) -> None:
    found = ATTACKED[name](Breaks(float("nan"), always=True), IMAGES, LABELS)
    assert torch.equal(found.adversarial, IMAGES)
    assert found.accuracy.tolist() == [1, 1]
    # Every look, that at the image itself included, was one at which no answer was a number.
    assert (found.forward_passes == found.invalid_points + 1).all()


def test_an_evaluation_goes_past_points_without_numbers(tmp_path: Path) -> None:
    data = [(image, label, str(i)) for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))]
    result = evaluate(Breaks(float("nan")), data, tmp_path, attack=["fgsm", "apgd-ce?steps=3"], batch_size=1)
    assert result.at(4).worst_case.aacc == pytest.approx(result.clean.aacc)
    assert any("NaN" in warning for warning in result.warnings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ATTACKED)
def test_narrow_images(name: str, dtype: torch.dtype) -> None:
    for network in (NETWORK, lambda x: NETWORK(x.float()), lambda x: NETWORK(x.float()).to(dtype)):
        if network is NETWORK:
            continue
        found = ATTACKED[name](network, IMAGES.to(dtype), LABELS)  # type: ignore[arg-type]
        assert found.adversarial.dtype == dtype
        assert found.best_loss.dtype == torch.float32
        assert (found.accuracy <= right(NETWORK, IMAGES.to(dtype).float()) + 0.05).all()


def moved(value: int, dtype: torch.dtype = torch.int64) -> Tensor:
    labels = LABELS.clone()
    labels[0, 0, 0] = value
    return labels.to(dtype)


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (moved(-1), {}, "0 or more"),
        (moved(3), {}, "labels hold 3, but the model gives 3 classes"),
        (LABELS.float(), {}, "integers"),
        (LABELS, {"objective": "mce-bal", "class_weights": torch.ones(2)}, "for 2 classes"),
        (LABELS, {"objective": "mce-bal", "class_weights": torch.tensor([1, 1, float("nan")])}, "finite"),
        (LABELS, {"objective": "mce-bal", "class_weights": torch.tensor([1, 1, -1.0])}, "0 or more"),
    ],
)
def test_labels_and_weights_that_do_not_fit(labels: Tensor, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        robseg.apgd(NETWORK, IMAGES, labels, eps=EPS, steps=2, **more)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_other_integers(dtype: torch.dtype) -> None:
    wanted = ATTACKED["apgd"](NETWORK, IMAGES, moved(255))
    assert torch.equal(ATTACKED["apgd"](NETWORK, IMAGES, moved(255).to(torch.int32)).accuracy, wanted.accuracy)
    assert torch.equal(ATTACKED["apgd"](NETWORK, IMAGES, moved(255).to(dtype)).accuracy, wanted.accuracy)


PGD = ATTACKS["pgd"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "foo"}, "method .* 'foo'"),
        ({"keep": "x"}, "keep .* 'x'"),
        ({"steps": 0}, "steps .* is 0"),
        ({"restarts": 0}, "restarts .* is 0"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"radius": "reduced"}, "radius .* changes nothing"),
        ({"tracked": "ce"}, "tracked .* changes nothing"),
        ({"method": "apgd"}, "alpha .* changes nothing"),
        ({"method": "apgd", "alpha": None, "keep": "last"}, "keep .* changes nothing"),
        ({"name": "clean"}, "cannot be called"),
    ],
)
def test_attacks_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AttackConfig(**({f: getattr(PGD, f) for f in PGD.__dataclass_fields__} | changes))


@pytest.mark.parametrize(
    "text", ["apgd-ce?alpha=5", "apgd-ce?keep=last", "pgd?radius=reduced", "pgd?tracked=ce", "pgd?alpha=inf"]
)
def test_options_without_effect_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attack"):
        evaluate(NETWORK, samples(), tmp_path, attack=text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": "12"}, "eps is '12'"),
        ({"eps": None}, "eps is None"),
        ({"eps": [1, None]}, "eps is"),
        ({"eps": [1.0000001, 1]}, "radii 1.0 and 1.0000001"),
        ({"eps": [7.65, 7.6500001]}, "radii"),
        ({"eps": float("inf"), "norm": "l2"}, "finite number of 0 or more"),
        ({"attack": [AttackConfig("é", "pgd", "ce", 1), AttackConfig("ü", "pgd", "mce", 1)]}, "'é' and 'ü'"),
        ({"seed": -1}, "seed"),
        ({"mean": [float("nan"), 0, 0], "std": [1, 1, 1]}, "mean"),
        ({"mean": [0, 0, 0], "std": [float("inf"), 1, 1]}, "std"),
        ({"train_data": "nope"}, "data set 'nope'"),
        ({"device": "meta"}, "meta"),
    ],
)
def test_settings_that_would_spoil_a_run(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(NETWORK, samples(), tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("eps", [np.int64(4), np.float32(4), torch.tensor(4.0), 4, [4], (np.float64(4),)])
def test_a_radius_of_any_library(eps: Any, tmp_path: Path) -> None:
    assert [radius.eps for radius in evaluate(NETWORK, samples(), tmp_path, eps=eps).radii] == [4]


class Even(nn.Module):
    """A network that takes images of even sides alone."""

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = NETWORK(images)
        return found + torch.zeros(1, 1, 2 * (images.shape[2] // 2), 1)


def test_every_size_is_tried_before_the_attacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fails on images of 1x3x15x15"):
        evaluate(Even(), [*samples(2, 16), (*samples(1, 15)[0][:2], "odd")], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The mended command may use the same folder.
    evaluate(Even(), samples(2, 16), tmp_path / "run")


class Batchwise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = NETWORK(images)
        return logits + 10.0 * (len(images) > 2) * torch.arange(3).view(1, 3, 1, 1)


def test_batch_dependence_is_seen_whatever_size_comes_first(tmp_path: Path) -> None:
    data = [(*samples(1, 12)[0][:2], "alone"), *samples(4, 16)]
    assert any("batch" in warning for warning in evaluate(Batchwise(), data, tmp_path).warnings)


def test_few_labelled_pixels_are_no_masked_gradient() -> None:
    torch.manual_seed(0)
    labels = torch.full((2, 32, 32), 255)
    labels[:, :3, :3] = 1
    assert probe(SegmentationModel(nn.Conv2d(3, 3, 1)), torch.rand(2, 3, 32, 32), labels, 3) == []


def test_a_network_in_doubles_is_evaluated_in_doubles(tmp_path: Path) -> None:
    network = tiny_problem(1, 3, (1, 8, 8))[0]
    assert evaluate(network, samples(), tmp_path).model.precision == "fp64"
