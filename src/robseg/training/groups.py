"""Parameter groups: which parameters decay, and which are new and learn faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from robseg.errors import UserError

BACKBONES = ("backbone.", "encoder.", "layer0.", "layer1.", "layer2.", "layer3.", "layer4.")
"""How the names of pre-trained parameters begin in UPerNet, Segmenter, and PSPNet and DeepLabv3."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    network: nn.Module,
    *,
    weight_decay: float,
    decay_all: bool = False,
    new_rate: float = 1.0,
    backbone: Sequence[str] = BACKBONES,
) -> list[dict[str, Any]]:
    """Groups for an optimiser of torch; each has "params", "weight_decay", "rate" and "names" (of its parameters).

    decay_all: False leaves parameters of one dimension and those of norms without weight decay (arXiv 2306.12941),
        True is plain SGD's way (arXiv 2003.06555).
    new_rate: "rate" of the parameters outside the pre-trained backbone, 10 for PSPNet and DeepLabv3; of those in it,
        1. The trainer sets a group's "lr" to the schedule's rate times this.
    backbone: how the names of the backbone's parameters begin.

    Parameters that need no gradient are left out, and a shared one is in one group. Raises UserError where new_rate is
    not 1 and the network has no such backbone, or nothing is to be trained.
    """
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    names = dict(network.named_parameters())
    if new_rate != 1 and not any(name.startswith(tuple(backbone)) for name in names):
        raise UserError(
            f"New layers are to learn {new_rate:g} times as fast, but {type(network).__name__} has no parameters whose "
            f"names begin with {', '.join(backbone)}; set the rate of new layers to 1."
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in names.items():
        if not parameter.requires_grad:
            continue
        decays = decay_all or (parameter.ndim > 1 and id(parameter) not in norms)
        decay = weight_decay if decays else 0.0
        rate = 1.0 if name.startswith(tuple(backbone)) else new_rate
        group = groups.setdefault((decay, rate), {"params": [], "weight_decay": decay, "rate": rate, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError(f"No parameter of {type(network).__name__} is to be trained; all have requires_grad False.")
    return list(groups.values())
