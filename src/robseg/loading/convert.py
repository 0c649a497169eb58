"""Checkpoints of any form into ours: the network's weights alone, as safetensors with a model card."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from torch import Tensor

from robseg.errors import UserError
from robseg.loading.card import KEY, Card, card_page, read_card
from robseg.loading.checkpoint import COUNTERS, read_checkpoint
from robseg.loading.identify import identify
from robseg.loading.model_source import open_model
from robseg.loading.places import fetch, sha256_of
from robseg.models.architectures import ARCHITECTURES
from robseg.models.published import PUBLISHED


def convert(checkpoint: str, out: Path, *, model: str | None = None, classes: int | None = None) -> Card:
    """Write the weights of a checkpoint to `out` (.safetensors), and their card into its header and to `out`.md.

    model: what the checkpoint is of; found out where it is a published one. classes: their number, where the model
        does not fix it; else it must agree.

    The weights are loaded as an evaluation would, so each entry of the file is accounted for, and get the names the
    network has for them. Raises UserError where that fails, or if `out` is there already; nothing is written then.
    """
    page = out.with_name(out.name + ".md")
    if out.suffix != ".safetensors":
        raise UserError(f"The converted file must be called something.safetensors, not '{out}'.")
    for path in (out, page):
        if path.exists():
            raise UserError(f"'{path}' is there already; remove it, or name another file.")
    source = fetch(checkpoint)
    before = read_card(source)
    name = model or (before.model if before is not None and before.model in (*PUBLISHED, *ARCHITECTURES) else None)
    name = name or identify(source)
    entry = PUBLISHED.get(name)
    count = entry.num_classes if entry is not None else classes or (before.num_classes if before else None)
    if count is None:
        raise UserError(f"The model '{name}' can have any number of classes; say with --classes how many these have.")
    if classes is not None and classes != count:
        raise UserError(f"The model '{name}' has {count} classes, not {classes}; leave --classes away.")
    opened = open_model(name, num_classes=count, checkpoint=str(source))
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in opened.network.state_dict().items()}
    stored = [key for key in read_checkpoint(source) if not key.endswith(COUNTERS)]
    mean, std = opened.normalisation()
    card = Card(
        model=name,
        architecture=entry.architecture if entry is not None else name,
        num_classes=count,
        data=entry.data if entry is not None else None,
        mean=None if mean is None else (mean[0], mean[1], mean[2]),
        std=None if std is None else (std[0], std[1], std[2]),
        source=entry.source if entry is not None else None,
        licence=entry.licence if entry is not None else None,
        source_file=source.name,
        source_sha256=sha256_of(source),
        left_out=len(stored) - sum(not key.endswith(COUNTERS) for key in weights),
        robseg_version=version("robseg"),
    )
    _write(out, page, weights, card)
    return card


def _write(out: Path, page: Path, weights: dict[str, Tensor], card: Card) -> None:
    """Both files, each under its name only when it is complete."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in (out, page)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(weights, parts[out], {"format": "pt", KEY: card.model_dump_json()})
            parts[page].write_text(card_page(card, out, sha256_of(parts[out])), encoding="utf-8")
            for path, part in parts.items():
                os.replace(part, path)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}.") from error
