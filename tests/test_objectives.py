"""Properties of the objectives: what they are by definition, and that no logit gap or precision breaks them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robseg.attacks.objectives import OBJECTIVES, inverse_frequency_weights, objective_arguments

NAMES = sorted(OBJECTIVES)


def value(name, logits, labels, **extra):
    offered = {"class_weights": torch.full((logits.shape[1],), 1 / logits.shape[1]), "progress": 0.5, **extra}
    objective = OBJECTIVES[name]
    wanted = objective_arguments(objective)
    return objective(logits, labels, **{k: v for k, v in offered.items() if k in wanted})


def random_case(seed, classes=6, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, classes, 5, 7, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (2, 5, 7), generator=generator)
    labels[:, :2, :3] = 255
    return logits, labels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [0.0, 1e-3, 1.0, 20.0, 88.0, 104.0, 1e3, 1e4, 6e4])
def test_finite_at_any_gap(name, dtype, gap):
    # Right by the gap, wrong by the gap, and all classes equal.
    logits = torch.zeros(1, 4, 1, 3, dtype=dtype)
    logits[0, 0, 0, 0], logits[0, 1, 0, 1] = gap, gap
    labels = torch.zeros(1, 1, 3, dtype=torch.int64)
    logits.requires_grad_(True)
    values = value(name, logits, labels)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert values.dtype == torch.float32


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(deadline=None, max_examples=200)
def test_js_lies_between_0_and_log_2(a, b, dtype):
    logits = torch.tensor([a, b, 0.0], dtype=dtype).view(1, 3, 1, 1).requires_grad_(True)
    js = value("js", logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(js.sum(), logits)
    assert 0 <= js.item() <= math.log(2) + 1e-6
    assert gradient.isfinite().all()


def test_js_is_the_divergence_of_the_definition():
    logits, labels = random_case(0)
    p = logits.softmax(1)
    onehot = torch.nn.functional.one_hot(labels.where(labels != 255, 0), 6).permute(0, 3, 1, 2).double()
    middle = (p + onehot) / 2
    kl_p = (p * (p / middle).log()).sum(1)
    kl_onehot = torch.xlogy(onehot, onehot / middle).sum(1)
    torch.testing.assert_close(value("js", logits, labels), (kl_p + kl_onehot) / 2 * (labels != 255))


def test_js_has_no_gradient_where_it_is_certain():
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).requires_grad_(True)
    js = value("js", logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    assert js.item() == 0
    assert torch.autograd.grad(js.sum(), logits)[0].abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignore_index", [255, -1, 3])
def test_ignored_pixels_give_nothing(name, ignore_index):
    logits, labels = random_case(1)
    labels = labels.where(labels != 255, ignore_index)
    logits.requires_grad_(True)
    values = value(name, logits, labels, ignore_index=ignore_index)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    ignored = labels == ignore_index
    assert values.shape == labels.shape
    assert (values[ignored] == 0).all()
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    assert (gradient.movedim(1, -1)[~ignored].abs().sum(-1) > 0).any()


@pytest.mark.parametrize("name", ["mce", "mce-bal", "msl"])
def test_masked_objectives_leave_wrong_pixels_alone(name):
    logits, labels = random_case(2)
    wrong = (logits.argmax(1) != labels) & (labels != 255)
    values = value(name, logits, labels)
    assert (values[wrong] == 0).all()
    assert (values[~wrong & (labels != 255)] != 0).all()


def test_relations_between_objectives():
    logits, labels = random_case(3)
    ce, mce = value("ce", logits, labels), value("mce", logits, labels)
    torch.testing.assert_close(value("segpgd", logits, labels, progress=0.0), mce)
    torch.testing.assert_close(value("segpgd", logits, labels, progress=1.0), ce / 2)
    weights = torch.tensor([[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]], dtype=torch.float64)
    per_image = value("mce-bal", logits, labels, class_weights=weights)
    for row in range(2):
        alone = value("mce-bal", logits[row : row + 1], labels[row : row + 1], class_weights=weights[row])
        torch.testing.assert_close(per_image[row : row + 1], alone)
    known = labels.where(labels != 255, 0)
    torch.testing.assert_close(per_image[0], weights[0][known[0]] * mce[0])
    # msl does not change with the scale of the logits, up to the largest floats.
    torch.testing.assert_close(value("msl", logits * 1e150, labels), value("msl", logits, labels))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_inverse_frequency_weights(pixels):
    counts = torch.tensor(pixels)
    if not any(pixels):
        with pytest.raises(ValueError, match="at least one"):
            inverse_frequency_weights(counts)
        return
    weights = inverse_frequency_weights(counts)
    assert weights.sum().item() == pytest.approx(1)
    present = counts > 0
    products = weights[present] * counts[present]
    torch.testing.assert_close(products, products[:1].expand_as(products))
    assert (weights[~present] == weights.max()).all()
