"""How many training images a second the loader gives, beside what it costs to decode them alone.

    python benchmarks/loader.py camvid:CamVid?split=train --crop 128 --workers 2

Prints images a second: decoded only, on one core; loaded in the first epoch, which decodes; and loaded from the cache.
Without data, images of the size of CamVid at half size are written to a temporary folder and used.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robseg.data import Dataset, open_data
from robseg.data.augment import Augmentation
from robseg.data.loader import CACHE_BYTES, training_batches


def made_up(folder: Path, count: int = 400) -> Dataset:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC).save(folder / f"images/{index}.jpg")
        blocks = np.kron(rng.integers(0, 11, (9, 12)), np.ones((20, 20))).astype(np.uint8)
        Image.fromarray(blocks).save(folder / f"labels/{index}.png")
    return open_data(f"folder:{folder}?classes=11")


def decoding(data: Dataset) -> float:
    begun = time.perf_counter()
    number = min(len(data), 200)
    for index in range(number):
        data[index]
    return number / (time.perf_counter() - begun)


def loading(data: Dataset, augmentation: Augmentation, workers: int, cache: int, skip: int, count: int) -> float:
    """Images a second over `count` images after the first `skip`."""
    size = 16
    batches = training_batches(data, augmentation, size, workers=workers, cache_bytes=cache)
    for _ in itertools.islice(batches, max(skip // size, 1)):
        pass
    begun = time.perf_counter()
    for _ in itertools.islice(batches, count // size):
        pass
    return count // size * size / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(arguments.data) if arguments.data else made_up(Path(folder))
        crop = arguments.crop
        recipes = {
            "PIR-AT": Augmentation(crop, scale=(0.5, 2.0), base=crop, blur="radius"),
            "DDC-AT": Augmentation(crop, scale=(0.5, 2.0), rotation=10, pad="centre", blur="5x5"),
            "flip and crop": Augmentation(crop),
        }
        print(f"{data.name}, {len(data)} images, crop {crop}, {arguments.workers} workers; images a second")
        print(f"decoded only, one core: {decoding(data):.0f}")
        for name, recipe in recipes.items():
            first = loading(data, recipe, arguments.workers, 0, 64, 800)
            cached = loading(data, recipe, arguments.workers, CACHE_BYTES, 2 * len(data), 3200)
            print(f"{name}: {first:.0f} decoding, {cached:.0f} from the cache")


if __name__ == "__main__":
    main()
