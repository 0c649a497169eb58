"""What the openers of data sets share in reading NAME:ROOT?key=value."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from robseg.errors import UserError, unknown_name


def check_options(name: str, options: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise UserError for an option that the data set `name` does not have, with the near and the allowed ones."""
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(f"Unknown option '{key}' of {name}; {hint}allowed: {', '.join(allowed)}.")


def choice(name: str, option: str, options: Mapping[str, str], allowed: Collection[str], default: str) -> str:
    """The value of an option that is one of `allowed`; UserError names the others."""
    value = options.get(option, default)
    if value not in allowed:
        raise unknown_name(f"{option} of {name}", value, allowed)
    return value


def whole_number(name: str, option: str, text: str, least: int = 1) -> int:
    """The value of an option that is a whole number of at least `least`; UserError otherwise."""
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"The option {option} of {name} is '{text}'; it must be a whole number of {least} or more.")
    return int(text)


def is_utf8(name: str) -> bool:
    """Whether a file's name is text: others can be neither stored as ids nor printed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def existing_root(name: str, root: str | None) -> Path:
    """The folder of the data set `name`; UserError where none is given, or it is not there, or not a folder."""
    if root and not is_utf8(root):
        raise UserError(
            f"The folder {os.fsencode(root)!r} of the data set {name} has a name that is not UTF-8; rename it."
        )
    if not root:
        raise UserError(f"The data set {name} is read from a folder: write {name}:FOLDER, such as {name}:data/{name}.")
    # The shell expands '~' at the beginning of a word only, which is not where it stands in NAME:~/data.
    path = Path(root).expanduser()
    if not path.is_dir():
        fault = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"The folder '{path}' of the data set {name} {fault} (looked for from '{Path.cwd()}').")
    return path


def first_with(root: Path, places: Collection[str], markers: Collection[str]) -> Path | None:
    """The first of the folders `places` below `root` ('' is itself) that holds all of `markers`; None without one."""
    for place in places:
        if all((root / place / marker).exists() for marker in markers):
            return root / place
    return None


def set_root(name: str, root: str | None, places: Collection[str], markers: Collection[str]) -> Path:
    """The folder of a published set: the one given or a usual one below it that holds `markers`; UserError else."""
    path = existing_root(name, root)
    found = first_with(path, places, markers)
    if found is None:
        below = ", ".join(place for place in places if place)
        raise UserError(
            f"'{path}' does not hold the data set {name}: it needs {' and '.join(markers)}, there or in {below} below "
            "it."
        )
    return found


def listed(text: str) -> tuple[str, ...]:
    """The parts of 'a,b,c', without blanks around them and without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
