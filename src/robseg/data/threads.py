"""Work on many files at once; decoders run outside Python's lock, so threads suffice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of `function` in the order of the items, computed on all cores that this process may use."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(function, items)


def cores() -> int:
    """Cores this process may use; containers are often given fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1
