"""The embedded data set: what its images are functions of, what they hold, and how it is opened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robseg.data import open_data
from robseg.data.base import IGNORE_INDEX, Dataset
from robseg.data.samples import check_dataset, check_sample
from robseg.data.sets.shapes import Shapes, open_shapes
from robseg.errors import UserError


@pytest.mark.parametrize("size", [32, 33, 64, 200, 512])
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_valid_quantised_and_of_the_size_asked_for(size: int, split: str) -> None:
    data = Shapes(count=3, seed=5, size=size, split=split)
    assert isinstance(data, Dataset)
    check_dataset(data)
    for index, sample in enumerate(data):
        check_sample(sample, len(data.classes))
        assert sample.id == data.ids[index]
        assert tuple(sample.label.shape) == data.image_size(index) == (size, size)
        assert sample.image.dtype == torch.float32
        levels = (sample.image * 255).round()
        assert torch.equal(levels / 255, sample.image)


def test_a_sample_is_a_function_of_seed_split_index_and_size_alone() -> None:
    few, many = Shapes(count=3, seed=1), Shapes(count=9, seed=1)
    many[7], many[0]
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the point is that the global generators do not matter
    for a, b in [(few[2], many[2]), (few[-1], many[2])]:
        assert a.id == b.id
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)


def test_splits_seeds_and_indices_share_no_image() -> None:
    sets = [Shapes(count=40, seed=seed, size=32, split=split) for seed in (0, 1, 2**40) for split in ("train", "val")]
    samples = [sample for data in sets for sample in data]
    assert len({sample.image.numpy().tobytes() for sample in samples}) == len(samples) == 240
    assert len({sample.id for sample in samples}) == 240


def test_reading_past_the_end_raises_index_error() -> None:
    data = Shapes(count=2, size=32)
    for read in (data.__getitem__, data.image_size):
        with pytest.raises(IndexError):
            read(2)


def test_every_class_occurs_in_very_different_sizes_and_void_is_a_thin_border() -> None:
    data = Shapes(count=64, seed=11, split="train")
    pixels = torch.stack([torch.bincount(sample.label.flatten(), minlength=256) for sample in data])
    share = pixels.sum(0) / pixels.sum()
    assert 0.4 < share[0] < 0.75
    assert (share[1:6] > 0.02).all()
    assert 0.02 < share[IGNORE_INDEX] < 0.2
    for kind in range(1, 6):
        seen = pixels[:, kind][pixels[:, kind] > 0]
        assert seen.max() > 15 * seen.min()


def test_the_fragile_pattern_tells_the_class_and_is_a_few_grey_levels_high() -> None:
    """Correlation with the finest patterns tells discs, boxes and triangles apart, whatever their colour."""
    y, x = np.mgrid[:64, :64]
    patterns = {1: 1 - 2 * ((x + y) % 2), 2: 1 - 2 * (x % 2), 3: 1 - 2 * (y % 2)}
    right = []
    for sample in Shapes(count=16, seed=2):
        grey = sample.image.mean(0).double().numpy() * 255
        fine = grey - _blur(grey)
        for kind in patterns:
            inner = sample.label.numpy() == kind
            if inner.sum() >= 60:
                responses = {other: abs((fine * pattern)[inner].mean()) for other, pattern in patterns.items()}
                assert responses[kind] < 6
                right.append(max(responses, key=responses.__getitem__) == kind)
    assert len(right) > 15
    assert np.mean(right) > 0.85


def _blur(values: np.ndarray) -> np.ndarray:
    """Mean over 2 x 2 shifts in both directions, in which any pattern of pitch one vanishes."""
    for axis in (0, 1):
        values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / 4
    return values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Shapes()),
        ({"count": "5", "seed": "3"}, Shapes(count=5, seed=3)),
        ({"split": "train", "size": "96"}, Shapes(size=96, split="train")),
    ],
)
def test_options(options: dict[str, str], expected: Shapes) -> None:
    assert open_shapes(None, options) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shapes?colour=red", ["colour", "count, seed, size, split"]),
        ("shapes?cout=3", ["cout", "count"]),
        ("shapes?count=many", ["count", "'many'", "whole number"]),
        ("shapes?count=0", ["count", "0"]),
        ("shapes?count=-1", ["count", "-1"]),
        ("shapes?count=1000000000", ["count", "100000"]),
        ("shapes?seed=-1", ["seed", "-1"]),
        ("shapes?seed=1.5", ["seed", "1.5"]),
        ("shapes?size=31", ["size", "31", "32 to 512"]),
        ("shapes?size=513", ["size", "513"]),
        ("shapes?split=test", ["test", "train", "val"]),
        ("shapes:data/shapes", ["data/shapes", "folder"]),
    ],
)
def test_mistakes_are_explained(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        open_data(text)
    assert all(word in str(error.value) for word in words), error.value
