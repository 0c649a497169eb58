"""Counts and the scores that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robseg.metrics.counts import Counts, concatenate, image_counts, stack
from robseg.metrics.scores import image_accuracy, image_miou, pooled_miou, scores

NAN = math.nan


def naive(prediction: np.ndarray, labels: np.ndarray, classes: int, ignore: int) -> tuple[list, list, list]:
    inter, union, target = ([[0] * classes for _ in labels] for _ in range(3))
    for b, (p_image, t_image) in enumerate(zip(prediction, labels, strict=True)):
        for p, t in zip(p_image.flat, t_image.flat, strict=True):
            if t == ignore:
                continue
            target[b][t] += 1
            union[b][t] += 1
            if p == t:
                inter[b][t] += 1
            else:
                union[b][p] += 1
    return inter, union, target


@st.composite
def batches(draw: st.DrawFn, ignore: int = 255) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Prediction, labels (with ignored pixels, at times nothing else) and the number of classes."""
    b, h, w, c = (draw(st.integers(1, n)) for n in (4, 4, 4, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, c, (b, h, w))
    labels[rng.random((b, h, w)) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = ignore
    return torch.from_numpy(rng.integers(0, c, (b, h, w))), torch.from_numpy(labels), c


@settings(deadline=None)
@given(batches())
def test_counts_are_those_of_a_plain_loop(batch: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    prediction, labels, c = batch
    counts = image_counts(prediction, labels, c)
    inter, union, target = naive(prediction.numpy(), labels.numpy(), c, 255)
    assert counts.intersection.tolist() == inter
    assert counts.union.tolist() == union
    assert counts.target.tolist() == target
    assert {a.dtype for a in (counts.intersection, counts.union, counts.target)} == {np.dtype(np.int64)}


@settings(deadline=None)
@given(batches(), st.sampled_from([-1, 0, 99, 255, 10**6]))
def test_ignored_pixels_never_count(batch: tuple[torch.Tensor, torch.Tensor, int], held: int) -> None:
    prediction, labels, c = batch
    counts = image_counts(prediction, labels, c)
    other = image_counts(torch.where(labels == 255, held, prediction), labels, c)
    assert (counts.union == other.union).all()
    assert (counts.intersection == other.intersection).all()
    assert counts.target.sum() == (labels != 255).sum()


@pytest.mark.parametrize("ignore", [-1, 0, 2, 255])
def test_any_label_can_be_the_ignored_one(ignore: int) -> None:
    labels = torch.tensor([[[0, 1, 2, 1]], [[ignore] * 4]])
    labels[0, 0, 3] = ignore
    prediction = torch.tensor([[[0, 1, 1, 0]], [[2, 1, 0, 0]]], dtype=torch.uint8)
    counts = image_counts(prediction, labels, 3, ignore_index=ignore)
    expected = naive(prediction.numpy(), labels.numpy(), 3, ignore)
    assert [a.tolist() for a in (counts.intersection, counts.union, counts.target)] == list(expected)


def test_an_empty_batch_has_empty_counts() -> None:
    empty = torch.zeros(0, 4, 4, dtype=torch.int64)
    assert image_counts(empty, empty, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        ([[[0, 3]]], [[[0, 1]]], "prediction 3 is out of range"),
        ([[[0, -1]]], [[[0, 1]]], "prediction -1 is out of range"),
        ([[[0, 255]]], [[[0, 1]]], "prediction 255 is out of range"),
        ([[[0, 1]]], [[[0, 3]]], "label 3 is out of range"),
        ([[[0, 1]]], [[[0, -1]]], "label -1 is out of range"),
        ([[[0, 1]]], [[[0, 254]]], "255, which is ignored"),
        ([[[0, 1]]], [[[0], [1]]], "must both be"),
        ([[0, 1]], [[0, 1]], "must both be"),
        ([[[0.0, 1.0]]], [[[0, 1]]], "must be integers"),
    ],
)
def test_what_cannot_be_counted_is_refused(prediction: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_counts(torch.tensor(prediction), torch.tensor(labels), 3)


@pytest.mark.parametrize(
    ("intersection", "union", "target", "message"),
    [
        ([[1, 0]], [[1, 0, 0]], [[1, 0]], "one shape"),
        ([[1, 0]], [[1, 0]], [[1, 0], [1, 0], [1, 0]], "does not fit"),
        ([[1.5, 0.0]], [[2, 0]], [[2, 0]], "integers"),
        ([[2, 0]], [[3, 0]], [[1, 0]], "intersection <= target"),
        ([[1, 0]], [[1, 0]], [[2, 0]], "target <= union"),
        ([[-1, 0]], [[1, 0]], [[1, 0]], "0 <= intersection"),
    ],
)
def test_impossible_counts_are_refused(intersection: list, union: list, target: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counts(intersection, union, target)  # type: ignore[arg-type]


@settings(deadline=None)
@given(batches(), batches())
def test_batches_join_and_images_can_be_picked(first: tuple, second: tuple) -> None:
    parts = [image_counts(prediction, labels, 6) for prediction, labels, _ in (first, second)]
    joined = concatenate(parts)
    n = parts[0].shape[0]
    for got, want in ((joined.images(slice(n)), parts[0]), (joined.images(np.arange(n, joined.shape[0])), parts[1])):
        assert (got.union == want.union).all()
        assert (got.target == want.target).all()
    attacks = stack([joined, joined])
    assert attacks.shape == (2, *joined.shape)
    assert (attacks.choose(np.ones(joined.shape[0], dtype=np.int64)).intersection == joined.intersection).all()


@settings(deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_scores_are_fractions_and_know_no_order(batch: tuple, random: object) -> None:
    prediction, labels, c = batch
    counts = image_counts(prediction, labels, c)
    got = scores(counts)
    fractions = np.array([got.aacc_pooled, got.aacc_image_mean, got.macc, got.miou, got.nmiou, *got.iou, *got.accuracy])
    assert ((fractions >= 0) & (fractions <= 1) | np.isnan(fractions)).all()
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = scores(counts.images(order))
    for name in ("aacc_pooled", "macc", "miou", "iou", "accuracy", "images", "empty_images"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(got, name))
    for name in ("aacc_image_mean", "nmiou"):
        assert getattr(shuffled, name) == pytest.approx(getattr(got, name), abs=1e-12, nan_ok=True)
    assert math.isnan(got.miou) == bool((labels == 255).all())
    assert pooled_miou(counts) == pytest.approx(got.miou, nan_ok=True)


@settings(deadline=None)
@given(batches())
def test_a_perfect_prediction_scores_one(batch: tuple) -> None:
    _, labels, c = batch
    got = scores(image_counts(labels.clamp(max=c - 1), labels, c))
    values = [got.aacc_pooled, got.aacc_image_mean, got.macc, got.miou, got.nmiou]
    assert values == [1.0] * 5 or np.isnan(values).all()


@pytest.mark.parametrize(
    ("intersection", "union", "target", "expected"),
    [
        # Two images of 4 and 2 pixels. Class 2 is predicted and never labelled, class 3 is nowhere.
        (
            [[2, 1, 0, 0], [0, 1, 0, 0]],
            [[3, 1, 1, 0], [1, 1, 1, 0]],
            [[3, 1, 0, 0], [1, 1, 0, 0]],
            {
                "aacc_pooled": 4 / 6,
                "aacc_image_mean": (3 / 4 + 1 / 2) / 2,
                "macc": (2 / 4 + 2 / 2) / 2,
                "miou": (2 / 4 + 2 / 2 + 0) / 3,
                "nmiou": ((2 / 3 + 1 + 0) / 3 + (0 + 1 + 0) / 3) / 2,
                "iou": (0.5, 1.0, 0.0, NAN),
                "accuracy": (0.5, 1.0, NAN, NAN),
                "images": 2,
                "empty_images": 0,
            },
        ),
        # An image without counted pixels changes no mean.
        (
            [[1, 0], [0, 0]],
            [[2, 1], [0, 0]],
            [[2, 0], [0, 0]],
            {"aacc_pooled": 0.5, "aacc_image_mean": 0.5, "macc": 0.5, "miou": 0.25, "nmiou": 0.25, "empty_images": 1},
        ),
        (
            [[0, 0]],
            [[0, 0]],
            [[0, 0]],
            {"aacc_pooled": NAN, "aacc_image_mean": NAN, "macc": NAN, "miou": NAN, "nmiou": NAN, "empty_images": 1},
        ),
        (
            np.zeros((0, 2), np.int64),
            np.zeros((0, 2), np.int64),
            np.zeros((0, 2), np.int64),
            {"aacc_pooled": NAN, "nmiou": NAN, "miou": NAN, "iou": (NAN, NAN), "accuracy": (NAN, NAN), "images": 0},
        ),
    ],
)
def test_scores_by_hand(intersection: list, union: list, target: list, expected: dict) -> None:
    got = scores(Counts(intersection, union, target))  # type: ignore[arg-type]
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, nan_ok=True), name


def test_scores_per_image_are_nan_where_nothing_counts() -> None:
    counts = Counts([[1, 1], [0, 0]], [[2, 2], [0, 0]], [[1, 2], [0, 0]])  # type: ignore[arg-type]
    np.testing.assert_allclose(image_accuracy(counts), [2 / 3, NAN])
    np.testing.assert_allclose(image_miou(counts), [0.5, NAN])


def test_scores_of_several_attacks_at_once_are_refused() -> None:
    zeros = np.zeros((2, 3, 4), np.int64)
    with pytest.raises(ValueError, match=r"\(images, classes\)"):
        scores(Counts(zeros, zeros, zeros))


@settings(max_examples=20, deadline=None)
@given(batches())
def test_iou_is_that_of_torchmetrics(batch: tuple) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    prediction, labels, c = batch
    c += 1  # torchmetrics wants two classes or more.
    theirs = functional.multiclass_jaccard_index(prediction, labels, c, average="none", ignore_index=255).numpy()
    ours = np.array(scores(image_counts(prediction, labels, c)).iou)
    present = ~np.isnan(ours)
    np.testing.assert_allclose(ours[present], theirs[present], rtol=1e-6)
