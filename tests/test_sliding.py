"""Sliding windows and padding as part of the model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robseg.attacks.catalogue import ATTACKS
from robseg.attacks.windowed import attack_each_window
from robseg.errors import UserError
from robseg.evaluation.survey import model_fingerprint
from robseg.models.adapters import Padded
from robseg.models.sliding import MEAN_COLOUR, SlidingWindow, window_starts, with_window
from robseg.models.wrapper import SegmentationModel


class Local(nn.Module):
    """Logits of each pixel from its own colour alone, so that windows cannot matter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.mean(1, keepdim=True), x[:, :1] * x[:, 1:2]], 1) * 3


class Placed(nn.Module):
    """Logits that depend on where in the window a pixel lies, on the whole window, and are of half its size."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        small = F.avg_pool2d(x, 2, ceil_mode=True)
        ramp = torch.linspace(-1, 1, small.shape[-1], dtype=x.dtype)
        return {"out": torch.cat([small + ramp, small.mean((2, 3), keepdim=True) + small[:, :1] * ramp], 1) * 2}


def images(height: int, width: int, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


@given(st.integers(1, 300), st.integers(1, 60), st.floats(0.05, 1))
def test_windows_cover_the_side_and_end_with_it(extra: int, crop: int, stride: float) -> None:
    side = crop + extra - 1
    starts = window_starts(side, crop, stride)
    step = math.ceil(crop * stride)
    assert starts[0] == 0
    assert starts[-1] == side - crop
    assert all(0 < after - before <= step for before, after in itertools.pairwise(starts))
    assert starts[:-1] == [index * step for index in range(len(starts) - 1)]


def test_the_published_grids() -> None:
    assert window_starts(512, 473, 2 / 3) == [0, 39]
    assert window_starts(1024, 449, 2 / 3) == [0, 300, 575]
    assert window_starts(512, 449, 2 / 3) == [0, 63]


def reference(network: nn.Module, x: Tensor, crop: int, stride: float, flip: bool) -> Tensor:
    """Probabilities by loops, one window and one mirrored window at a time, summed and counted."""
    height, width = x.shape[-2:]
    tall, wide = max(crop, height), max(crop, width)
    top, left = (tall - height) // 2, (wide - width) // 2
    canvas = torch.full((len(x), 3, tall, wide), 0.25, dtype=x.dtype)
    canvas[..., top : top + height, left : left + width] = x

    def probabilities(window: Tensor) -> Tensor:
        out = network(window)
        logits = out["out"] if isinstance(out, dict) else out
        return F.interpolate(logits, size=(crop, crop), mode="bilinear", align_corners=False).softmax(1)

    total, count = 0, torch.zeros(tall, wide, dtype=x.dtype)
    step = math.ceil(crop * stride)
    for row in range(math.ceil((tall - crop) / step) + 1):
        for column in range(math.ceil((wide - crop) / step) + 1):
            r, c = min(row * step, tall - crop), min(column * step, wide - crop)
            window = canvas[..., r : r + crop, c : c + crop]
            found = probabilities(window)
            if flip:
                found = (found + probabilities(window.flip(-1)).flip(-1)) / 2
            total = total + F.pad(found, (c, wide - c - crop, r, tall - r - crop))
            count[r : r + crop, c : c + crop] += 1
    return (total / count)[..., top : top + height, left : left + width]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(2, 20), st.sampled_from([0.3, 0.5, 2 / 3, 1.0]), st.booleans()
)
def test_windows_are_averaged_as_the_published_loops_do(
    height: int, width: int, crop: int, stride: float, flip: bool
) -> None:
    x = images(height, width)
    model = SlidingWindow(Placed(), crop, stride, flip=flip, fill=(0.25, 0.25, 0.25))
    want = reference(Placed(), x, crop, stride, flip)
    assert torch.allclose(model(x).exp(), want, atol=1e-9)


def test_windows_do_not_matter_to_a_network_that_sees_single_pixels() -> None:
    x = images(37, 29)
    assert torch.allclose(SlidingWindow(Local(), 16)(x), Local()(x).log_softmax(1))


@pytest.mark.parametrize("flip", [False, True])
def test_the_gradient_is_that_of_the_average_through_all_windows(flip: bool) -> None:
    x = images(9, 13, batch=1).requires_grad_()
    model = SlidingWindow(Placed(), 6, flip=flip, fill=(0.25, 0.25, 0.25))
    weights = torch.rand(1, 6, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((model(x) * weights).sum(), x)
    (want,) = torch.autograd.grad((reference(Placed(), x, 6, 2 / 3, flip).log() * weights).sum(), x)
    assert torch.allclose(found, want, atol=1e-9)
    assert (found != 0).all()


@pytest.mark.parametrize("long_side", [None, 20])
def test_the_gradient_of_a_sure_network_does_not_vanish(long_side: int | None) -> None:
    """Logits 300 apart: as float32 the probability is nought, and so would its gradient be."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([300 + x[:, :1], x[:, 1:]], 1)

    x = images(16, 16).float().requires_grad_()
    logits = SlidingWindow(Sure(), 8, long_side=long_side)(x)
    loss = F.cross_entropy(logits, torch.ones(2, 16, 16, dtype=torch.long))
    assert loss.item() == pytest.approx(300, abs=2)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()
    assert (gradient[:, :2] != 0).all()


def test_long_side_scales_there_and_back() -> None:
    x = images(20, 30)
    small = F.interpolate(x, size=(10, 15), mode="bilinear", align_corners=False)
    want = reference(Placed(), small, 8, 2 / 3, False)
    want = F.interpolate(want, size=(20, 30), mode="bilinear", align_corners=False)
    found = SlidingWindow(Placed(), 8, long_side=15)(x)
    assert torch.allclose(found.exp(), want, atol=1e-9)
    assert torch.allclose(found.exp().sum(1), torch.ones(2, 20, 30, dtype=torch.float64))


def test_with_window_keeps_normalisation_and_fills_with_the_mean() -> None:
    x = images(7, 12).float()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)
    model = with_window(SegmentationModel(Placed(), mean=mean, std=std), 10, flip=True)
    shift = torch.tensor(mean).view(1, 3, 1, 1)
    scale = torch.tensor(std).view(1, 3, 1, 1)
    want = SlidingWindow(Placed(), 10, flip=True)((x - shift) / scale)
    assert torch.allclose(model(x), want, atol=1e-6)
    plain = with_window(SegmentationModel(Placed(), precision="fp64"), 10)
    assert torch.allclose(plain(x), SlidingWindow(Placed(), 10, fill=MEAN_COLOUR)(x.double()))
    assert plain(x).dtype == torch.float64


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 4, 16]))
def test_padded_gives_the_network_sides_it_can_divide(height: int, width: int, multiple: int) -> None:
    sizes = []

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(tuple(x.shape[-2:]))
            return x[..., ::2, ::2] if multiple > 1 else x

    x = images(height, width)
    found = Padded(Picky(), multiple, fill=(0.1, 0.2, 0.3))(x)
    assert found.shape == x.shape
    assert all(
        side % multiple == 0 and side < limit + multiple for side, limit in zip(sizes[0], (height, width), strict=True)
    )
    assert torch.equal(Padded(Local(), multiple)(x), Local()(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop": 0}, "0 pixels wide"),
        ({"crop": 4, "stride": 0}, "stride of the sliding window is 0 "),
        ({"crop": 4, "stride": 1.5}, r"must be in \(0, 1\]"),
        ({"crop": 4, "long_side": 0}, "long side to scale images to is 0"),
    ],
)
def test_bad_windows(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SlidingWindow(Local(), **arguments)
    with pytest.raises(UserError, match="multiples of 0"):
        Padded(Local(), 0)


def test_other_windows_are_another_model_and_load_each_others_weights() -> None:
    network = nn.Conv2d(3, 2, 1)
    first = SegmentationModel(SlidingWindow(network, 8))
    others = [SlidingWindow(network, 9), SlidingWindow(network, 8, 0.5), SlidingWindow(network, 8, flip=True)]
    others += [SlidingWindow(network, 8, long_side=64), SlidingWindow(network, 8, fill=(0.1, 0, 0))]
    prints = {model_fingerprint(SegmentationModel(other)) for other in others}
    assert len(prints | {model_fingerprint(first)}) == 6
    assert model_fingerprint(SegmentationModel(SlidingWindow(network, 8))) == model_fingerprint(first)
    others[0].load_state_dict(first.network.state_dict())
    assert others[0].crop == 9


# One adversarial image, and the published attack on each window


def problem(seed: int) -> tuple[SegmentationModel, Tensor, Tensor]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1)).double()
    x = images(14, 22, seed=seed)
    model = SegmentationModel(network.requires_grad_(False), precision="fp64")
    return model, x, with_window(model, 10)(x).argmax(1)


def accuracy(logits: Tensor, y: Tensor) -> float:
    counted = y != 255
    return float((logits.argmax(1) == y)[counted].float().mean())


def test_one_adversarial_image_is_attacked_through_all_windows() -> None:
    model, x, y = problem(0)
    whole = with_window(model, 10)
    adversarial = ATTACKS["pgd-ce"].run(whole, x, y, eps=8 / 255).adversarial
    assert adversarial.shape == x.shape
    assert float((adversarial - x).abs().max()) <= 8 / 255 + 1e-9
    assert accuracy(whole(adversarial), y) < accuracy(whole(x), y) - 0.1


@pytest.mark.parametrize("crop", [10, 16])
def test_each_window_is_attacked_with_its_labels(crop: int) -> None:
    model, x, y = problem(1)
    y[:, :3] = 255
    found = attack_each_window(model, x, y, ATTACKS["bim"], eps=0.03, crop=crop)
    assert found.shape == (2, 4, 14, 22)
    assert torch.allclose(found.exp().sum(1), torch.ones_like(found[:, 0]))
    clean = attack_each_window(model, x, y, ATTACKS["bim"], eps=0.0, crop=crop)
    assert torch.allclose(clean, with_window(model, crop)(x))
    assert accuracy(found, y) < accuracy(clean, y)


def test_one_window_that_is_the_image_is_the_ordinary_attack() -> None:
    model, x, y = problem(2)
    x, y = x[..., :14], y[..., :14]
    adversarial = ATTACKS["bim"].run(model, x, y, eps=0.03).adversarial
    found = attack_each_window(model, x, y, ATTACKS["bim"], eps=0.03, crop=14)
    assert torch.allclose(found, model(adversarial).log_softmax(1))
