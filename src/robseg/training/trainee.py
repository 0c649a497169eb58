"""A network as it is trained: from images in [0, 1] to all that the losses of training need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.models.ddcat import DDCATOutputs
from robseg.models.layers import resize, spatial
from robseg.models.wrapper import find_logits


class Outputs(NamedTuple):
    """logits: (B, C, H, W), of DDC-AT the joined ones; auxiliary: (B, C, H, W) of the auxiliary head, if there is one;
    mask: (B, 2, H, W) of DDC-AT's mask branch, if there is one. H and W are those of the images."""

    logits: Tensor
    auxiliary: Tensor | None = None
    mask: Tensor | None = None


class Trainee(nn.Module):
    """A network behind its normalisation; what data-parallel wrappers, compilers and attacks are given.

    network: any segmentation network. In training mode it may give logits, (logits, auxiliary logits), a mapping with
        "out" and "aux", or DDCATOutputs; in evaluation mode logits, in any form that `robseg.SegmentationModel` reads.
    mean, std: per channel, for images in [0, 1]; None where the network does not want them normalised.
    output: where its output holds the logits, as of `robseg.SegmentationModel`.

    Training mode: images (B, 3, H, W) in [0, 1] to `Outputs`. Evaluation mode: to logits (B, C, H, W).
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.output = network, output
        self.training = network.training
        if (mean is None) != (std is None):
            raise UserError("mean and std of a model's input belong together; give both or neither.")
        for name, values in (("mean", mean), ("std", std)):
            # Not persistent: a state dict then holds the network's entries alone.
            buffer = None if values is None else torch.tensor(list(values)).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Outputs | Tensor:
        raw = self.network(self._normalised(images))
        if self.training:
            return read_outputs(raw, spatial(images), self.output)
        return _sized(find_logits(raw, self.output), spatial(images))

    def all_outputs(self, images: Tensor) -> Outputs:
        """`Outputs` whatever the mode, of networks that have `training_outputs`: the published architectures."""
        raw = self.network.training_outputs(self._normalised(images))  # type: ignore[operator]
        return read_outputs(raw, spatial(images))

    def _normalised(self, images: Tensor) -> Tensor:
        return images if self.mean is None or self.std is None else (images - self.mean) / self.std


def read_outputs(raw: Any, size: tuple[int, int], output: str | int | None = None) -> Outputs:
    """What a network gave in training mode, resized bilinearly to (H, W); UserError where no logits are found.

    output: where the logits stand, where that is not found out by itself.
    """
    if isinstance(raw, DDCATOutputs):
        return Outputs(raw.joined, raw.auxiliary, raw.mask)
    auxiliary: Any = None
    if isinstance(raw, Mapping):
        auxiliary = raw.get("aux")
    elif isinstance(raw, (tuple, list)) and len(raw) == 2:
        auxiliary = raw[1]
    logits = find_logits(raw, output)
    fits = isinstance(auxiliary, Tensor) and auxiliary.dim() == 4 and auxiliary.shape[1] == logits.shape[1]
    return Outputs(_sized(logits, size), _sized(auxiliary, size) if fits else None)


def _sized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return logits if spatial(logits) == size else resize(logits, size)
