"""The worst case over attacks, against every choice, against the published greedy search and against given figures."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robseg.metrics.counts import Counts
from robseg.metrics.scores import image_accuracy, scores
from robseg.metrics.worst_case import worst_accuracy, worst_miou

FIGURES = json.loads((Path(__file__).parent / "fixtures" / "worst_case.json").read_text())


def drawn(seed: int, images: int, attacks: int, classes: int, pixels: int = 400) -> Counts:
    """The generator that goes with the figures; its draws must come in this order."""
    rng = np.random.Generator(np.random.PCG64(seed))
    intersection = np.zeros((attacks, images, classes), np.int64)
    union, target = intersection.copy(), np.zeros((images, classes), np.int64)
    for n in range(images):
        k = rng.integers(2, min(classes, 5) + 1)
        present = rng.choice(classes, k, replace=False)
        t = present[rng.integers(0, k, pixels)]
        target[n] = np.bincount(t, minlength=classes)
        for a in range(attacks):
            p = np.where(rng.random(pixels) < rng.uniform(0.2, 0.9), t, rng.integers(0, classes, pixels))
            intersection[a, n] = np.bincount(t[p == t], minlength=classes)
            union[a, n] = target[n] + np.bincount(p, minlength=classes) - intersection[a, n]
    return Counts(intersection, union, target)


def lopsided(seed: int, images: int, attacks: int, classes: int, pixels: int = 10_000) -> Counts:
    """Rare classes, and attacks that send their errors to one to three classes: many more local optima."""
    rng = np.random.default_rng(seed)
    frequency = rng.dirichlet(np.full(classes, 0.3)) + 1e-6
    intersection = np.zeros((attacks, images, classes), np.int64)
    union, target = intersection.copy(), np.zeros((images, classes), np.int64)
    for n in range(images):
        k = min(classes, int(rng.integers(1, 6)))
        present = rng.choice(classes, k, replace=False, p=frequency / frequency.sum())
        target[n, present] = rng.multinomial(pixels, rng.dirichlet(np.ones(k)))
        for a in range(attacks):
            intersection[a, n, present] = rng.binomial(target[n, present], rng.beta(1, 2, k))
            hit = rng.choice(classes, min(int(rng.integers(1, 4)), classes), replace=False)
            union[a, n] = target[n]
            wrong = pixels - intersection[a, n].sum()
            union[a, n, hit] += rng.multinomial(wrong, rng.dirichlet(np.ones(len(hit))))
    return Counts(intersection, union, target)


def tiny(seed: int, images: int, attacks: int, classes: int) -> Counts:
    """A few pixels and many empty classes: the classes that count depend on the choice, and there are many ties."""
    rng = np.random.default_rng(seed)
    shape = (attacks, images, classes)
    most, share = rng.integers(1, 6), rng.uniform(0.1, 0.9)
    target = rng.integers(0, most + 1, shape[1:]) * (rng.random(shape[1:]) < share)
    intersection = np.minimum(rng.integers(0, most + 1, shape), target)
    return Counts(intersection, target + rng.integers(0, most + 1, shape) * (rng.random(shape) < share), target)


def traps(seed: int, blocks: int) -> tuple[Counts, float]:
    """Blocks of 3 images and 3 classes of their own, and the optimum.

    In every block some choice is beaten by another, but by no change of one image. A search that only changes images
    one by one would have to be lucky in every block at once.
    """
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    optimum = 0.0
    while len(parts) < blocks:
        target = rng.integers(1, 20, (3, 3))
        intersection = (rng.random((2, 3, 3)) * target).astype(np.int64)
        union = target + rng.integers(0, 40, (2, 3, 3)) * rng.integers(0, 2, (2, 3, 3))
        values = np.empty((2, 2, 2))
        for choice in np.ndindex(values.shape):
            i, u = (a[list(choice), np.arange(3)].sum(axis=0) for a in (intersection, union))
            values[choice] = (i / u).sum()
        stuck = np.all([values <= np.flip(values, axis) for axis in range(3)], axis=0) & (values > values.min() + 1e-3)
        if stuck.any():
            parts.append(np.stack([intersection, union, np.broadcast_to(target, union.shape)]))
            optimum += values.min() / (3 * blocks)
    whole = np.zeros((3, 2, blocks * 3, blocks * 3), np.int64)
    for b, part in enumerate(parts):
        whole[:, :, 3 * b : 3 * b + 3, 3 * b : 3 * b + 3] = part
    return Counts(*whole), optimum


def plain_miou(intersection: np.ndarray, union: np.ndarray) -> float:
    present = union > 0
    return float((intersection[present] / union[present]).mean()) if present.any() else math.inf


def published_greedy(counts: Counts, seed: int) -> float:
    """The search that arXiv 2306.12941 describes, from each attack in turn."""
    rng = np.random.default_rng(seed)
    inter, union = counts.intersection, counts.union
    attacks, images, _ = counts.shape
    best = math.inf
    for start in range(attacks):
        choice = [start] * images
        i, u = inter[start].sum(axis=0), union[start].sum(axis=0)
        value, before = plain_miou(i, u), math.inf
        while before - value >= 1e-6:
            before = value
            for n, a in itertools.product(rng.permutation(images), range(attacks)):
                i_new = i - inter[choice[n], n] + inter[a, n]
                u_new = u - union[choice[n], n] + union[a, n]
                if (new := plain_miou(i_new, u_new)) < value:
                    value, i, u, choice[n] = new, i_new, u_new, a
        best = min(best, value)
    return best


def every_choice(counts: Counts) -> float:
    attacks, images, _ = counts.shape
    inter, union, rows = counts.intersection, counts.union, np.arange(images)
    return min(
        plain_miou(inter[list(choice), rows].sum(axis=0), union[list(choice), rows].sum(axis=0))
        for choice in itertools.product(range(attacks), repeat=images)
    )


def given_counts(name: str) -> Counts:
    figures = FIGURES[name]
    if "generator" in figures:
        return drawn(**figures["generator"])
    return Counts(figures["intersection"], figures["union"], figures["target"])


@pytest.mark.parametrize("limit", [100_000, 0])
@pytest.mark.parametrize("name", FIGURES)
def test_given_figures(name: str, limit: int) -> None:
    figures, counts = FIGURES[name], given_counts(name)
    found = worst_miou(counts, exhaustive_limit=limit)
    assert found.miou <= figures["published_greedy"] + 1e-9
    if "optimum" in figures:
        assert found.miou == pytest.approx(figures["optimum"], abs=1e-12)
    assert scores(counts.choose(found.choice)).miou == found.miou
    assert scores(counts.choose(worst_accuracy(counts))).aacc_image_mean == pytest.approx(figures["aacc"], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(7, 2, 4), (5, 3, 3), (4, 4, 6), (1, 3, 2), (6, 2, 1), (3, 5, 8)]))
def test_the_trial_of_every_choice_misses_none(seed: int, shape: tuple[int, int, int]) -> None:
    counts = tiny(seed, *shape)
    found = worst_miou(counts)
    assert found.miou == pytest.approx(every_choice(counts), abs=1e-12) or math.isinf(every_choice(counts))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(16, 2, 4), (10, 3, 3), (8, 4, 6), (10, 3, 21), (1, 3, 2), (2, 2, 1)]),
    st.sampled_from([tiny, lopsided]),
)
def test_the_search_finds_the_optimum_of_small_problems(seed: int, shape: tuple[int, int, int], make) -> None:  # type: ignore[no-untyped-def]
    counts = make(seed, *shape)
    searched, exact = worst_miou(counts, seed=seed, exhaustive_limit=0), worst_miou(counts)
    assert searched.miou == pytest.approx(exact.miou, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("make", "shape", "seeds", "orders"),
    [
        (drawn, (60, 3, 6), 4, 5),
        (drawn, (120, 3, 21), 3, 4),
        (drawn, (40, 5, 151), 3, 4),
        (drawn, (300, 4, 20), 1, 2),
        (lopsided, (40, 2, 6), 4, 10),
        (lopsided, (60, 3, 6), 4, 10),
        (lopsided, (120, 3, 21), 2, 6),
        (lopsided, (40, 5, 151), 3, 6),
        (lopsided, (300, 4, 20), 1, 2),
        (tiny, (30, 3, 8), 6, 10),
        (tiny, (60, 4, 40), 4, 6),
    ],
)
def test_never_above_the_published_greedy_search(make, shape: tuple[int, int, int], seeds: int, orders: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(seeds):
        counts = make(seed, *shape)
        found = worst_miou(counts, seed=seed)
        assert found.miou <= min(published_greedy(counts, order) for order in range(orders)) + 1e-9
        assert scores(counts.choose(found.choice)).miou == found.miou


@pytest.mark.parametrize(("seed", "blocks"), [(0, 6), (1, 10), (2, 15), (3, 20)])
def test_the_search_leaves_local_optima(seed: int, blocks: int) -> None:
    counts, optimum = traps(seed, blocks)
    assert worst_miou(counts, seed=seed).miou == pytest.approx(optimum, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(12, 3, 5), (25, 2, 7), (6, 4, 3)]), st.sampled_from([0, 100_000]))
def test_never_above_an_attack_alone_nor_above_the_worst_accuracy(seed: int, shape: tuple, limit: int) -> None:
    counts = tiny(seed, *shape)
    found = worst_miou(counts, exhaustive_limit=limit)
    others = [np.full(shape[0], a) for a in range(shape[1])] + [worst_accuracy(counts)]
    bound = min(scores(counts.choose(choice)).miou for choice in others)
    assert found.miou <= bound + 1e-12 or math.isnan(bound)


def test_the_same_seed_gives_the_same_choice() -> None:
    counts = lopsided(3, 50, 4, 12)
    first, again = worst_miou(counts, seed=5), worst_miou(counts, seed=5)
    assert (first.choice == again.choice).all()
    assert first.miou == again.miou


def test_the_lowest_accuracies_are_not_the_lowest_miou() -> None:
    counts = Counts([[[7, 0]], [[8, 0]]], [[[10, 0]], [[10, 2]]], [[10, 0]])  # type: ignore[arg-type]
    assert worst_accuracy(counts).tolist() == [0]
    found = worst_miou(counts)
    assert (found.choice.tolist(), found.miou) == ([1], pytest.approx(0.4))


def test_ties_go_to_the_first_attack() -> None:
    counts = Counts(
        [[[3, 1], [0, 0]], [[1, 2], [0, 0]], [[2, 1], [0, 0]]], *([[[4, 4], [0, 0]]] * 3,), [[4, 4], [0, 0]]
    )  # type: ignore[arg-type]
    assert worst_accuracy(counts).tolist() == [1, 0]
    assert np.isnan(image_accuracy(counts)[:, 1]).all()


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("shape", [(1, 0, 3), (3, 0, 3), (1, 1, 3), (1, 5, 3), (4, 1, 3), (3, 4, 1), (3, 40, 3)])
@pytest.mark.parametrize("filled", [False, True])
def test_sizes_at_the_edge(shape: tuple[int, int, int], filled: bool, limit: int) -> None:
    counts = drawn(0, shape[1], shape[0], 3) if filled and shape[2] == 3 else None
    if counts is None:
        counts = Counts(*(np.zeros(shape, np.int64) for _ in range(3)))
    found = worst_miou(counts, exhaustive_limit=limit)
    assert found.choice.shape == worst_accuracy(counts).shape == (shape[1],)
    assert found.choice.dtype == np.int64
    assert math.isnan(found.miou) == (not counts.union.any())


def test_images_without_counted_pixels_change_nothing() -> None:
    counts = lopsided(1, 30, 3, 8)
    padded = Counts(*(np.pad(a, ((0, 0), (2, 3), (0, 0))) for a in (counts.intersection, counts.union, counts.target)))
    alone, found = worst_miou(counts), worst_miou(padded)
    assert found.miou == alone.miou
    assert (found.choice[2:-3] == alone.choice).all()


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 3), "attacks >= 1"), ((0, 4, 3), "attacks >= 1"), ((2, 2, 2, 2), "attacks >= 1")]
)
def test_counts_without_attacks_are_refused(shape: tuple[int, ...], message: str) -> None:
    zeros = np.zeros(shape, np.int64)
    with pytest.raises(ValueError, match=message):
        worst_miou(Counts(zeros, zeros, zeros))


def test_attacks_with_different_labels_are_refused() -> None:
    counts = Counts([[[1, 0]], [[0, 1]]], [[[1, 0]], [[0, 1]]], [[[1, 0]], [[0, 1]]])  # type: ignore[arg-type]
    for function in (worst_accuracy, worst_miou):
        with pytest.raises(ValueError, match="differ between attacks"):
            function(counts)
