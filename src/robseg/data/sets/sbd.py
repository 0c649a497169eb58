"""The Semantic Boundaries Dataset, which labels VOC images in .mat files: sbd:ROOT?voc=VOCdevkit/VOC2012.

ROOT is the folder dataset of its archive, or one above it, with img/*.jpg, cls/*.mat (GTcls.Segmentation, VOC's
classes), train.txt (8498) and val.txt (2857). Its lists were drawn without regard to VOC's, so both hold images of VOC
val. Needs SciPy: pip install 'robseg[sbd]'. Options
- split: train_noval (all of SBD but the images of VOC val, the default), train_aug (the same and the images of VOC
  train, those with VOC's own labels: the usual 10582), train, val, trainval (SBD's lists as they are).
- voc: the folder of VOC 2012, whose val.txt says what to leave out; without it, VOCdevkit/VOC2012 is looked for in ROOT
  and the three folders above it.
- leak: what to do with images of VOC val in train and trainval: error (the default), leave-out or allow.
- void: ignore or background, as of voc; SBD's own labels have no void pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robseg.data.matching import Pairing, pair_stems, read_stems
from robseg.data.options import check_options, choice, existing_root, first_with, set_root
from robseg.data.pairs import Fault, Pair, PairSet
from robseg.data.sets.voc import CLASSES, LEAKS, MARKERS, val_stems, void_policy, without_leaks
from robseg.data.sets.voc import PLACES as VOC_PLACES
from robseg.errors import UserError

SPLITS = ("train_noval", "train_aug", "train", "val", "trainval")
PLACES = ("", "dataset", "benchmark_RELEASE/dataset", "benchmark/benchmark_RELEASE/dataset", "SBD/dataset")


def open_sbd(root: str | None, options: Mapping[str, str]) -> PairSet:
    """Open one split of SBD; the module says what the options are. Raises UserError for what is wrong."""
    check_options("sbd", options, ("split", "voc", "leak", "void"))
    path = set_root("sbd", root, PLACES, ("img", "cls"))
    split = choice("sbd", "split", options, SPLITS, "train_noval")
    leak = choice("sbd", "leak", options, LEAKS, "error")
    table, void = void_policy("sbd", options)
    lists = {"train": ("train",), "val": ("val",)}.get(split, ("train", "val"))
    lines = [line for name in lists for line in read_stems(path / f"{name}.txt")]
    source = path / f"{lists[0]}.txt" if len(lists) == 1 else path
    voc = find_voc(path, options.get("voc"))
    if split in ("train_noval", "train_aug") or (split != "val" and leak != "allow"):
        if voc is None or not val_stems(voc):
            raise UserError(
                f"SBD's lists hold images of VOC val, and VOC's val.txt was not found near '{path}': give "
                "voc=FOLDER of VOC2012, or split=train&leak=allow where VOC val is not what you judge on."
            )
        asked = split in ("train", "trainval")
        lines = without_leaks(lines, str(source), val_stems(voc), leak if asked else "leave-out")
    pairs, faults = pair_stems(lines, source, path / "img", path / "cls", ".mat")
    if split == "train_aug" and voc is not None:
        pairs, faults = _with_voc_train(pairs, faults, voc)
    return PairSet(f"sbd {split}", CLASSES, void, pairs, table, faults)


def splits_of(root: Path) -> tuple[str, ...]:
    """What of SBD the folder holds: all but VOC val where that is known, else SBD's own splits, or nothing."""
    path = first_with(root, PLACES, ("img", "cls"))
    if path is None or not all((path / f"{name}.txt").is_file() for name in ("train", "val")):
        return ()
    voc = find_voc(path, None)
    return ("train_noval",) if voc is not None and val_stems(voc) else ("train", "val")


def find_voc(path: Path, given: str | None) -> Path | None:
    """The folder VOC2012 that the option `voc` names, or the one near `path`; None where there is none."""
    if given is not None:
        return set_root("voc", str(existing_root("voc", given)), VOC_PLACES, MARKERS)
    nearby = (first_with(folder, VOC_PLACES, MARKERS) for folder in (path, *path.resolve().parents[:3]))
    return next((folder for folder in nearby if folder is not None), None)


def _with_voc_train(pairs: tuple[Pair, ...], faults: tuple[Fault, ...], voc: Path) -> Pairing:
    source = voc / "ImageSets/Segmentation/train.txt"
    own, own_faults = pair_stems(read_stems(source), source, voc / "JPEGImages", voc / "SegmentationClass", ".png")
    joined = {pair.id: pair for pair in (*pairs, *own)}
    return tuple(joined[name] for name in sorted(joined)), (*faults, *own_faults)
