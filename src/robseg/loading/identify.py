"""Which published model a checkpoint is of, by the names and shapes of its entries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robseg.errors import UserError
from robseg.loading.card import read_card
from robseg.loading.checkpoint import load_weights, read_checkpoint
from robseg.models.published import PUBLISHED


def identify(path: Path) -> str:
    """The name of the model in a checkpoint: the one its card names, or the published one that it fits in every entry.

    Raises UserError for a file that is no checkpoint, or fits none.
    """
    card = read_card(path)
    if card is not None and card.model in PUBLISHED:
        return card.model
    found = published_fits(read_checkpoint(path))
    if not found:
        named = f"MODEL --checkpoint {path}, where MODEL is one of `robseg models` or package.module:factory"
        raise UserError(f"'{path}' is the checkpoint of no published model; name the model as well, as {named}.")
    return found[0]


def published_fits(state: Mapping[str, Tensor]) -> list[str]:
    """The published models that a state dict fits in every entry.

    An undefended baseline fits its DDC-AT sister too, which is the same network at test time, and stands before it.
    """
    found = []
    for name, model in PUBLISHED.items():
        with torch.device("meta"):
            network = model.build(model.num_classes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Copying into networks without storage does nothing, and says so.
                load_weights(network, state, source="", ignore=model.ignore)
        except UserError:
            continue
        found.append(name)
    return found
