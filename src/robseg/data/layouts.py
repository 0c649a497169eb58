"""Which data sets a folder holds, told by its tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from robseg.data.sets import ade20k, camvid, cityscapes, sbd, voc
from robseg.data.sets.folder import is_folder_set
from robseg.spec import Spec

LAYOUTS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "voc": voc.splits_of,
    "sbd": sbd.splits_of,
    "ade20k": ade20k.splits_of,
    "cityscapes": cityscapes.splits_of,
    "camvid": camvid.splits_of,
}
"""{data set: which of its splits a folder holds}; asked in this order."""


def recognise(root: Path) -> list[Spec]:
    """The splits of all published sets in the folder; of none, the folder as images and labels; or nothing."""
    found = [Spec(name, str(root), {"split": split}) for name, splits in LAYOUTS.items() for split in splits(root)]
    for spec in found:
        if (spec.name, spec.options["split"]) == ("sbd", "train"):
            # There is no VOC near it to compare with.
            spec.options["leak"] = "allow"
    return found or ([Spec("folder", str(root))] if is_folder_set(root) else [])


def format_spec(spec: Spec) -> str:
    """NAME:ROOT?key=value&..., as `robseg.spec.parse_spec` reads it."""
    root = "" if spec.root is None else ":" + quote(spec.root, safe="/:\\\\ ~")
    options = "&".join(f"{key}={quote(value, safe=':/, ')}" for key, value in spec.options.items())
    return f"{spec.name}{root}" + (f"?{options}" if options else "")
