"""Any folder of images and folder of index PNGs: folder:ROOT?classes=names.txt&images=images&labels=labels&ignore=255.

Options
- images, labels: the two folders, below ROOT; without them, the one that has a usual name.
- classes: a text file with one class a line (see `read_classes`), below ROOT or else below the current folder, or the
  number of classes; without it, ROOT/classes.txt.
- ignore: the value, or several with commas, that marks ignored pixels in the label files; 255 without it,
  and nothing where it is empty.
- zero: 'class' (the value 0 is the first class, the default) or 'ignore' (0 is ignored and the first class is stored
  as 1, as ADE20K has it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.classes import numbered_classes, read_classes
from robseg.data.matching import match_files
from robseg.data.options import check_options, choice, existing_root, listed
from robseg.data.pairs import LabelTable, PairSet, label_table
from robseg.errors import UserError

IMAGE_FOLDERS = ("images", "image", "img", "JPEGImages")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "annot", "SegmentationClass")
OPTIONS = ("classes", "images", "labels", "ignore", "zero")
CLASSES_FILE = "classes.txt"


def open_folder(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open a folder of images and labels; the module says what the options are. Raises UserError for what is wrong."""
    check_options("folder", options, OPTIONS)
    path = existing_root("folder", root)
    images = _subfolder(path, "images", options, IMAGE_FOLDERS)
    labels = _subfolder(path, "labels", options, LABEL_FOLDERS)
    if images == labels:
        raise UserError(f"The images and labels of '{path}' are in one folder, '{images}'; they must be in two.")
    classes = class_list("folder", path, options.get("classes"))
    table, void = encoding("folder", len(classes), options)
    pairs, faults = match_files(images, labels)
    return PairSet(f"folder {path.resolve().name}", classes, void, pairs, table, faults)


def is_folder_set(root: Path) -> bool:
    """Whether the folder has one folder of images and one of labels with usual names."""
    return all(len(_usual(root, names)) == 1 for names in (IMAGE_FOLDERS, LABEL_FOLDERS))


def encoding(name: str, num_classes: int, options: Mapping[str, str]) -> tuple[LabelTable, str]:
    """The label table that the options `ignore` and `zero` ask for, and the sentence on what is ignored."""
    first = int(choice(name, "zero", options, ("class", "ignore"), "class") == "ignore")
    # 255 is a class where 255 classes are stored as 1..255, so it is ignored by default in all other cases only.
    default = str(IGNORE_INDEX) if first + num_classes <= IGNORE_INDEX else ""
    void = {*range(first), *_values(name, options.get("ignore", default))}
    return label_table(num_classes, void, first), _sentence(void, first)


def _subfolder(root: Path, option: str, options: Mapping[str, str], usual: tuple[str, ...]) -> Path:
    """The folder that the option names, or else the only one below ROOT with a usual name, in any case of letters."""
    if option in options:
        return root / options[option]
    found = _usual(root, usual)
    if not found:
        raise UserError(
            f"There is no folder of {option} in '{root}' ({', '.join(usual)}); name it with {option}=FOLDER."
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"Several folders in '{root}' may hold the {option} ({names}); choose with {option}=FOLDER.")
    return found[0]


def _usual(root: Path, usual: tuple[str, ...]) -> list[Path]:
    wanted = {name.casefold() for name in usual}
    return [path for path in sorted(root.iterdir()) if path.name.casefold() in wanted and path.is_dir()]


def class_list(name: str, root: Path, text: str | None) -> ClassList:
    """The classes that the option `classes` of the set `name` asks for, or those of ROOT/classes.txt without it."""
    if text is None:
        if (root / CLASSES_FILE).is_file():
            return read_classes(root / CLASSES_FILE)
        raise UserError(
            f"The classes of '{root}' are not known: put {CLASSES_FILE} with one name a line there, or give "
            "classes=FILE or classes=NUMBER."
        )
    if re.fullmatch(r"-?\d+", text):
        return numbered_classes(int(text), f"The option classes={text} of {name}")
    for path in (root / text, Path(text).expanduser()):
        if path.is_file():
            return read_classes(path)
    raise UserError(
        f"The class list '{text}' is neither a number nor a file in '{root}' or in the current folder '{Path.cwd()}'."
    )


def _values(name: str, text: str) -> tuple[int, ...]:
    """The values of 'ignore=0,255'."""
    parts = listed(text)
    if not all(part.isdecimal() and int(part) <= 65535 for part in parts):
        raise UserError(
            f"The option ignore of {name} is '{text}'; it must be values of 0 to 65535, with commas between."
        )
    return tuple(map(int, parts))


def _sentence(void: set[int], first: int) -> str:
    numbers = ", ".join(map(str, sorted(void)))
    what = f"Pixels with the value {numbers} in the label files are ignored" if void else "No pixel is ignored"
    return what + (f"; class k is stored as k + {first}." if first else ".")
