"""Which image file belongs to which label file: by equal names, or as a list says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from robseg.data.options import is_utf8
from robseg.data.pairs import Fault, Pair
from robseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)

Pairing = tuple[tuple[Pair, ...], tuple[Fault, ...]]
"""The pairs that are whole, sorted by id, and what is wrong with the rest."""


def match_files(images: Path, labels: Path, image_end: str = "", label_end: str = "") -> Pairing:
    """Images and labels of the same path without suffix below their folders, subfolders included.

    The id is that path, with forward slashes, without `image_end` and `label_end`, which the names must then have.
    Hidden files and other formats are passed over. Faults: an image without label or the reverse, two files of one
    stem, a name that is not UTF-8. Raises UserError for a folder that is missing or empty, and where no image has a
    label at all.
    """
    faults: list[Fault] = []
    image_files = _by_stem(images, IMAGE_SUFFIXES, "image", labels, image_end, faults)
    label_files = _by_stem(labels, LABEL_SUFFIXES, "label", images, label_end, faults)
    if not image_files.keys() & label_files.keys():
        raise UserError(
            f"No image in '{images}' has a label of its name in '{labels}': there is '{min(image_files)}' here and "
            f"'{min(label_files)}' there, and names must be equal up to the suffix."
        )
    for kind, here, other, there, folder in (
        ("image", image_files, "label", label_files, labels),
        ("label", label_files, "image", image_files, images),
    ):
        faults += [
            Fault(
                f"{kind} without {other}",
                here[stem],
                f"there is none of that name in '{folder}': add the {other} or take the {kind} away",
            )
            for stem in sorted(here.keys() - there.keys())
        ]
    stems = sorted(image_files.keys() & label_files.keys())
    return tuple(Pair(image_files[stem], label_files[stem], stem) for stem in stems), tuple(faults)


def _by_stem(
    folder: Path, suffixes: tuple[str, ...], kind: str, apart_from: Path, end: str, faults: list[Fault]
) -> dict[str, Path]:
    """{path below the folder without suffix: file}, without what lies in the folder `apart_from` within it."""
    if not folder.is_dir():
        raise UserError(
            f"The folder of {kind}s '{folder}' {'is not a folder' if folder.exists() else 'does not exist'}."
        )
    found: dict[str, Path] = {}
    for top, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith(".") and Path(top, sub) != apart_from]
        for name in sorted(names):
            path = Path(top, name)
            if path.suffix.lower() not in suffixes or name.startswith(".") or not path.stem.endswith(end):
                continue
            if not is_utf8(str(path)):
                text = f"it holds {os.fsencode(path.relative_to(folder))!r}: give the file a name in UTF-8"
                faults.append(Fault(f"name of a file of the {kind}s that is not UTF-8", folder, text))
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
            if stem in found:
                text = f"'{found[stem].name}' is there already, and the name without suffix is the id of the sample"
                faults.append(Fault(f"{kind} of the same name up to the suffix", path, text))
                continue
            found[stem] = path
    odd = [fault for fault in faults if fault.path == folder]
    if odd and not found:
        raise UserError(f"No {kind} of '{folder}' can be used: {odd[0].text}.")
    if not found:
        raise UserError(f"There is no {kind} in '{folder}'; expected files of *{end}{f', *{end}'.join(suffixes)}.")
    return found


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list file that are not blank. UserError where it is absent, empty or no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The list '{path}' is not UTF-8 text.") from None
    except OSError as fault:
        raise UserError(f"The list '{path}' cannot be read ({fault.strerror}).") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"The list '{path}' is empty; it must name an image a line.")
    return lines


def read_stems(path: Path) -> list[tuple[int, str]]:
    """(number, stem) of a list that names an image a line.

    Lists with the paths of image and label ('/JPEGImages/x.jpg /SegmentationClassAug/x.png') give the stem of the
    image: such a list is about for VOC, under the same file name.
    """
    return [(number, Path(line.split()[0]).stem) for number, line in read_lines(path)]


def pair_stems(
    lines: Iterable[tuple[int, str]], source: Path, images: Path, labels: Path, label_suffix: str
) -> Pairing:
    """The files images/STEM.jpg and labels/STEM + suffix of the stems that a list names, `source` for the faults.

    Faults: a stem listed twice, and files that are not there. Raises UserError where one of the folders is missing.
    """
    for kind, folder in (("images", images), ("labels", labels)):
        if not folder.is_dir():
            raise UserError(f"The folder of {kind} '{folder}' does not exist, but '{source}' lists files of it.")
    there = {path.name for folder in (images, labels) for path in folder.iterdir()}

    def files(stem: str) -> tuple[Path, Path]:
        return images / f"{stem}.jpg", labels / f"{stem}{label_suffix}"

    return pair_lines([(n, stem, *files(stem)) for n, stem in lines], source, lambda path: path.name in there)


def pair_lines(
    lines: Sequence[tuple[int, str, Path, Path]], source: Path, exists: Callable[[Path], bool] = Path.is_file
) -> Pairing:
    """Pairs of the (number, id, image, label) of a list; faults: an id listed twice, and files that are not there."""
    pairs: dict[str, Pair] = {}
    faults: list[Fault] = []
    for number, name, image, label in lines:
        where = f"line {number} of '{source}'"
        missing = [(kind, path) for kind, path in (("image", image), ("label", label)) if not exists(path)]
        faults += [
            Fault(f"listed {kind} that is missing", path, f"{where} names it: add it or take the line away")
            for kind, path in missing
        ]
        if name in pairs:
            faults.append(Fault("image listed twice", image, f"it is in {where} again: take the line away"))
        elif not missing:
            pairs[name] = Pair(image, label, name)
    if not pairs and faults:
        raise UserError(
            f"None of the {len(lines)} images that '{source}' lists is there with its label; the first is "
            f"'{lines[0][2]}' with '{lines[0][3]}'."
        )
    return tuple(pairs[name] for name in sorted(pairs)), tuple(faults)
