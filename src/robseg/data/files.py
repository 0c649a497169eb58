"""Decoding of image and label files with Pillow.

Everything is decoded to the end, so that a truncated file is found here and not by a model. EXIF orientation is not
applied: labels are drawn over the pixels as they are stored.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from robseg.data.mat import read_mat_label
from robseg.errors import UserError

_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_LABEL_MODES = ("1", "L", "P", "I;16", "I;16B", "I")


def read_pixels(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values of an image file: (H, W, 3) uint8 RGB, or (H, W) uint16 of a grey one of 16 bits.

    Grey is repeated in the three channels, palettes and CMYK are converted, alpha is dropped (not blended).
    Raises UserError for a file that is absent, broken or of a mode without a known range (float, 32-bit).
    """
    with _opened(path, "image") as file:
        file.load()
        if file.mode in ("I;16", "I;16B", "I"):
            grey = np.asarray(file).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise UserError(
                    f"The image '{path}' holds 32-bit values ({grey.min()} to {grey.max()}), whose white is not known; "
                    "save it with 8 or 16 bits a channel."
                )
            return grey.astype(np.uint16)
        if file.mode == "F":
            raise UserError(f"The image '{path}' holds floating-point values; save it with 8 bits a channel.")
        # Straight from a palette with transparent entries to RGB Pillow would warn; the colours are the same.
        rgb = file.convert("RGBA").convert("RGB") if "transparency" in file.info else file.convert("RGB")
        return np.array(rgb)


def read_image(path: Path) -> Tensor:
    """The image as (3, H, W) float32 RGB in [0, 1]: 8-bit values / 255, 16-bit grey / 65535.

    Raises UserError as `read_pixels` does.
    """
    pixels = read_pixels(path)
    if pixels.ndim == 2:
        return torch.from_numpy(pixels.astype(np.int64)).float().div(65535).expand(3, -1, -1).contiguous()
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).contiguous()


def read_label(path: Path) -> Tensor:
    """The values of an index PNG as they stand in the file, (H, W) int64; of a palette PNG the indices.

    A file of suffix .mat is read as `robseg.data.mat` says.
    Raises UserError for a file that is absent or broken, and for one that holds colours instead of indices.
    """
    if path.suffix.lower() == ".mat":
        return read_mat_label(path)
    with _opened(path, "label") as file:
        if file.mode not in _LABEL_MODES:
            raise UserError(
                f"The label '{path}' holds colours (mode {file.mode}, {len(file.getbands())} channels), but an index "
                "PNG is expected, one channel whose values are class numbers: where all channels are equal, save one "
                "of them (Image.open(f).getchannel(0).save(f)), else replace each colour by the number of its class."
            )
        divisor = _stretching(file)
        file.load()
        values = np.asarray(file).astype(np.int64)
    return torch.from_numpy(values // divisor)


def read_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image from its header alone. Raises UserError for a file that is absent or no image."""
    with _opened(path, "image") as file:
        return file.height, file.width


def _stretching(file: ImageFile.ImageFile) -> int:
    """By what Pillow multiplies a PNG of 2 or 4 bits of grey to fill 0..255; to be asked before the file is loaded."""
    rawmode = file.tile[0][3] if file.format == "PNG" and file.tile else None
    return {"L;2": 85, "L;4": 17}.get(str(rawmode), 1)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[ImageFile.ImageFile]:
    """The file, its header read; whatever Pillow raises in the body becomes a UserError that names the file."""
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"The {kind} '{path}' does not exist.") from None
    except PermissionError:
        raise UserError(f"The {kind} '{path}' may not be read; its permissions forbid it.") from None
    except Image.DecompressionBombError as fault:
        # Pillow says so before it gives the file, and its sentence has the size and the limit.
        found = re.findall(r"\d+", str(fault))
        size = f"{found[0]} pixels, and {found[1]} are the most that are read" if len(found) == 2 else str(fault)
        raise UserError(f"The {kind} '{path}' is too large ({size}); scale it down, or cut it into several.") from fault
    except _FAULTS as fault:
        reason = str(fault).rstrip(".") or type(fault).__name__
        if isinstance(fault, UnidentifiedImageError):
            reason = "it is empty" if path.stat().st_size == 0 else "it is of no known image format"
        raise UserError(
            f"The {kind} '{path}' cannot be decoded ({reason}); the file is broken or incomplete, so fetch or save "
            "it again."
        ) from fault
