"""Small data sets, written to a folder in the layouts of the real ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save(path: Path, array: Any, mode: str | None = None, **options: Any) -> Path:
    """Write an array as an image file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def picture(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def indices(seed: int, classes: int = 3, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def grey_png(path: Path, bits: int, values: list[list[int]]) -> Path:
    """A greyscale PNG of 1, 2, 4 or 16 bits, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b""
    for row in values:
        packed = "".join(f"{value:0{bits}b}" for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def tree(root: Path, stems: tuple[str, ...] = ("b", "a", "sub/c"), classes: int = 3, images: str = "images") -> Path:
    """ROOT/images/*.jpg, ROOT/labels/*.png and ROOT/classes.txt."""
    for seed, stem in enumerate(stems):
        save(root / images / f"{stem}.jpg", picture(seed))
        save(root / "labels" / f"{stem}.png", indices(seed, classes))
    (root / "classes.txt").write_text("".join(f"kind {index}\n" for index in range(classes)))
    return root


def camvid(root: Path) -> Path:
    for split, stems in (("train", ("0006R0_1", "0016E5_1", "0001TP_1")), ("val", ("0016E5_2", "0016E5_3"))):
        for seed, stem in enumerate(stems):
            save(root / split / f"{stem}.png", picture(hash_of(f"{split} {stem}")))
            save(root / f"{split}annot" / f"{stem}.png", indices(seed, 12))
    return root


VOC_PALETTE = [(0, 0, 0)] * 256
for _index in range(256):
    _bits = [[_index >> (3 * shift + channel) & 1 for shift in range(8)] for channel in range(3)]
    VOC_PALETTE[_index] = tuple(sum(bit << (7 - shift) for shift, bit in enumerate(bits)) for bits in _bits)  # type: ignore[assignment]

VOC_TRAIN, VOC_VAL = ("2007_000032", "2007_000039"), ("2007_000033", "2007_000042", "2007_000061")
AUG_ONLY = ("2008_000015", "2009_000001")


def voc_palette_png(path: Path, values: np.ndarray) -> Path:
    image = Image.fromarray(values, "L").convert("P")
    image.putpalette([channel for colour in VOC_PALETTE for channel in colour])
    image.putdata(values.flatten().tolist())
    return save(path, image)


def with_border(values: np.ndarray) -> np.ndarray:
    """Void at the border, as VOC draws it around objects."""
    values = values.copy()
    values[0] = 255
    return values


def voc(root: Path, aug: bool = True, aug_list: bool = True) -> Path:
    """ROOT/VOCdevkit/VOC2012 with 2 images of train, 3 of val, and 2 that only SegmentationClassAug labels."""
    base = root / "VOCdevkit/VOC2012"
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for seed, stem in enumerate((*VOC_TRAIN, *VOC_VAL, *AUG_ONLY)):
        save(base / f"JPEGImages/{stem}.jpg", picture(seed, 10, 14))
        values = with_border(indices(seed, 21, 10, 14))
        if stem not in AUG_ONLY:
            voc_palette_png(base / f"SegmentationClass/{stem}.png", values)
        if aug:
            voc_palette_png(base / f"SegmentationClassAug/{stem}.png", values)
    for name, stems in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", VOC_TRAIN + VOC_VAL)):
        (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    if aug and aug_list:
        (lists / "train_aug.txt").write_text("".join(f"{stem}\n" for stem in VOC_TRAIN + AUG_ONLY))
    return root


SBD_TRAIN, SBD_VAL = ("2008_000015", "2007_000033", "2007_000039"), ("2008_000023", "2007_000042")


def sbd(root: Path) -> Path:
    """ROOT/benchmark_RELEASE/dataset with 3 images in train and 2 in val, one of each of VOC val."""
    from scipy.io import savemat

    base = root / "benchmark_RELEASE/dataset"
    (base / "cls").mkdir(parents=True)
    for seed, stem in enumerate(SBD_TRAIN + SBD_VAL):
        save(base / f"img/{stem}.jpg", picture(100 + seed, 10, 14))
        boundaries = np.empty((20, 1), object)
        boundaries[:] = [[np.zeros((10, 14), np.uint8)]] * 20
        labels = {
            "Boundaries": boundaries,
            "Segmentation": indices(100 + seed, 21, 10, 14),
            "CategoriesPresent": np.array([[3.0], [7.0]]),
        }
        savemat(base / f"cls/{stem}.mat", {"GTcls": labels}, do_compression=True)
    for name, stems in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (base / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def ade20k(root: Path) -> Path:
    base = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for index in range(1, count + 1):
            stem = f"ADE_{short}_{index:08d}"
            save(base / f"images/{split}/{stem}.jpg", picture(index + 10 * count, 9, 12))
            values = indices(index, 151, 9, 12)
            values[0, 0], values[0, 1] = 0, 150
            save(base / f"annotations/{split}/{stem}.png", values)
    (base / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return root


def cityscapes(root: Path, labels: tuple[str, ...] = ("labelIds",)) -> Path:
    """Two cities of train, one of val; the instance, colour and polygon files lie beside the labels as in the set."""
    for split, city, count in (("train", "aachen", 2), ("train", "zurich", 1), ("val", "lindau", 2)):
        for index in range(count):
            stem = f"{city}_{index:06d}_000019"
            save(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", picture(hash_of(stem), 8, 16))
            folder = root / f"gtFine/{split}/{city}"
            ids = np.arange(128, dtype=np.uint8).reshape(8, 16) % 34
            save(folder / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16) * 1000)
            save(folder / f"{stem}_gtFine_color.png", picture(1, 8, 16))
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
            if "labelIds" in labels:
                save(folder / f"{stem}_gtFine_labelIds.png", ids)
            if "labelTrainIds" in labels:
                save(folder / f"{stem}_gtFine_labelTrainIds.png", np.where(ids < 19, ids, 255).astype(np.uint8))
    return root


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())
