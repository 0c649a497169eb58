"""The states from which a training goes on."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robseg.errors import UserError
from robseg.records.files import whole_file

FORMAT = 1
KEPT = 2
NAME = re.compile(r"step-(\d{9})\.pt")


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write step-N.pt under a temporary name, rename it, and remove all but the last two. UserError for a full disk."""
    path = folder / f"step-{step:09d}.pt"
    # What a process left that was killed while it wrote.
    for torn in folder.glob(".step-*.part"):
        torn.unlink(missing_ok=True)
    # Into an open file: a path is written by C++, whose errors do not say that the disk is full.
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, "step": step, **state}, file)
    for _, old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of all checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def read_newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole; None where there is no checkpoint. `report` is told of each damaged one.

    Raises UserError where there are checkpoints but none of them can be read: to begin anew would throw work away.
    """
    found = checkpoints(folder)
    for _, path in reversed(found):
        try:
            return read_checkpoint(path)
        except UserError as error:
            report(str(error))
    if found:
        raise UserError(f"None of the {len(found)} checkpoints in {folder} can be read; begin anew with another --out.")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A state on the CPU; UserError where the file is damaged or of another format. No code of it is run."""
    try:
        # torch.load looks at no checksum and would take flipped bits for weights.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and state.get("format") == FORMAT:
                return state
    except Exception as error:
        # Whatever the unpickler trips over in a damaged file.
        raise UserError(f"The checkpoint {path} is damaged or incomplete.") from error
    raise UserError(f"The checkpoint {path} is {'damaged' if damaged else f'not of format {FORMAT}'}.")
