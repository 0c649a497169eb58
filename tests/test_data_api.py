"""Data sets and samples given from Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robseg.data import (
    ClassList,
    Dataset,
    Sample,
    as_dataset,
    check_sample,
    distinct_colours,
    open_data,
    sample_size,
    take,
)
from robseg.errors import UserError


def sample(name: str = "a", height: int = 4, width: int = 5) -> Sample:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=generator)
    return Sample(image, torch.randint(0, 3, (height, width), generator=generator), name)


class Lazy:
    """A sequence as PyTorch's data sets are: length and items, nothing else."""

    def __init__(self, names: tuple[str, ...], **more: Any) -> None:
        self.names, self.asked = names, 0
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        self.asked += 1
        image, label, _ = sample()
        return image.double(), label.to(torch.uint8), self.names[index]


def test_as_dataset_takes_sets_texts_lists_and_lazy_sequences() -> None:
    shapes = open_data("shapes?count=2&size=32")
    assert as_dataset(shapes) is shapes
    assert as_dataset("shapes?count=2&size=32", num_classes=6).ids == shapes.ids
    data = as_dataset([sample("a"), tuple(sample("b", 7))], num_classes=3)
    assert isinstance(data, Dataset)
    assert data.ids == ("a", "b")
    assert torch.equal(data[1].image, sample("b", 7).image)
    assert [sample_size(data, index) for index in range(2)] == [(4, 5), (7, 5)]
    assert as_dataset([sample()], class_names=["x", "y", "z"]).classes.names == ("x", "y", "z")
    data = as_dataset(Lazy(("p", "q")), 3)
    assert data.ids == ("p", "q")
    assert (data[0].image.dtype, data[0].label.dtype) == (torch.float32, torch.int64)
    lazy = Lazy(("p", "q"), ids=["p", "q"])
    assert as_dataset(lazy, 3).ids == ("p", "q")
    assert lazy.asked == 0


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        ([sample()], {}, "give num_classes or class_names"),
        ([sample()], {"num_classes": 256}, "256 classes"),
        ([sample()], {"num_classes": 2, "class_names": ["a"]}, "give one of them"),
        ([sample()], {"class_names": ["a", "b", "a"]}, "two classes of one name"),
        ([], {"num_classes": 3}, "empty"),
        ([sample("a"), sample("b"), sample("a")], {"num_classes": 3}, "samples 0 and 2 both have the id 'a'"),
        ([sample("")], {"num_classes": 3}, "id of sample 0 is ''"),
        ([sample()._replace(id=7)], {"num_classes": 3}, "must be a string"),  # type: ignore[arg-type]
        ([sample()[:2]], {"num_classes": 3}, r"Sample 0 is a tuple of 2; .*\(image, label, id\)"),
        (torch.zeros(2, 3, 4, 4), {"num_classes": 3}, "Sample 0 is a Tensor"),
        ((item for item in [sample()]), {"num_classes": 3}, "generator cannot be used"),
        ({"a": sample()}, {"num_classes": 3}, "dict cannot be used"),
        ("shapes?count=2", {"num_classes": 21}, "has 6 classes, not 21"),
        (Lazy(("p", "q"), ids=["p"]), {"num_classes": 3}, "2 samples but 1 ids"),
    ],
)
def test_as_dataset_refuses(data: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_dataset(data, **arguments)


GOOD = sample()
BAD_SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"image": (GOOD.image * 255).byte()}, "uint8.*divide by 255"),
    ({"image": GOOD.image * 255}, r"values from .* to 2\d\d.*divide by 255"),
    ({"image": GOOD.image * 1.01 + 0.01}, "clamp"),
    ({"image": GOOD.image - 0.5}, "values from -0.*normalisation"),
    ({"image": GOOD.image.clone().fill_(float("nan"))}, "NaN"),
    ({"image": GOOD.image / 0}, "infinite"),
    ({"image": GOOD.image.permute(1, 2, 0)}, r"\(4, 5, 3\).*permute\(2, 0, 1\)"),
    ({"image": GOOD.image[:1]}, r"\(1, 4, 5\); it must be \(3, H, W\)"),
    ({"image": GOOD.image[None]}, r"\(1, 3, 4, 5\)"),
    ({"image": GOOD.image[:, :0]}, r"\(3, 0, 5\)"),
    ({"image": GOOD.image.numpy()}, "ndarray; it must be a torch.Tensor"),
    ({"label": GOOD.label.numpy()}, "ndarray; it must be a torch.Tensor"),
    ({"label": GOOD.label[:3]}, r"\(3, 5\); it must be \(4, 5\)"),
    ({"label": GOOD.label[None]}, r"\(1, 4, 5\); it must be \(4, 5\)"),
    ({"label": GOOD.label.float()}, "float32; it must be int64"),
    ({"label": GOOD.label.index_fill(1, torch.tensor([2]), 3)}, "holds 3 at row 0, column 2.*0 to 2, or 255"),
    ({"label": GOOD.label.index_fill(0, torch.tensor([1]), -1)}, "holds -1 at row 1, column 0"),
]


@pytest.mark.parametrize(("change", "words"), BAD_SAMPLES)
def test_bad_samples_are_refused_with_their_id(change: dict[str, Any], words: str) -> None:
    bad = GOOD._replace(id="frame 7", **change)
    with pytest.raises(UserError, match=f"sample 'frame 7' .*{words}"):
        check_sample(bad, 3)
    data = as_dataset([bad], 3)
    with pytest.raises(UserError, match=f"sample 'frame 7' .*{words}"):
        data[0]


def test_ids_that_change_are_refused() -> None:
    data = as_dataset(Lazy(("p", "q"), ids=["p", "r"]), 3)
    assert data[0].id == "p"
    with pytest.raises(UserError, match="Sample 1 has the id 'q', but ids has 'r'"):
        data[1]


def test_good_samples_pass() -> None:
    check_sample(GOOD, 3)
    check_sample(GOOD._replace(image=(GOOD.image > 0.5).float(), label=torch.full_like(GOOD.label, 255)), 3)
    with pytest.raises(UserError, match="int64"):
        check_sample(GOOD._replace(label=GOOD.label.int()), 3)


def test_take() -> None:
    shapes = open_data("shapes?count=5&size=32")
    assert take(shapes, None) is shapes
    assert take(shapes, 5) is shapes
    first = take(shapes, 2)
    assert isinstance(first, Dataset)
    assert first.ids == shapes.ids[:2]
    assert len(first) == 2
    assert torch.equal(first[1].image, shapes[1].image)
    assert first[-1].id == shapes.ids[1], "the last of the two, not of the five"
    assert sample_size(first, 1) == (32, 32)
    assert sample_size(take(as_dataset([sample("a", 7), sample("b")], 3), 1), 0) == (7, 5)
    with pytest.raises(IndexError):
        first[2]
    with pytest.raises(UserError, match="limit of images is 0"):
        take(shapes, 0)


def test_a_set_of_too_many_classes_is_refused() -> None:
    class Wide:
        name, void, ids = "wide", "", ("a",)
        classes = ClassList(tuple(map(str, range(300))), distinct_colours(300))

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return sample()

    with pytest.raises(UserError, match="'wide' has 300 classes, but 1 to 255"):
        as_dataset(Wide())
