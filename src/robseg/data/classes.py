"""Class lists: from a number, or from a text file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.palette import distinct_colours
from robseg.errors import UserError

Colour = tuple[int, int, int]

_HEADER = "name,r,g,b"
_NUMBERS = re.compile(r"(?:\s*[,\t]\s*-?\d+)+\s*$")


def named_classes(names: Sequence[str], source: str) -> ClassList:
    """Classes of these names in made-up colours. Raises UserError, which names `source`, as `check_count` does."""
    check_count(len(names), source)
    return ClassList(tuple(names), distinct_colours(len(names)))


def numbered_classes(count: int, source: str) -> ClassList:
    """The classes "class 0", "class 1", ... in made-up colours."""
    check_count(count, source)
    return named_classes([f"class {index}" for index in range(count)], source)


def is_numbered(classes: ClassList) -> bool:
    """Whether the classes have no names but those of `numbered_classes`."""
    return classes.names == tuple(f"class {index}" for index in range(len(classes)))


def check_count(count: int, source: str) -> None:
    """Raise UserError unless there are 1 to 255 classes: label 255 is kept for ignored pixels."""
    if not 1 <= count <= IGNORE_INDEX:
        raise UserError(
            f"{source} has {count} classes, but 1 to {IGNORE_INDEX} are possible, as labels are 0 to "
            f"{IGNORE_INDEX - 1} and {IGNORE_INDEX} marks ignored pixels."
        )


def read_classes(path: Path, *, coloured: bool = False) -> ClassList:
    """The classes of a UTF-8 text file, one a line in label order.

    A line is a name, or a name and its colour: 'road,128,64,128' or 'road', a tab and '128,64,128' (blanks or tabs
    between the numbers will do after the tab). A heading 'name,r,g,b' is skipped. Classes without a colour get a
    made-up one.
    Raises UserError, with the line, for an empty line, a name given twice and a colour that is not three numbers of
    0..255; with `coloured`, also for a class without a colour.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"The class list '{path}' is not UTF-8 text; it must hold one class name a line.") from None
    except OSError as fault:
        raise UserError(f"The class list '{path}' cannot be read ({fault.strerror}).") from None
    first = 1
    if lines and lines[0].replace(" ", "").casefold() == _HEADER:
        lines, first = lines[1:], 2
    entries: dict[str, Colour | None] = {}
    for number, line in enumerate(lines, first):
        name, colour = _entry(line, f"line {number} of the class list '{path}'")
        if name in entries:
            raise UserError(f"The class '{name}' in line {number} of the class list '{path}' is there already.")
        if coloured and colour is None:
            raise UserError(
                f"The class '{name}' in line {number} of the class list '{path}' has no colour; write {name},r,g,b."
            )
        entries[name] = colour
    check_count(len(entries), f"The class list '{path}'")
    made_up = distinct_colours(len(entries))
    colours = tuple(colour or made_up[index] for index, colour in enumerate(entries.values()))
    return ClassList(tuple(entries), colours)


def _entry(line: str, where: str) -> tuple[str, Colour | None]:
    """Name and colour of one line; `where` names the line in errors."""
    name, tab, text = line.partition("\t")
    if not tab:
        numbers = _NUMBERS.search(line)
        name, text = (line[: numbers.start()], numbers.group()) if numbers else (line, "")
    name = name.strip()
    if not name:
        raise UserError(f"There is no name in {where}; it must hold one class name a line.")
    if not text.strip():
        return name, None
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    values = [int(part) for part in parts if re.fullmatch(r"\d{1,3}", part)]
    if len(parts) != 3 or len(values) != 3 or max(values) > 255:
        raise UserError(f"The colour '{text.strip(', ')}' in {where} is not three numbers of 0 to 255.")
    return name, (values[0], values[1], values[2])
