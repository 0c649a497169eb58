"""The published attacks' printed figures (tests/fixtures/attack.json), in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robseg.attacks.apgd import apgd
from robseg.attacks.objectives import OBJECTIVES, objective_arguments
from robseg.attacks.pgd import bim
from tiny import tiny_problem

FIGURES = json.loads((Path(__file__).parent / "fixtures" / "attack.json").read_text())
OURS = {
    "ce-avg": "ce",
    "mask-ce-avg": "mce",
    "mask-ce-bal": "mce-bal",
    "js-avg": "js",
    "segpgd-loss": "segpgd",
    "cospgd-loss": "cospgd",
    "mask-norm-corrlog-avg": "msl",
}
EPS = 8 / 255


@pytest.fixture(scope="module")
def setting():
    network, images, labels = tiny_problem(FIGURES["seed"], FIGURES["classes"], tuple(FIGURES["shape"]))
    ignored = labels.clone()
    ignored[:, :5, :7] = -1
    weights = torch.tensor(FIGURES["class_weights"], dtype=torch.float64)
    return network, images, {"full": labels, "ignore": ignored}, weights


def close(ours, published, rtol=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64), torch.tensor(published, dtype=torch.float64), rtol=rtol, atol=0
    )


def l1(images, moved):
    return (moved - images).abs().flatten(1).sum(1)


@pytest.mark.parametrize("case", FIGURES["losses"])
def test_losses_and_gradients(setting, case):
    network, images, labels, weights = setting
    name, variant = case.split("/")
    objective = OBJECTIVES[OURS[name]]
    offered = {"class_weights": weights, "progress": 0.3, "ignore_index": -1}
    x = images.clone().requires_grad_(True)
    arguments = {key: offered[key] for key in objective_arguments(objective) & offered.keys()}
    per_image = objective(network(x), labels[variant], **arguments).flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(per_image.sum(), x)
    figures = FIGURES["losses"][case]
    close(per_image.detach(), figures["per_image"])
    close(gradient.abs().flatten(1).sum(1), figures["grad_l1"])
    close(gradient[:, 1, images.shape[2] // 2, images.shape[3] // 2], figures["grad_at"])


@pytest.mark.parametrize("case", FIGURES["apgd"])
def test_apgd(setting, case):
    network, images, labels, weights = setting
    name, steps, tracked = case.split("/")
    result = apgd(
        network, images, labels["full"], eps=EPS, objective=OURS[name], steps=int(steps), random_start=False,
        tracked=None if tracked == "None" else OURS[tracked], class_weights=weights,
    )  # fmt: skip
    figures = FIGURES["apgd"][case]
    close(result.accuracy, figures["accuracy"])
    close(result.best_loss, figures["best_loss"])
    close(l1(images, result.adversarial), figures["best_accuracy_l1"])
    close(l1(images, result.best_loss_adversarial), figures["best_loss_l1"])


@pytest.mark.parametrize("case", FIGURES["red_eps"])
def test_reduced_radius(setting, case):
    network, images, labels, weights = setting
    name, steps = case.split("/")
    result = apgd(
        network, images, labels["full"], eps=EPS, objective=OURS[name], steps=int(steps), random_start=False,
        tracked="ce", radius="reduced", class_weights=weights,
    )  # fmt: skip
    figures = FIGURES["red_eps"][case]
    close(result.accuracy, figures["final_accuracy"])
    close((result.adversarial - images).abs().max(), figures["max_perturbation"])
    close(l1(images, result.adversarial), figures["l1"])


@pytest.mark.parametrize("case", FIGURES["bim"])
def test_bim(setting, case):
    network, images, labels, _ = setting
    steps, eps, alpha = case.split("/")
    result = bim(
        network, images, labels["ignore"], eps=float(eps), alpha=float(alpha), steps=int(steps), ignore_index=-1
    )
    close(result.accuracy, FIGURES["bim"][case]["accuracy"])
    close(l1(images, result.adversarial), FIGURES["bim"][case]["l1"])
