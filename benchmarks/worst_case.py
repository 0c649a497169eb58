"""How long the search for the worst-case mIoU takes, and how low it gets beside the published greedy search.

Run with `OMP_NUM_THREADS=1 python benchmarks/worst_case.py`; the last sizes take some seconds each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np

from robseg.metrics.counts import Counts
from robseg.metrics.worst_case import worst_miou
from test_worst_case import drawn, lopsided, published_greedy

SIZES = [(60, 3, 6), (120, 3, 21), (40, 5, 151), (300, 4, 20), (1449, 5, 21), (2000, 4, 151)]


def dense(seed: int, images: int, attacks: int, classes: int) -> Counts:
    """Every class in every image."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2000, (images, classes))
    intersection = (rng.random((attacks, images, classes)) * target).astype(np.int64)
    return Counts(intersection, target + rng.integers(0, 2000, intersection.shape), target)


def main() -> None:
    print(f"{'problem':10}{'images':>7}{'attacks':>8}{'classes':>8}{'seconds':>9}{'mIoU':>12}{'greedy - mIoU':>15}")
    for images, attacks, classes in SIZES:
        for make in (drawn, lopsided, dense):
            counts = make(0, images, attacks, classes)
            start = time.perf_counter()
            found = worst_miou(counts)
            seconds = time.perf_counter() - start
            greedy = min(published_greedy(counts, order) for order in range(2))
            print(
                f"{make.__name__:10}{images:7}{attacks:8}{classes:8}{seconds:9.2f}{found.miou:12.8f}"
                f"{greedy - found.miou:15.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
