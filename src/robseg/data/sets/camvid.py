"""CamVid in the layout and with the classes of SegNet (1511.00561): camvid:ROOT?split=val.

ROOT, or the folder CamVid in it, holds {train,val,test} with images and {train,val,test}annot with index PNGs of the
same names; 11 classes, 11 is void. Options
- split: train, val (the default) or test.
- sequence, without: keep, or leave out, the frames whose names start with this (or one of these, with commas), such
  as 0016E5. The published splits share video sequences: frames of 0016E5 are in train and are all of val, so
  split=train&without=0016E5 is what to train on when val is to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robseg.data.base import ClassList
from robseg.data.matching import match_files
from robseg.data.options import check_options, choice, existing_root, listed
from robseg.data.pairs import Pair, PairSet, label_table
from robseg.errors import UserError

SPLITS = ("train", "val", "test")
VOID = 11
CLASSES = ClassList(
    names=(
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign", "fence", "car", "pedestrian", "bicyclist"),
    ),
    colours=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)


def open_camvid(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open one split of CamVid; the module says what the options are. Raises UserError for what is wrong."""
    check_options("camvid", options, ("split", "sequence", "without"))
    path = _home(existing_root("camvid", root))
    split = choice("camvid", "split", options, SPLITS, "val")
    there = _splits_in(path)
    if split not in there:
        found = f"only {' and '.join(there)}" if there else "no split at all"
        raise UserError(f"'{path}' lacks the folders {split} and {split}annot of CamVid; it has {found}.")
    pairs, faults = match_files(path / split, path / f"{split}annot")
    name = f"camvid {split}"
    for option in ("sequence", "without"):
        if option in options:
            pairs = _filtered(pairs, option, listed(options[option]))
            name += f", {option} {options[option]}"
    return PairSet(
        name=name,
        classes=CLASSES,
        void=f"Pixels of the void class (value {VOID} in the label files) are ignored.",
        pairs=pairs,
        table=label_table(len(CLASSES), (VOID,)),
        faults=faults,
    )


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits that the folder has; none where it does not hold CamVid in this layout."""
    return _splits_in(_home(root))


def _home(root: Path) -> Path:
    return root / "CamVid" if not _splits_in(root) and _splits_in(root / "CamVid") else root


def _splits_in(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in SPLITS if (folder / name).is_dir() and (folder / f"{name}annot").is_dir())


def _filtered(pairs: tuple[Pair, ...], option: str, starts: tuple[str, ...]) -> tuple[Pair, ...]:
    """The frames that start with one of `starts`, or with none of them.

    A start that fits no frame is an error, as a mistyped one would let frames of the judged sequence leak unseen.
    """
    known = ", ".join(sorted({pair.id.split("_")[0] for pair in pairs}))
    unused = [start for start in starts if not any(pair.id.startswith(start) for pair in pairs)]
    if unused or not starts:
        raise UserError(f"No frame fits {option}={','.join(unused)} of camvid; there are the sequences {known}.")
    kept = tuple(pair for pair in pairs if pair.id.startswith(starts) == (option == "sequence"))
    if not kept:
        raise UserError(
            f"No frame of camvid is left with {option}={','.join(starts)}; there are the sequences {known}."
        )
    return kept
