"""Any images and labels that a text file lists in pairs: list:ROOT?file=train.txt&classes=voc.

Each line of the file holds the paths of an image and of its index PNG, below ROOT or absolute, with a blank between
them (or a tab, where paths have blanks): the form of the lists of PSPNet's and DDC-AT's code (arXiv 2003.06555).
Options
- file: the list, below ROOT or else below the current folder; without it, ROOT/list.txt.
- classes: voc, cityscapes, ade20k or camvid for the classes of that set, a text file with one class a line, or their
  number; without it, ROOT/classes.txt.
- ignore, zero: as of the set folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import ClassList
from robseg.data.classes import read_classes
from robseg.data.matching import pair_lines, read_lines
from robseg.data.options import check_options, existing_root
from robseg.data.pairs import PairSet
from robseg.data.sets import camvid, cityscapes, voc
from robseg.data.sets.ade20k import ade20k_classes
from robseg.data.sets.folder import class_list, encoding
from robseg.errors import UserError

NAMED = ("voc", "sbd", "ade20k", "cityscapes", "camvid")
"""The sets whose classes and colours go by their name."""


def open_list(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open the pairs of a list; the module says what the options are. Raises UserError for what is wrong."""
    check_options("list", options, ("file", "classes", "ignore", "zero"))
    path = existing_root("list", root)
    source = _source(path, options.get("file", "list.txt"))
    classes = known_classes("list", path, options.get("classes"))
    table, void = encoding("list", len(classes), options)
    lines = [(number, *_files(path, source, number, line)) for number, line in read_lines(source)]
    pairs, faults = pair_lines([(number, _id(path, image), image, label) for number, image, label in lines], source)
    return PairSet(f"list {source.name}", classes, void, pairs, table, faults)


def known_classes(name: str, root: Path, text: str | None) -> ClassList:
    """The classes of the published set that `text` names, or what `folder.class_list` makes of it."""
    if text == "ade20k":
        return ade20k_classes(other=False)
    named = {"voc": voc.CLASSES, "sbd": voc.CLASSES, "cityscapes": cityscapes.CLASSES, "camvid": camvid.CLASSES}
    return named[text] if text in named else class_list(name, root, text)


def coloured_classes(text: str) -> ClassList:
    """The classes of the published set that `text` names, or of a file that has a colour for each.

    Raises UserError for anything else: the colours that other classes are given are in no mask.
    """
    if text in NAMED:
        return known_classes("index", Path(), text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no file '{text}' with a line name,r,g,b for each class, by whose colours masks are read; give "
            f"one, or {', '.join(NAMED)}."
        )
    return read_classes(path, coloured=True)


def _source(root: Path, text: str) -> Path:
    for path in (root / text, Path(text).expanduser()):
        if path.is_file():
            return path
    raise UserError(f"The list '{text}' is neither in '{root}' nor in '{Path.cwd()}'; name it with file=FILE.")


def _files(root: Path, source: Path, number: int, line: str) -> tuple[Path, Path]:
    parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
    if len(parts) != 2:
        raise UserError(
            f"Line {number} of the list '{source}' has {len(parts)} parts ('{line[:80]}'); it must be the paths of an "
            "image and a label, with a blank between them, or a tab where paths have blanks."
        )
    image, label = (_below(root, part) for part in parts)
    return image, label


def _below(root: Path, text: str) -> Path:
    """Lists are about whose paths begin with a slash and yet are meant below the root."""
    inside = root / re.sub(r"^/+", "", text)
    return Path(text) if text.startswith("/") and not inside.exists() else inside


def _id(root: Path, image: Path) -> str:
    path = image.relative_to(root) if image.is_relative_to(root) else image
    return path.with_suffix("").as_posix()
