"""What a data set is: a sequence of (image, label, id) with named classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

IGNORE_INDEX = 255
"""The label of pixels that never count, in every data set."""


class Sample(NamedTuple):
    """One labelled image.

    image: (3, H, W) float32 in [0, 1], RGB.
    label: (H, W) int64, 0..C-1 or IGNORE_INDEX.
    id: a name that is unique in the data set and stable from run to run; random numbers and records hang on it.
    """

    image: Tensor
    label: Tensor
    id: str


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set in label order, with the RGB colours (0..255) in which they are drawn."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


@runtime_checkable
class Dataset(Protocol):
    """What `robseg.evaluate` and the trainers need of data; any object with these members will do.

    name: what the set is called in results.
    classes: its classes.
    void: one sentence on which pixels are ignored, stored with every result.
    ids: the ids in order, without decoding anything.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> ClassList: ...

    @property
    def void(self) -> str: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
