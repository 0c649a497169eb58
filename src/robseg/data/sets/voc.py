"""PASCAL VOC 2012 segmentation: voc:ROOT?split=val.

ROOT is VOCdevkit/VOC2012 or a folder above it, with JPEGImages, SegmentationClass (palette PNGs, index = class) and
ImageSets/Segmentation/{train,val,trainval}.txt. Options
- split: train, val (the default), trainval, or train_aug: the list train_aug.txt (or trainaug.txt) beside the others,
  or, where there is none, every file of SegmentationClassAug that is not in val.txt; 10582 images in either case.
- labels: SegmentationClass (the default) or SegmentationClassAug (the default of train_aug).
- void: ignore (255, the borders of objects, is ignored: the usual protocol, and the default), or background (255
  counts as class 0, in training and evaluation, as in the code of PIR-AT, arXiv 2306.12941).
- leak: what to do with images of val.txt in a training list: error (the default), leave-out, or allow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.matching import pair_stems, read_stems
from robseg.data.options import check_options, choice, first_with, is_utf8, set_root
from robseg.data.pairs import LabelTable, PairSet, label_table, shortened
from robseg.errors import UserError

SPLITS = ("train", "val", "trainval", "train_aug")
LEAKS = ("error", "leave-out", "allow")
CLASSES = ClassList(
    names=(
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    colours=(
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)),
        *((128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128)),
        *((64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)),
    ),
)
PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")
MARKERS = ("JPEGImages", "ImageSets/Segmentation")
AUG_LISTS = ("train_aug.txt", "trainaug.txt")


def open_voc(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open one split of VOC 2012; the module says what the options are. Raises UserError for what is wrong."""
    check_options("voc", options, ("split", "labels", "void", "leak"))
    path = set_root("voc", root, PLACES, MARKERS)
    split = choice("voc", "split", options, SPLITS, "val")
    usual = "SegmentationClassAug" if split == "train_aug" else "SegmentationClass"
    labels = choice("voc", "labels", options, ("SegmentationClass", "SegmentationClassAug"), usual)
    leak = choice("voc", "leak", options, LEAKS, "error")
    table, void = void_policy("voc", options)
    source, lines = _list(path, split)
    if split in ("train", "train_aug"):
        lines = without_leaks(lines, str(source), val_stems(path), leak)
    pairs, faults = pair_stems(lines, source, path / "JPEGImages", path / labels, ".png")
    name = f"voc {split}" + (f", {labels}" if labels != usual else "")
    return PairSet(name, CLASSES, void, pairs, table, faults)


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits that the folder has a list of; none where it does not hold VOC."""
    path = first_with(root, PLACES, MARKERS)
    if path is None:
        return ()
    lists = path / "ImageSets/Segmentation"
    there = [split for split in ("train", "val") if (lists / f"{split}.txt").is_file()]
    if (path / "SegmentationClassAug").is_dir() and (
        "val" in there or any((lists / name).is_file() for name in AUG_LISTS)
    ):
        there.append("train_aug")
    return tuple(there)


def void_policy(name: str, options: Mapping[str, str]) -> tuple[LabelTable, str]:
    """What the value 255 means under the option `void`, and the sentence that says so."""
    if choice(name, "void", options, ("ignore", "background"), "ignore") == "ignore":
        return label_table(len(CLASSES), (IGNORE_INDEX,)), "Pixels of the value 255 (borders of objects) are ignored."
    sentence = "Pixels of the value 255 (borders of objects) count as background, as in the code of PIR-AT."
    return label_table(len(CLASSES), ()) | {IGNORE_INDEX: 0}, sentence


def val_stems(path: Path) -> frozenset[str]:
    """The images of VOC val by the list in `path` (VOC2012), none where that list is absent."""
    source = path / "ImageSets/Segmentation/val.txt"
    return frozenset(stem for _, stem in read_stems(source)) if source.is_file() else frozenset()


def without_leaks(lines: list[tuple[int, str]], source: str, val: frozenset[str], leak: str) -> list[tuple[int, str]]:
    """The lines of a training list without the images of VOC val; UserError, naming them, for leak "error"."""
    leaked = [stem for _, stem in lines if stem in val]
    if leaked and leak == "error":
        raise UserError(
            f"{len(leaked)} training images of '{source}' are in VOC val: {shortened(leaked)}; leave them out with "
            "leak=leave-out, or keep them with leak=allow where VOC val is not what you judge on."
        )
    return [(n, stem) for n, stem in lines if stem not in val] if leak == "leave-out" else lines


def _list(path: Path, split: str) -> tuple[Path, list[tuple[int, str]]]:
    """The file that lists a split, and its (line, stem)."""
    lists = path / "ImageSets/Segmentation"
    if split != "train_aug":
        return lists / f"{split}.txt", read_stems(lists / f"{split}.txt")
    for name in AUG_LISTS:
        if (lists / name).is_file():
            return lists / name, read_stems(lists / name)
    folder, val = path / "SegmentationClassAug", val_stems(path)
    if not folder.is_dir() or not val:
        raise UserError(
            f"split=train_aug of voc needs the folder '{folder}', and '{lists}/train_aug.txt' or val.txt to leave out."
        )
    stems = sorted(file.stem for file in folder.glob("*.png") if file.stem not in val)
    odd = next((stem for stem in stems if not is_utf8(stem)), None)
    if odd is not None:
        raise UserError(f"'{folder}' holds {os.fsencode(odd)!r}, a name that is not UTF-8; rename the file.")
    return folder, list(enumerate(stems, 1))
