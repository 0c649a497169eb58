"""ADE20K scene parsing (SceneParse150): ade20k:ROOT?split=val.

ROOT is ADEChallengeData2016 or a folder above it, with images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png, whose values are 0 for "other" and 1..150 for the classes. Options
- split: train (20210) or val (2000, the default); training and validation mean the same.
- classes: 150 (0 is ignored, class k is stored as k + 1: the usual protocol, and the default) or 151 (0 is the class
  "other" and counts, nothing is ignored: as PIR-AT, arXiv 2306.12941).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import ClassList
from robseg.data.classes import read_classes
from robseg.data.matching import match_files
from robseg.data.options import check_options, choice, first_with, set_root
from robseg.data.pairs import PairSet, label_table

FOLDERS = {"train": "training", "val": "validation", "training": "training", "validation": "validation"}
PLACES = ("", "ADEChallengeData2016")
MARKERS = ("images", "annotations")


def open_ade20k(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open one split of ADE20K; the module says what the options are. Raises UserError for what is wrong."""
    check_options("ade20k", options, ("split", "classes"))
    path = set_root("ade20k", root, PLACES, MARKERS)
    folder = FOLDERS[choice("ade20k", "split", options, FOLDERS, "val")]
    other = choice("ade20k", "classes", options, ("150", "151"), "150") == "151"
    pairs, faults = match_files(path / "images" / folder, path / "annotations" / folder)
    return PairSet(
        name=f"ade20k {'train' if folder == 'training' else 'val'}, {151 if other else 150} classes",
        classes=ade20k_classes(other),
        void="No pixel is ignored: the value 0 is the class 'other'."
        if other
        else "Pixels of the value 0 ('other') are ignored; class k is stored as k + 1.",
        pairs=pairs,
        table=label_table(151, ()) if other else label_table(150, (0,), first=1),
        faults=faults,
    )


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits that the folder has; none where it does not hold ADE20K."""
    path = first_with(root, PLACES, MARKERS)
    if path is None:
        return ()
    return tuple(
        split
        for split, folder in (("train", "training"), ("val", "validation"))
        if all((path / marker / folder).is_dir() for marker in MARKERS)
    )


def ade20k_classes(other: bool) -> ClassList:
    """The 150 classes in label order, in the colours of the benchmark; with "other" (black) before them if asked."""
    classes = read_classes(Path(__file__).with_name("ade20k.txt"))
    if not other:
        return classes
    return ClassList(("other", *classes.names), ((0, 0, 0), *classes.colours))
