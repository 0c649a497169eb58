"""What the openers of data sets share in reading NAME:ROOT?key=value."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

from robseg.errors import UserError


def check_options(name: str, options: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise UserError for an option that the data set `name` does not have, with the near and the allowed ones."""
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(f"Unknown option '{key}' of {name}; {hint}allowed: {', '.join(allowed)}.")


def existing_root(name: str, root: str | None) -> Path:
    """The folder of the data set `name`; UserError where none is given, or it is not there, or not a folder."""
    if not root:
        raise UserError(f"The data set {name} is read from a folder: write {name}:FOLDER, such as {name}:data/{name}.")
    # The shell expands '~' at the beginning of a word only, which is not where it stands in NAME:~/data.
    path = Path(root).expanduser()
    if not path.is_dir():
        fault = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"The folder '{path}' of the data set {name} {fault} (looked for from '{Path.cwd()}').")
    return path


def listed(text: str) -> tuple[str, ...]:
    """The parts of 'a,b,c', without blanks around them and without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
