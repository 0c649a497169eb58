"""The model card that goes with converted weights, in the file's own header and as a page beside it."""

from __future__ import annotations

from pathlib import Path

import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError

KEY = "robseg"
"""The entry of the safetensors header under which the card stands, as JSON."""


class Card(BaseModel):
    """Where weights came from and how to feed them.

    model: what MODEL of the command line is. mean, std: None where images in [0, 1] go in as they are.
    source_file, source_sha256: the file they were converted from. left_out: entries of it that serve in training alone.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    model: str
    architecture: str
    num_classes: int
    data: str | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    source: str | None
    licence: str | None
    source_file: str
    source_sha256: str
    left_out: int
    robseg_version: str


def read_card(path: Path) -> Card | None:
    """The card in a safetensors file's header; None for any other file and one without a card."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        return None if text is None else Card.model_validate_json(text)
    except (safetensors.SafetensorError, OSError, ValidationError):
        return None


def card_page(card: Card, file: Path, sha256: str) -> str:
    """The card as Markdown; sha256 is of the converted file."""
    if card.mean is None or card.std is None:
        convention = "RGB in [0, 1], not normalised"
    else:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (card.mean, card.std))
        convention = f"RGB in [0, 1], normalised with mean ({mean}) and std ({std})"
    rows = {
        "Model": f"`{card.model}`",
        "Architecture": f"`{card.architecture}`",
        "Classes": f"{card.num_classes}" + (f" ({card.data})" if card.data else ""),
        "Input": convention,
        "Source": card.source or "not stated",
        "Licence": card.licence or "not stated by the authors",
        "Converted from": f"`{card.source_file}`, sha256 `{card.source_sha256}`",
        "Entries left out": f"{card.left_out}, which serve in training alone" if card.left_out else "none",
        "sha256 of this file": f"`{sha256}`",
        "Written by": f"robseg {card.robseg_version}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    command = f"    robseg evaluate {card.model} --checkpoint {file.name} --data DATA --out RUN"
    return f"# {file.name}\n\n| | |\n| --- | --- |\n{table}\n\n{command}\n"
