"""The worst case over several attacks: which one to take for each image.

Pixel accuracy is averaged over images, so each image has its own worst attack. mIoU is pooled over the whole set: the
images hang together, and the lowest mIoU over all A**N choices is a combinatorial problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robseg.metrics.counts import Counts, IntArray
from robseg.metrics.scores import FloatArray, image_miou, pooled_miou

CHAINS = 12
"""Searches that run side by side and breed with each other; more chains cost time and widen the search."""

WORK = 1e10
"""How much the search may compute, in numbers touched; it bounds the time of large problems, independent of clocks."""

STEP_COST = 3000
"""What one step of a sweep costs beside its numbers (the calls of numpy), in the unit of WORK."""

MAX_PHASES = 12
PATIENCE = 3
ROUNDS = 30
"""The search has at most MAX_PHASES of ROUNDS each, and ends after PATIENCE phases without a lower mIoU."""

MIN_ACTIVE = 100
"""Within a phase an eighth of the images may change, or this many where that is more."""

TOLERANCE = 1e-13
"""A change must lower the mIoU by more than this, which is above rounding, so that sweeps end."""


@dataclass(frozen=True, eq=False)
class WorstCase:
    """choice: (N,) int64, the attack taken for each image; miou: the pooled mIoU under it, nan if nothing counts."""

    choice: IntArray
    miou: float


def worst_accuracy(counts: Counts) -> IntArray:
    """For each image the attack of lowest pixel accuracy, the first on a tie: (N,) int64 of (A, N, C) counts.

    Raises ValueError as worst_miou does.
    """
    _check(counts)
    # Every attack has the same labels, so that comparing the correct pixels compares accuracies exactly.
    lowest: IntArray = counts.intersection.sum(axis=-1).argmin(axis=0).astype(np.int64)
    return lowest


def worst_miou(counts: Counts, seed: int = 0, exhaustive_limit: int = 100_000) -> WorstCase:
    """Search the choice of one attack per image of lowest mIoU pooled over all images.

    counts: (A, N, C); add the clean predictions as an attack if they are to be among the candidates.
    seed: of the search; the result is a function of `counts` and `seed`.
    exhaustive_limit: up to so many choices all are tried, and the result is exact.

    Classes with no pixel in the union do not count; the union depends on the choice. arXiv 2306.12941 sweeps greedily
    over the images from one attack for all. This search starts from there too and from several other choices, and
    then mixes and kicks the local optima (iterated local search with crossover). It is never above the best single
    attack or the per-image worst accuracy, and in practice never above the greedy search, but beyond
    `exhaustive_limit` there is no proof that it is the optimum.
    Raises ValueError if counts are not (A, N, C), there is no attack, or the labels differ between attacks.
    """
    _check(counts)
    choice = np.zeros(counts.shape[1], dtype=np.int64)
    arrays = (counts.intersection, counts.union)
    free = np.flatnonzero(np.any([(a != a[:1]).any(axis=(0, 2)) for a in arrays], axis=0))
    problem = _Problem.of(counts, free)
    if len(free) * np.log(max(counts.shape[0], 1)) <= np.log(max(exhaustive_limit, 1)) + 1e-9:
        choice[free] = _exhaustive(problem)
    else:
        choice[free] = _search(problem, _starts(counts.images(free), problem), np.random.default_rng(seed))
    return WorstCase(choice, float(pooled_miou(counts.choose(choice))))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Counts of the images that are free to choose.

    The numbers are integers held as float64, exact up to 2**53 pixels: sums and differences of them cannot drift,
    and divisions need no conversion.
    table: (2, n, A, C), intersection and union. Classes that some choice leaves without a pixel come first.
    base: (2, C), the sum over the images whose attacks are all the same.
    fragile: how many classes some choice leaves without a pixel.
    """

    table: FloatArray
    base: FloatArray
    fragile: int

    @staticmethod
    def of(counts: Counts, free: IntArray) -> _Problem:
        least = counts.union.min(axis=0).sum(axis=0)
        present = np.flatnonzero(counts.union.max(axis=(0, 1), initial=0))
        classes = present[np.argsort(least[present] > 0, kind="stable")]
        both = np.stack([counts.intersection, counts.union])[..., classes]
        fixed = np.delete(both[:, 0], free, axis=1).sum(axis=1)
        table = np.ascontiguousarray(both[:, :, free].swapaxes(1, 2), dtype=np.float64)
        return _Problem(table, fixed.astype(np.float64), int((least[classes] == 0).sum()))

    def totals(self, choices: IntArray) -> FloatArray:
        """(2, R, C): pooled intersection and union of R choices, each (n,)."""
        images = np.arange(self.table.shape[1])
        pooled = [self.table[:, images, choice].sum(axis=1) for choice in choices]
        totals: FloatArray = self.base[:, None] + np.stack(pooled, axis=1)
        return totals

    def miou(self, totals: FloatArray) -> FloatArray:
        """(...): the mIoU of totals (2, ..., C); infinite where no class has a pixel, so that it is never chosen."""
        intersection, union = totals
        fragile = union[..., : self.fragile]
        number = (fragile > 0).sum(axis=-1) + (union.shape[-1] - self.fragile)
        if self.fragile:
            union = union.copy()
            union[..., : self.fragile] = np.maximum(fragile, 1)
        total = (intersection / union).sum(axis=-1)
        return np.where(number > 0, total / np.maximum(number, 1), np.inf)


def _check(counts: Counts) -> None:
    if len(counts.shape) != 3 or counts.shape[0] == 0:
        raise ValueError(f"The worst case needs counts of (attacks >= 1, images, classes), not {counts.shape}.")
    if (counts.target != counts.target[:1]).any():
        raise ValueError("The label pixels differ between attacks, so these are not counts of the same images.")


def _exhaustive(problem: _Problem) -> IntArray:
    """The best of all choices: the sums of the first half of the images against those of the second."""
    images, attacks = problem.table.shape[1:3]
    first, second = _all_sums(problem.table[:, : images // 2]), _all_sums(problem.table[:, images // 2 :])
    best, where = np.inf, 0
    for i in range(first.shape[1]):
        values = problem.miou(second + (first[:, i] + problem.base)[:, None])
        j = int(values.argmin())
        if values[j] < best:
            best, where = values[j], i * second.shape[1] + j
    digits = attacks ** np.arange(images - 1, -1, -1, dtype=np.int64)
    best_choice: IntArray = where // digits % attacks
    return best_choice


def _all_sums(table: FloatArray) -> FloatArray:
    """(2, A**n, C): the totals of every choice over the n images of a table (2, n, A, C), the last image fastest."""
    sums = np.zeros((2, 1, table.shape[-1]))
    for n in range(table.shape[1]):
        sums = (sums[:, :, None] + table[:, n, None]).reshape(2, -1, table.shape[-1])
    return sums


def _starts(counts: Counts, problem: _Problem) -> list[IntArray]:
    """Each attack alone, the worst per image of accuracy and of mIoU, and two linearised starts."""
    attacks, images, _ = counts.shape
    starts = [np.full(images, a) for a in range(attacks)]
    miou = image_miou(counts)
    starts += [worst_accuracy(counts), np.where(np.isnan(miou), np.inf, miou).argmin(axis=0)]
    starts += [_linearised(problem, start) for start in (starts[attacks], starts[attacks + 1])]
    return starts


def _linearised(problem: _Problem, choice: IntArray, steps: int = 5) -> IntArray:
    """Replace sum I/U by its tangent at the current totals and let every image choose for itself, a few times."""
    for _ in range(steps):
        intersection, union = np.maximum(problem.totals(choice[None])[:, 0], 1)
        slope = problem.table[0] / union - problem.table[1] * (intersection / union**2)
        choice = slope.sum(axis=-1).argmin(axis=-1)
    return choice


def _search(problem: _Problem, starts: list[IntArray], rng: np.random.Generator) -> IntArray:
    """Iterated local search with crossover, CHAINS at a time.

    A phase sweeps over all images, and then changes only the ones that are closest to another attack, in which good
    choices differ from each other.
    """
    images, attacks, classes = problem.table.shape[1:]
    everything = np.arange(images)
    random = rng.integers(0, attacks, (max(0, CHAINS - len(starts)), images))
    best = np.concatenate([np.stack(starts), random])
    value = _descend(problem, best, everything, rng)
    keep = np.argsort(value, kind="stable")[:CHAINS]
    best, value = best[keep], value[keep]
    active_size = min(images, max(MIN_ACTIVE, images // 8))
    touched = 2.5 * (2 * images + ROUNDS * active_size) * (STEP_COST + 4 * CHAINS * attacks * classes)
    since = 0
    for _ in range(int(min(MAX_PHASES, max(2, WORK // touched)))):
        lowest = value.min()
        active = np.argsort(_margins(problem, best).min(axis=0), kind="stable")[:active_size]
        for i in range(ROUNDS):
            child = _crossed(best, rng) if i % 2 else _kicked(best, active, attacks, rng)
            found = _descend(problem, child, active, rng)
            better = found < value
            best[better], value[better] = child[better], found[better]
        value = _descend(problem, best, everything, rng)
        since = 0 if value.min() < lowest - TOLERANCE else since + 1
        if since >= PATIENCE:
            break
    lowest_choice: IntArray = best[value.argmin()]
    return lowest_choice


def _kicked(parents: IntArray, active: IntArray, attacks: int, rng: np.random.Generator) -> IntArray:
    """Each parent with some active images under a random attack: about two in one chain, up to a tenth in another."""
    share = np.geomspace(min(2 / len(active), 0.1), 0.1, len(parents))[:, None]
    children = parents.copy()
    hit = rng.random((len(parents), len(active))) < rng.permutation(share)
    children[:, active] = np.where(hit, rng.integers(0, attacks, hit.shape), parents[:, active])
    return children


def _crossed(parents: IntArray, rng: np.random.Generator) -> IntArray:
    """Each parent crossed with another: where the two agree they stay, elsewhere a coin decides."""
    chains = len(parents)
    other = (np.arange(chains) + rng.integers(1, chains, chains)) % chains
    return np.where(rng.random(parents.shape) < 0.5, parents, parents[other])


def _descend(problem: _Problem, choices: IntArray, images: IntArray, rng: np.random.Generator) -> FloatArray:
    """Sweep over `images` in random orders until no change of one of them lowers a mIoU.

    choices (R, n) change in place. Returns the R values.
    """
    totals = problem.totals(choices)
    quiet = 0
    while quiet < len(images):
        for n in rng.permutation(images):
            quiet = 0 if _improve(problem, choices, totals, n) else quiet + 1
            if quiet >= len(images):
                break
    return problem.miou(totals)


def _improve(problem: _Problem, choices: IntArray, totals: FloatArray, n: int) -> bool:
    """Give image n its best attack in every one of R choices; says whether any changed."""
    rows = np.arange(len(choices))
    candidates = _candidates(problem, choices, totals, n)
    values = problem.miou(candidates)
    new = values.argmin(axis=1)
    change = values[rows, new] < values[rows, choices[:, n]] - TOLERANCE
    if not change.any():
        return False
    choices[change, n] = new[change]
    totals[:, change] = candidates[:, change, new[change]]
    return True


def _candidates(problem: _Problem, choices: IntArray, totals: FloatArray, n: int) -> FloatArray:
    """(2, R, A, C): what the totals (2, R, C) of R choices become under each attack on image n."""
    table = problem.table[:, n]
    changed: FloatArray = (totals - table[:, choices[:, n]])[:, :, None] + table[:, None]
    return changed


def _margins(problem: _Problem, choices: IntArray) -> FloatArray:
    """(R, n): how much the mIoU of each choice rises if this image takes the next best attack."""
    totals = problem.totals(choices)
    images = range(choices.shape[1])
    values = np.stack([problem.miou(_candidates(problem, choices, totals, n)) for n in images], axis=1)
    two = np.partition(np.where(np.isinf(values), 2.0, values), 1, axis=-1)
    margins: FloatArray = two[..., 1] - two[..., 0]
    return margins
