"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robseg.errors import UserError


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` (`.module`) that follows its weights: call `.update_parameters(network)` after each step.

    The n-th update, from 0, keeps the share min(decay, (1 + n) / (10 + n)) of the average, so that early weights are
    soon forgotten; the very first copies the weights. Buffers (batch-norm statistics) are those of the network.
    Everything is in its state dict, the number of updates too. Raises UserError unless 0 < decay < 1.
    """
    if not 0 < decay < 1:
        raise UserError(f"decay of the averaged weights is {decay}; it must be between 0 and 1, such as 0.999.")

    def average(ours: Sequence[Tensor], theirs: Sequence[Tensor], updates: Tensor | int) -> Any:
        n = int(updates)
        share = min(decay, (1 + n) / (10 + n))
        return get_ema_multi_avg_fn(share)(tuple(ours), tuple(theirs), updates)  # type: ignore[no-untyped-call]

    copied = AveragedModel(network, multi_avg_fn=average)
    copied.eval()
    return copied
