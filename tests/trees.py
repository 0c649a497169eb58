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
            save(root / split / f"{stem}.png", picture(seed))
            save(root / f"{split}annot" / f"{stem}.png", indices(seed, 12))
    return root
