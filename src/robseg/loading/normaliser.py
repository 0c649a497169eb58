"""Normalisers that files of weights hold as entries `mean` and `std` beside the network's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation per channel of the input, for images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def take_normaliser(
    state: Mapping[str, Tensor], network: nn.Module | None = None
) -> tuple[dict[str, Tensor], Normaliser | None]:
    """A state dict without the pair `mean` and `std` (three numbers each), and that pair.

    They are taken out wherever they stand ("module.normalize.mean"), unless the network has entries of its own so
    called. Entries that are not three numbers, or of which there are several pairs, stay where they are.
    """
    own = () if network is None else tuple(network.state_dict())
    if any(name.rpartition(".")[2] in ("mean", "std") for name in own):
        return dict(state), None
    names = {
        kind: [name for name, value in state.items() if name.rpartition(".")[2] == kind and value.numel() == 3]
        for kind in ("mean", "std")
    }
    if not (len(names["mean"]) == len(names["std"]) == 1 and bool((state[names["std"][0]] > 0).all())):
        return dict(state), None
    mean, std = (state[names[kind][0]].flatten().tolist() for kind in ("mean", "std"))
    # Some files count in 0..255; no channel of an image in [0, 1] has a mean above 1.
    scale = 255.0 if max(mean) > 1 else 1.0
    mean, std = [value / scale for value in mean], [value / scale for value in std]
    rest = {name: value for name, value in state.items() if name not in (names["mean"][0], names["std"][0])}
    return rest, Normaliser((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
