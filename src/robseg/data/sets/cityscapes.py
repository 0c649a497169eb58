"""Cityscapes with fine labels: cityscapes:ROOT?split=val.

ROOT holds leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png (as
published) or *_gtFine_labelTrainIds.png (as the set's own script writes). Options
- split: train (2975), val (500, the default) or test (1525, whose published labels are empty).
- labels: labelIds or labelTrainIds; without it, whichever is there, labelIds where both are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.matching import match_files
from robseg.data.options import check_options, choice, first_with, set_root
from robseg.data.pairs import LabelTable, PairSet, label_table

SPLITS = ("train", "val", "test")
LABELS = ("labelIds", "labelTrainIds")
CLASSES = ClassList(
    names=(
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
        *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    colours=(
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153)),
        *((250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60)),
        *((255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
)
TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label id of each class in the order of the train ids; the other ids, of 0..33, are void."""
PLACES = ("", "cityscapes", "Cityscapes")
MARKERS = ("leftImg8bit", "gtFine")


def open_cityscapes(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open one split of Cityscapes; the module says what the options are. Raises UserError for what is wrong."""
    check_options("cityscapes", options, ("split", "labels"))
    path = set_root("cityscapes", root, PLACES, MARKERS)
    split = choice("cityscapes", "split", options, SPLITS, "val")
    labels = choice("cityscapes", "labels", options, LABELS, _labels_there(path / "gtFine" / split))
    pairs, faults = match_files(
        path / "leftImg8bit" / split, path / "gtFine" / split, "_leftImg8bit", f"_gtFine_{labels}"
    )
    ids = labels == "labelIds"
    return PairSet(
        name=f"cityscapes {split}",
        classes=CLASSES,
        void="Pixels of the 15 label ids that are not evaluated (unlabelled, ego vehicle, parking, ...) are ignored."
        if ids
        else "Pixels of the value 255 in the labelTrainIds files (what is not evaluated) are ignored.",
        pairs=pairs,
        table=_id_table() if ids else label_table(len(CLASSES), (IGNORE_INDEX,)),
        faults=faults,
    )


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits for training and judging that the folder has; none where it does not hold Cityscapes."""
    path = first_with(root, PLACES, MARKERS)
    if path is None:
        return ()
    return tuple(split for split in ("train", "val") if all((path / marker / split).is_dir() for marker in MARKERS))


def _id_table() -> LabelTable:
    return dict.fromkeys(range(34), IGNORE_INDEX) | {label_id: label for label, label_id in enumerate(TRAIN_IDS)}


def _labels_there(folder: Path) -> str:
    return next((name for name in LABELS if next(folder.glob(f"*/*_gtFine_{name}.png"), None)), LABELS[0])
