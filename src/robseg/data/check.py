"""Every file of a data set decoded once, and every fault in one pass."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robseg.data import DATASETS
from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.data.files import read_label, read_pixels
from robseg.data.mat import need_scipy
from robseg.data.pairs import Fault, Pair, PairSet, check_sizes, translate
from robseg.data.protocols import OPTIONS as PROTOCOL_OPTIONS
from robseg.data.threads import in_threads
from robseg.errors import UserError, unknown_name
from robseg.spec import Spec

Size = tuple[int, int]


@dataclass(frozen=True)
class PairReport:
    """What was found in the two files of a sample.

    size: (H, W) of the image, None where it cannot be decoded. digest: of its decoded pixels. pixels: (C + 1,) counts
    of the classes and, last, of void; None where the label is at fault.
    """

    size: Size | None
    digest: bytes | None
    pixels: Tensor | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class SplitReport:
    """One split: its name and classes, how many pairs, images of each size, counts (C + 1,) with void last.

    classes_known: False for a folder without class list, whose label values were all taken for classes.
    """

    spec: Spec
    name: str
    void: str
    classes: ClassList
    images: int
    sizes: Counter[Size]
    pixels: Tensor
    classes_known: bool

    @property
    def void_share(self) -> float:
        """Share of the pixels of good labels that is ignored."""
        return float(self.pixels[-1] / self.pixels.sum().clamp(min=1))


@dataclass
class Report:
    """What `check_data` found."""

    splits: list[SplitReport] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def check_data(specs: Sequence[Spec], advance: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Decode all files of the data sets and report what they hold and all that is wrong with them.

    Faults: files without counterpart, missing or undecodable; an image and its label of different sizes; label values
    outside the encoding; colour masks and palettes in another order; labels without a counted pixel; the same picture
    in training and judging splits. A file of several splits is decoded once. `advance` is called with the files done
    and the files in all. A set that cannot be opened at all is a fault beside others; UserError where none can be.
    """
    specs, datasets, everything = _opened(specs)
    report = Report()
    encodings = [str(dataset.table) for dataset in datasets]
    jobs = {
        (*pair[:2], encoding): (pair, dataset)
        for dataset, encoding in zip(datasets, encodings, strict=True)
        for pair in dataset.pairs
    }
    seen: dict[tuple[Path, Path, str], PairReport] = {}
    for key, one in zip(jobs, in_threads(lambda job: check_pair(*job), jobs.values()), strict=True):
        seen[key] = one
        advance(2 * len(seen), 2 * len(jobs))
    reports = [
        [seen[(*pair[:2], encoding)] for pair in dataset.pairs]
        for dataset, encoding in zip(datasets, encodings, strict=True)
    ]
    for spec, dataset, found_here in zip(specs, datasets, reports, strict=True):
        pixels = torch.zeros(len(dataset.classes) + 1, dtype=torch.int64)
        for found in found_here:
            if found.pixels is not None:
                pixels += found.pixels
        sizes = Counter(found.size for found in found_here if found.size is not None)
        report.splits.append(
            SplitReport(
                spec, dataset.name, dataset.void, dataset.classes, len(dataset), sizes, pixels, _classes_known(spec)
            )
        )
    everything += [fault for dataset in datasets for fault in dataset.faults]
    everything += [fault for found in seen.values() for fault in found.faults]
    everything += _duplicates(specs, datasets, reports)
    report.faults = list(dict.fromkeys(everything))
    return report


def check_pair(pair: Pair, dataset: PairSet) -> PairReport:
    """Decode the two files of a sample and say what is wrong with them; nothing is raised for that."""
    faults: list[Fault] = []
    size: Size | None = None
    digest = pixels = None
    try:
        image = read_pixels(pair.image)
        size = (image.shape[0], image.shape[1])
        digest = hashlib.blake2b(repr((size, image.ndim)).encode() + image.tobytes(), digest_size=16).digest()
    except UserError as error:
        faults.append(Fault("undecodable image", pair.image, _sentence(error, pair.image)))
    try:
        values = read_label(pair.label)
    except UserError as error:
        fault = _colour_fault(pair.label, dataset.classes)
        faults.append(fault or Fault("undecodable label", pair.label, _sentence(error, pair.label)))
        return PairReport(size, digest, None, tuple(faults))
    try:
        if size is not None:
            check_sizes(pair, size, values)
    except UserError as error:
        faults.append(Fault("size mismatch", pair.label, _sentence(error, pair.label)))
    palette = _palette_fault(pair.label, values, dataset)
    if palette is not None:
        faults.append(palette)
    try:
        label = translate(values, dataset.table, pair.label)
        classes = len(dataset.classes)
        pixels = torch.bincount(label.clamp(max=classes).flatten(), minlength=classes + 1)
        if not bool(pixels[:-1].any()):
            text = "every pixel of it is ignored, so nothing of the image counts"
            faults.append(Fault("empty label", pair.label, text))
    except UserError as error:
        faults.append(Fault("label value outside the encoding", pair.label, _sentence(error, pair.label)))
    return PairReport(size, digest, pixels, tuple(faults))


def _opened(specs: Sequence[Spec]) -> tuple[list[Spec], list[PairSet], list[Fault]]:
    """The sets that can be opened, and a fault for each that cannot."""
    good: list[Spec] = []
    datasets: list[PairSet] = []
    faults: list[Fault] = []
    # Where VOC val is there to be compared with, what leaks is found by its pixels, with the rest.
    compared = any(spec.name == "voc" and _role(spec) == "val" for spec in specs)
    for spec in specs:
        try:
            datasets.append(_lenient(spec, {"leak": "allow"} if compared and spec.name in ("voc", "sbd") else {}))
            good.append(spec)
        except UserError as error:
            if len(specs) == 1:
                raise
            faults.append(Fault("set that cannot be opened", Path(str(spec.root)), _sentence(error, None)))
    if not datasets:
        raise UserError(f"None of the {len(specs)} sets can be opened; the first: {faults[0].text}.")
    mat = next((p.label for dataset in datasets for p in dataset.pairs[:1] if p.label.suffix == ".mat"), None)
    if mat is not None:
        need_scipy(mat)
    return good, datasets, faults


def _lenient(spec: Spec, usual: dict[str, str]) -> PairSet:
    """The set with its faults, which `open_data` would raise for; a folder without class list with all values.

    usual: options that the spec may override.
    """
    options = usual | {key: value for key, value in spec.options.items() if key not in PROTOCOL_OPTIONS}
    if not _classes_known(spec):
        options["classes"] = str(IGNORE_INDEX)
    if spec.name not in DATASETS:
        raise unknown_name("data set", spec.name, DATASETS)
    dataset = DATASETS[spec.name](spec.root, options)
    if not isinstance(dataset, PairSet):
        raise UserError(f"The data set {spec.name} is not made of files, so there is nothing to check.")
    return dataset


def _classes_known(spec: Spec) -> bool:
    return (
        spec.name != "folder"
        or "classes" in spec.options
        or spec.root is None
        or (Path(spec.root).expanduser() / "classes.txt").is_file()
    )


def _duplicates(
    specs: Sequence[Spec], datasets: Sequence[PairSet], reports: Sequence[Sequence[PairReport]]
) -> Iterable[Fault]:
    """The same picture in splits that should share none, such as train and val; train and train_aug may."""
    first: dict[bytes, dict[str, Path]] = {}
    for spec, dataset, found_here in zip(specs, datasets, reports, strict=True):
        role = _role(spec)
        for pair, found in zip(dataset.pairs, found_here, strict=True):
            if found.digest is None:
                continue
            places = first.setdefault(found.digest, {})
            for other, path in places.items():
                if other != role:
                    text = "both list it" if path == pair.image else f"it is the picture '{path}'"
                    yield Fault(f"picture of both {other} and {role}", pair.image, text)
            places.setdefault(role, pair.image)


def _role(spec: Spec) -> str:
    """What a split is for; splits of one role may share pictures, as train and train_aug do."""
    usual = {"sbd": "train", "folder": str(spec.root), "list": str(spec.root)}.get(spec.name, "val")
    split = spec.options.get("split", spec.options.get("file", usual))
    return "train" if split.startswith("train") else split


def _colour_fault(path: Path, classes: ClassList) -> Fault | None:
    """What to do with a label that holds colours; None where it cannot be decoded or holds indices."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("RGB", "RGBA", "LA", "CMYK", "YCbCr"):
                return None
            rgb = np.array(file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    found = np.unique(rgb.reshape(-1, 3), axis=0)
    if bool((found == found[:, :1]).all()):
        text = "it has three equal channels; save one: Image.open(f).getchannel(0).save(f)"
        return Fault("colour mask instead of an index mask", path, text)
    official = {colour: index for index, colour in enumerate(classes.colours)}
    known = sum(tuple(colour) in official for colour in found.tolist())
    if known:
        text = (
            f"{known} of its {len(found)} colours are those of the classes: convert the folder with robseg data index"
        )
    else:
        text = f"none of its {len(found)} colours is known; list 'name,r,g,b' a class and use robseg data index"
    return Fault("colour mask instead of an index mask", path, text)


def _palette_fault(path: Path, values: Tensor, dataset: PairSet) -> Fault | None:
    """A palette that has the colours of the classes at other indices: the values are then no class numbers."""
    if path.suffix.lower() != ".png":
        return None
    with Image.open(path) as file:
        if file.mode != "P":
            return None
        palette = np.array(file.getpalette() or []).reshape(-1, 3).tolist()
    official = {colour: index for index, colour in enumerate(dataset.classes.colours)}
    used = [value for value in torch.bincount(values.flatten()).nonzero().flatten().tolist() if value < len(palette)]
    labels = {value: dataset.table.get(value, -1) for value in used}
    means = {value: official.get(tuple(palette[value]), -2) for value in used if labels[value] != IGNORE_INDEX}
    wrong = [value for value, meant in means.items() if meant != labels[value]]
    if not wrong or -2 in means.values():
        return None
    name = dataset.classes.names[means[wrong[0]]]
    text = f"its index {wrong[0]} is drawn in the colour of '{name}', so indices are not class numbers: convert the "
    return Fault("palette in another order than the classes", path, f"{text}folder with robseg data index")


def _sentence(error: UserError, path: Path | None) -> str:
    """The message as the rest of a line that names the path already."""
    text = str(error).rstrip(".").replace(f" '{path}'", "")
    return text[0].lower() + text[1:]
