"""The sizes that users write: 512 for the shorter side, 512x1024 for height and width."""

from __future__ import annotations

import re

from robseg.errors import UserError


def parse_size(text: str) -> int | tuple[int, int]:
    """'512' is the length of the shorter side, '512x1024' height and width; UserError for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise UserError(f"The size '{text}' must be a number for the shorter side, or HEIGHTxWIDTH, as 512x1024.")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))
