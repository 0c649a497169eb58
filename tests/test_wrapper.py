"""The wrapper finds logits wherever networks put them, and the probe tells what is wrong with a model."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.models.modes import attack_mode
from robseg.models.probe import probe
from robseg.models.wrapper import SegmentationModel, find_logits
from tiny import tiny_problem

LOGITS = torch.arange(2 * 4 * 3 * 5, dtype=torch.float32).view(2, 4, 3, 5)
OTHER = torch.zeros(2, 4, 1, 1)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


Pair = namedtuple("Pair", ["aux", "out"])


@pytest.mark.parametrize(
    ("raw", "output"),
    [
        (LOGITS, None),
        ((LOGITS, OTHER), None),
        ([LOGITS], None),
        ([[LOGITS, OTHER], OTHER], None),
        ((OTHER, LOGITS), 1),
        ({"out": LOGITS, "aux": OTHER}, None),
        (OrderedDict(aux=OTHER, logits=LOGITS), None),
        ({"semantic": LOGITS, "features": torch.zeros(2, 7)}, None),
        ({"a": OTHER, "b": LOGITS}, "b"),
        (Output(None, LOGITS), None),
        (Pair(OTHER, LOGITS), None),
        (SimpleNamespace(seg_logits=LOGITS, x=3), None),
    ],
)
def test_logits_are_found(raw, output):
    assert find_logits(raw, output) is LOGITS


@pytest.mark.parametrize(
    ("raw", "output", "words"),
    [
        ({"a": OTHER, "b": LOGITS}, None, "with a, b"),
        ({"a": LOGITS}, "logits", "with a"),
        ((), None, "tuple of 0"),
        ((LOGITS,), 3, "tuple of 1"),
        (None, None, "NoneType"),
        ("text", None, "str"),
        (LOGITS[:, 0], None, r"\(2, 3, 5\)"),
        (LOGITS.argmax(1), None, "predicted classes"),
        (LOGITS.long(), None, "predicted classes"),
    ],
)
def test_logits_are_not_found(raw, output, words):
    with pytest.raises(UserError, match=words):
        find_logits(raw, output)


class Channels(nn.Module):
    """Gives its input back at half the size, as three classes."""

    def forward(self, x):
        return {"out": F.avg_pool2d(x, 2)}


class InPlace(nn.Module):
    """Normalises its input in place, as some published networks do."""

    def forward(self, x):
        return x.mul_(255).sub_(100)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("batch", [1, 2])
def test_networks_that_work_in_place_leave_the_images_alone(batch, precision):
    images = torch.rand(batch, 3, 4, 4, dtype=torch.float64 if precision == "fp64" else torch.float32)
    before = images.clone()
    model = SegmentationModel(InPlace(), precision=precision)
    with torch.no_grad():
        model(images)
    assert torch.equal(images, before)
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 255.0))


def test_normalisation_and_resizing():
    images = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    mean, std = [0.5, 0.25, 0.1], [0.5, 2.0, 4.0]
    model = SegmentationModel(Channels(), mean=mean, std=std)
    normal = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    wanted = F.interpolate(F.avg_pool2d(normal, 2), size=(8, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images), wanted)
    torch.testing.assert_close(model(images[:1]), wanted[:1])
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.float32), ("fp16", torch.float32), ("fp64", torch.float64)],
)
def test_precision(precision, dtype):
    network, images, _ = tiny_problem(1, 4, (2, 16, 16))
    exact = network(images)
    model = SegmentationModel(network.float(), precision=precision)
    logits = model(images.float())
    assert logits.dtype == dtype
    tolerance = {"fp32": 1e-5, "fp64": 1e-5, "bf16": 0.1, "fp16": 0.02}[precision]
    assert (logits - exact).abs().max() < tolerance
    assert ((logits - exact).abs().max() > 1e-4) == (precision in ("bf16", "fp16"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": [0, 0, 0]}, "belong together"),
        ({"mean": [0.0], "std": [1.0]}, "3 values"),
        ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "above 0"),
    ],
)
def test_wrong_normalisation(arguments, words):
    with pytest.raises(UserError, match=words):
        SegmentationModel(Channels(), **arguments)


def test_attack_mode_restores_after_an_error():
    network, _, _ = tiny_problem(1, 4, (1, 16, 16))
    network.train()
    network.conv2.eval()
    network.head.bias.requires_grad_(False)

    def attack():
        with attack_mode(network):
            assert not network.training
            assert not any(p.requires_grad for p in network.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        attack()
    assert (network.training, network.conv2.training) == (True, False)
    assert (network.head.weight.requires_grad, network.head.bias.requires_grad) == (True, False)


class Wrong(nn.Module):
    """The tiny network with a fault."""

    def __init__(self, network, fault):
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x):
        return self.fault(self.network, x)


def _fails(network, x):
    raise RuntimeError("sizes 7 and 8 do not match\nand a second line")


def _batch_norm(network, x):
    return F.batch_norm(network(x), None, None, training=True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_fails, "sizes 7 and 8 do not match"),
        (lambda n, x: n(x)[:, :3], "3 classes and the data 4"),
        (lambda n, x: n(x)[:, :1], "single logit"),
        (lambda n, x: n(x) * torch.nan, "NaN logits"),
        (lambda n, x: n(x) * torch.inf, "logits on clean"),
        (lambda n, x: n(x)[:1], "1 answers to 3 images"),
        (lambda n, x: n(x).argmax(1), "predicted classes"),
    ],
)
def test_probe_refuses(fault, words):
    network, images, labels = tiny_problem(1, 4, (3, 16, 16))
    with pytest.raises(UserError, match=words):
        probe(SegmentationModel(Wrong(network, fault)), images, labels, 4)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda n, x: n(x), None),
        (lambda n, x: F.dropout(n(x), 0.5, training=True), "answers differently"),
        (lambda n, x: n(x + 0.1 * torch.randn_like(x)), "answers differently"),
        (_batch_norm, "depends on the other images"),
        (lambda n, x: n((x * 16).round() / 16), "gradient masking"),
        (lambda n, x: n(x.detach()), "gradient masking"),
        (lambda n, x: n(x) * (1 + 0 * (x - x.detach()).sqrt().mean()), "gradient masking"),
    ],
)
def test_probe_warns(fault, words):
    network, images, labels = tiny_problem(1, 4, (3, 16, 16))
    model = SegmentationModel(Wrong(network, fault))
    model.train()
    warnings = probe(model, images, labels, 4)
    assert model.training
    if words is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert words in warnings[0]


def test_dropout_modules_are_switched_off():
    network, images, labels = tiny_problem(1, 4, (3, 16, 16))
    model = SegmentationModel(nn.Sequential(network, nn.Dropout(0.5))).train()
    assert probe(model, images, labels, 4) == []
