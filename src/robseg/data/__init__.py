"""Data sets: sequences of (image, label, id) with named classes, opened by a short text such as 'camvid:CamVid'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robseg.data.base import IGNORE_INDEX, ClassList, Dataset, Sample
from robseg.data.classes import named_classes, numbered_classes
from robseg.data.layouts import format_spec, recognise
from robseg.data.pairs import PairSet, refuse_faults
from robseg.data.palette import distinct_colours
from robseg.data.protocols import OPTIONS as PROTOCOL_OPTIONS
from robseg.data.protocols import ProtocolSet, read_protocol
from robseg.data.samples import SampleList, check_dataset, check_sample, sample_size, take
from robseg.data.sets.ade20k import open_ade20k
from robseg.data.sets.camvid import open_camvid
from robseg.data.sets.cityscapes import open_cityscapes
from robseg.data.sets.folder import CLASSES_FILE, open_folder
from robseg.data.sets.listed import open_list
from robseg.data.sets.sbd import open_sbd
from robseg.data.sets.shapes import Shapes, open_shapes
from robseg.data.sets.voc import open_voc
from robseg.errors import UserError, unknown_name
from robseg.spec import parse_spec

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "ClassList",
    "Dataset",
    "Sample",
    "Shapes",
    "as_dataset",
    "check_sample",
    "distinct_colours",
    "open_data",
    "sample_size",
    "take",
]

DATASETS: dict[str, Callable[[str | None, dict[str, str]], Dataset]] = {
    "ade20k": open_ade20k,
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "folder": open_folder,
    "list": open_list,
    "sbd": open_sbd,
    "shapes": open_shapes,
    "voc": open_voc,
}
"""{name: function of the root and the options}. A new data set is a function here."""


NAMELESS = ("folder", "list")
"""Sets whose classes may be known by their number alone."""


def open_data(text: str, num_classes: int | None = None) -> Dataset:
    """Open the data set that NAME[:ROOT][?key=value&...] names, such as 'camvid:CamVid?split=val'.

    The names are those of `DATASETS`; the options are the set's own and those of `robseg.data.protocols`. Nothing is
    decoded. num_classes: of sets that do not say it.
    Raises UserError for an unknown name or option, for a root that is missing or does not hold such a set, and for
    files of it that cannot be paired.
    """
    spec = parse_spec(text)
    if spec.name not in DATASETS:
        folder = Path(text).expanduser()
        if folder.is_dir():
            found = recognise(folder)
            example = format_spec(found[-1]) if found else f"folder:{text}"
            raise UserError(f"'{text}' is a folder and not a data set; write NAME:FOLDER, as in {example}.")
        raise unknown_name("data set", spec.name, DATASETS)
    protocol = read_protocol(spec.name, spec.options)
    own = {key: value for key, value in spec.options.items() if key not in PROTOCOL_OPTIONS}
    nameless = spec.name in NAMELESS and spec.root and not (Path(spec.root).expanduser() / CLASSES_FILE).is_file()
    if nameless and num_classes is not None:
        own.setdefault("classes", str(num_classes))
    dataset = DATASETS[spec.name](spec.root, own)
    if isinstance(dataset, PairSet):
        refuse_faults(dataset)
    check_dataset(dataset)
    return dataset if protocol is None else ProtocolSet(dataset, protocol)


def as_dataset(
    data: Dataset | Sequence[Any] | str, num_classes: int | None = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """What the functions of the package accept as data, as a Dataset.

    data: a Dataset, a text for `open_data`, or any sequence of (image, label, id), a list as well as an object with
        `__len__` and `__getitem__`; images (3, H, W) floating point in [0, 1], labels (H, W) of integers. The samples
        are checked as they are asked for; ids are read at once, by going through the sequence unless it has `ids`.
    num_classes, class_names: one of them is needed for a sequence, and for a folder without a list of classes;
        otherwise they must agree with the set.
    Raises UserError for anything else, ids that are not unique, and more than 255 classes.
    """
    if num_classes is not None and class_names is not None and num_classes != len(class_names):
        raise UserError(f"num_classes is {num_classes} but class_names has {len(class_names)} names; give one of them.")
    if class_names is not None:
        num_classes = len(class_names)
    if isinstance(data, str):
        dataset = open_data(data, num_classes)
    elif isinstance(data, Dataset):
        dataset = data
    else:
        dataset = _sample_list(data, num_classes, class_names)
    check_dataset(dataset)
    if num_classes is not None and num_classes != len(dataset.classes):
        raise UserError(f"The data set '{dataset.name}' has {len(dataset.classes)} classes, not {num_classes}.")
    return dataset


def _sample_list(data: Any, num_classes: int | None, class_names: Sequence[str] | None) -> SampleList:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, dict):
        raise UserError(
            f"Data of type {type(data).__name__} cannot be used; give a data set, a text such as 'camvid:CamVid', or "
            "a list of (image, label, id)."
        )
    if class_names is not None:
        return SampleList(data, named_classes(class_names, "The argument class_names"))
    if num_classes is None:
        raise UserError(
            "A sequence of samples does not say how many classes there are; give num_classes or class_names."
        )
    return SampleList(data, numbered_classes(num_classes, "The argument num_classes"))
