"""What a transformers image processor does to images, read from its file: the class itself may need torchvision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robseg.errors import UserError

FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class InputConvention:
    """How a network wants its images.

    mean, std: RGB, for images in [0, 1], the range taken in; None where [0, 1] goes in as it is.
    bgr: whether blue comes first. size: (height, width), the shorter side, or None where there is none.
    """

    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    bgr: bool
    size: int | tuple[int, int] | None


def read_processor(folder: Path) -> InputConvention | None:
    """The convention of the image processor in a folder, or None without one; UserError for one that is unreadable."""
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"'{path}' is not valid JSON: {error}.") from error
        if isinstance(content, dict):
            inner = content.get("image_processor", content)
            # A processor's file without an image processor's part tells nothing.
            if isinstance(inner, dict) and (inner is not content or name == FILES[0]):
                return _convention(inner, path)
    return None


def _convention(entries: dict[str, Any], path: Path) -> InputConvention:
    # Files of the first versions say nothing of rescaling, which was always done. MobileViT never normalises, though
    # newer files of it hold a mean.
    factor = entries.get("rescale_factor", 1 / 255) if entries.get("do_rescale", True) else 1.0
    normalise = entries.get("do_normalize")
    if normalise is None:
        kind = str(entries.get("image_processor_type", entries.get("feature_extractor_type", "")))
        normalise = entries.get("image_mean") is not None and not kind.startswith("MobileViT")
    mean, std = (entries.get("image_mean"), entries.get("image_std")) if normalise else ([0.0] * 3, [1.0] * 3)
    numbers = [factor, *(mean if isinstance(mean, list) else [None]), *(std if isinstance(std, list) else [None])]
    if len(numbers) != 7 or not all(isinstance(n, (int, float)) for n in numbers) or factor <= 0:
        raise UserError(f"'{path}' must give image_mean and image_std as 3 numbers each, and rescale_factor above 0.")
    # The network gets (255 x factor - mean) / std of an image x in [0, 1].
    top = 255 * float(factor)
    scale = 1.0 if abs(top - 1) < 1e-6 else top
    means, stds = [float(m) / scale for m in mean or ()], [float(s) / scale for s in std or ()]
    if not all(s > 0 for s in stds):
        raise UserError(f"'{path}' gives an image_std that is not above 0.")
    plain = means == [0.0] * 3 and stds == [1.0] * 3
    return InputConvention(
        None if plain else (means[0], means[1], means[2]),
        None if plain else (stds[0], stds[1], stds[2]),
        bool(entries.get("do_flip_channel_order", False)),
        _size(entries.get("size")) if entries.get("do_resize", True) else None,
    )


def _size(size: Any) -> int | tuple[int, int] | None:
    if isinstance(size, dict):
        if {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge")
    return size if isinstance(size, int) else None
