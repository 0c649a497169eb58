"""Training transforms, the loader, and counted class pixels."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from filling import image, labels
from robseg.data import Dataset, Sample, as_dataset, check_sample, open_data
from robseg.data.augment import AUGMENTATIONS, Augmentation, augment
from robseg.data.counts import class_pixels
from robseg.data.loader import Batch, epoch_order, training_batches
from robseg.errors import UserError
from trees import ade20k, indices, save, tree, voc


def sample(height: int, width: int, name: str = "x", seed: int = 0) -> Sample:
    picture = image(seed, 1, height, width)[0].mul(255).round().div(255)
    return Sample(picture, labels(seed, 1, height, width, 5)[0], name)


def marked(height: int, width: int) -> Sample:
    """Each pixel's place in its colour: red the column, green the row; the label is the column's lowest 2 bits + 1."""
    columns = torch.arange(width).expand(height, -1)
    rows = torch.arange(height)[:, None].expand(-1, width)
    return Sample(torch.stack([columns, rows, torch.full_like(rows, 9)]) / 255, columns % 4 + 1, "x")


def places(found: Sample) -> tuple[Tensor, Tensor]:
    pixels = found.image.mul(255).round().long()
    return pixels[0], pixels[1]


# Transforms


augmentations = st.builds(
    Augmentation,
    crop=st.integers(1, 40),
    flip=st.booleans(),
    scale=st.sampled_from([None, (0.5, 2.0), (0.25, 1.0), (1.0, 1.0)]),
    rotation=st.sampled_from([0.0, 10.0, 90.0]),
    pad=st.sampled_from(["end", "centre"]),
    fill=st.sampled_from([(0, 0, 0), (124, 116, 104)]),
    pad_label=st.sampled_from(["void", "first class"]),
    blur=st.sampled_from(["none", "radius", "5x5"]),
    jitter=st.sampled_from([0.0, 0.4]),
)


@settings(max_examples=120, deadline=None)
@given(augmentations, st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_any_transform_gives_a_good_crop(augmentation: Augmentation, height: int, width: int, epoch: int) -> None:
    before = sample(height, width)
    found = augment(before, augmentation, 7, epoch)
    assert tuple(found.label.shape) == (augmentation.crop, augmentation.crop)
    check_sample(found, 5)
    assert found.id == before.id
    again = augment(before, augmentation, 7, epoch)
    assert torch.equal(found.image, again.image)
    assert torch.equal(found.label, again.label)
    if augmentation.pad_label == "first class":
        assert not (found.label == 255).any()


def test_seed_epoch_and_id_decide_and_nothing_else() -> None:
    recipe = Augmentation(24, scale=(0.5, 2.0), rotation=10, blur="radius", jitter=0.3)
    draws = [(0, 0, "x"), (1, 0, "x"), (0, 1, "x"), (0, 0, "y")]
    found = [augment(sample(40, 50, name), recipe, seed, epoch).image for seed, epoch, name in draws]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(found, 2))
    torch.manual_seed(3)
    torch.rand(5)
    assert torch.equal(augment(sample(40, 50), recipe, 0, 0).image, found[0])


def test_a_plain_crop_is_a_window_of_the_image_or_its_mirror() -> None:
    starts, mirrored = set(), 0
    for epoch in range(60):
        found = augment(marked(20, 30), Augmentation(16), 0, epoch)
        columns, rows = places(found)
        left, top = int(columns.min()), int(rows.min())
        flipped = bool(columns[0, 0] > columns[0, 1])
        want = torch.arange(left, left + 16)
        assert torch.equal(columns[0], want.flip(0) if flipped else want)
        assert torch.equal(rows[:, 0], torch.arange(top, top + 16))
        assert torch.equal(found.label, columns % 4 + 1)
        mirrored += flipped
        starts.add((left, top))
    assert {left for left, _ in starts} == set(range(15))
    assert {top for _, top in starts} == set(range(5))
    assert 18 <= mirrored <= 42


@pytest.mark.parametrize(("pad", "start"), [("end", (0, 0)), ("centre", (4, 3))])
@pytest.mark.parametrize(("pad_label", "value"), [("void", 255), ("first class", 0)])
def test_padding_is_where_and_what_is_asked(pad: str, start: tuple[int, int], pad_label: str, value: int) -> None:
    recipe = Augmentation(20, flip=False, pad=pad, fill=(124, 116, 104), pad_label=pad_label)  # type: ignore[arg-type]
    before = sample(12, 13)
    found = augment(before, recipe, 0, 0)
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[start[0] : start[0] + 12, start[1] : start[1] + 13] = True
    assert torch.equal(found.label[inside], before.label.flatten())
    assert torch.equal(found.image[:, inside], before.image.flatten(1))
    assert (found.label[~inside] == value).all()
    assert torch.equal(
        found.image[:, ~inside], torch.tensor([[124], [116], [104]]).expand(-1, int((~inside).sum())) / 255
    )


def test_short_side_is_between_half_and_twice_the_base() -> None:
    """The counted part of a canvas that is larger than any scaled image shows the size."""
    recipe = Augmentation(300, flip=False, scale=(0.5, 2.0), base=40)
    shorts = []
    for epoch in range(80):
        counted = augment(sample(40, 60), recipe, 0, epoch).label != 255
        height, width = int(counted.any(1).sum()), int(counted.any(0).sum())
        assert width == int(60 * height / 40)
        shorts.append(height)
    assert min(shorts) in range(20, 26)
    assert max(shorts) in range(74, 81)


def test_scale_without_base_is_of_the_own_size() -> None:
    recipe = Augmentation(300, flip=False, scale=(0.25, 1.0))
    widths = [int((augment(sample(40, 60), recipe, 0, epoch).label != 255).any(0).sum()) for epoch in range(60)]
    assert min(widths) in range(15, 21)
    assert max(widths) in range(55, 61)


def test_scaling_only_the_crop_is_scaling_all_and_cropping() -> None:
    """Image and label must be cut at the same place: labels follow a left-to-right gradient of the image."""
    ramp = torch.linspace(0, 1, 200).expand(150, -1)
    before = Sample(torch.stack([ramp] * 3), (ramp * 199).round().long() // 10, "x")
    for epoch in range(20):
        found = augment(before, Augmentation(50, scale=(0.5, 2.0)), 0, epoch)
        assert ((found.image[0] * 199 / 10) - (found.label + 0.5)).abs().max() < 0.8


def test_rotation_turns_half_of_the_images_by_up_to_its_angle() -> None:
    turned, angles = 0, []
    for epoch in range(60):
        found = augment(marked(101, 101), Augmentation(101, flip=False, rotation=10), 0, epoch)
        if torch.equal(found.label, marked(101, 101).label):
            continue
        turned += 1
        assert (found.label == 255).any()
        columns, rows = places(found)
        middle = slice(40, 61)
        angles.append(
            np.degrees(np.arctan2(float(rows[50, 60] - rows[50, 40]), float(columns[50, 60] - columns[50, 40])))
        )
        assert int(columns[50, 50]) in (49, 50, 51)
        assert (found.label[middle, middle] != 255).all()
    assert 18 <= turned <= 42
    assert max(map(abs, angles)) <= 13
    assert max(angles) > 5
    assert min(angles) < -5


@pytest.mark.parametrize("blur", ["radius", "5x5"])
def test_blur_keeps_flat_images_and_softens_half_of_the_others(blur: str) -> None:
    recipe = Augmentation(32, flip=False, blur=blur)  # type: ignore[arg-type]
    flat = Sample(torch.full((3, 32, 32), 51 / 255), torch.zeros(32, 32, dtype=torch.long), "x")
    noise = Sample(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), flat.label, "x")
    changed = 0
    for epoch in range(60):
        assert torch.equal(augment(flat, recipe, 0, epoch).image, flat.image)
        found = augment(noise, recipe, 0, epoch).image
        assert found.std() <= noise.image.std() + 1e-3
        changed += float(found.std()) < float(noise.image.std()) - 0.01
    assert 12 <= changed <= 42


def test_the_5x5_kernel_is_that_of_opencv() -> None:
    point = torch.zeros(3, 9, 9)
    point[:, 4, 4] = 1
    recipe = Augmentation(9, flip=False, blur="5x5")
    found = [augment(Sample(point, torch.zeros(9, 9).long(), "x"), recipe, 0, epoch).image[0, 4] for epoch in range(20)]
    blurred = next(row for row in found if row[3] > 0)
    weights = np.exp(-(np.arange(-4, 5.0) ** 2) / (2 * 1.1**2)) * (np.abs(np.arange(-4, 5)) <= 2)
    weights /= weights.sum()
    assert np.abs(blurred.numpy() - weights * weights[4]).max() < 1 / 255


def test_jitter_changes_colours_and_not_labels() -> None:
    before = sample(32, 32)
    found = [augment(before, Augmentation(32, flip=False, jitter=0.4), 0, epoch) for epoch in range(20)]
    brightness = [float(one.image.mean() / before.image.mean()) for one in found]
    assert all(torch.equal(one.label, before.label) for one in found)
    assert max(brightness) > 1.15
    assert min(brightness) < 0.85


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 0}, "crop of the augmentation is 0"),
        ({"scale": (2.0, 0.5)}, "two factors"),
        ({"scale": (0.0, 1.0)}, "above 0"),
        ({"base": 512}, "needs scale"),
        ({"rotation": -1.0}, "0 to 180"),
        ({"jitter": 1.0}, "jitter"),
        ({"blur": "gauss"}, "Unknown blur of the augmentation 'gauss'"),
        ({"pad_label": "zero"}, "Unknown pad_label"),
    ],
)
def test_bad_augmentations(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(Augmentation(16), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_published_transforms_run(name: str) -> None:
    found = augment(sample(60, 90), AUGMENTATIONS[name], 0, 0)
    assert found.label.shape[0] == AUGMENTATIONS[name].crop
    check_sample(found, 5)


# The loader


def some(batches: object, number: int) -> list[Batch]:
    return list(itertools.islice(batches, number))  # type: ignore[call-overload]


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.keys == b.keys
        for a, b in zip(one, other, strict=True)
    )


RECIPE = Augmentation(16, scale=(0.5, 2.0), blur="radius")
PLAIN = as_dataset([sample(20 + index, 24, f"i{index}", index) for index in range(7)], 5)


def test_batches_are_the_augmented_samples_in_the_order_of_the_epochs() -> None:
    order = [(epoch, index) for epoch in range(3) for index in epoch_order(7, 5, epoch)]
    assert sorted(epoch_order(7, 5, 0)) == list(range(7))
    assert epoch_order(7, 5, 0) != epoch_order(7, 5, 1)
    batches = some(training_batches(PLAIN, RECIPE, 3, seed=5), 6)
    flat = [place for number in range(6) for place in order[3 * number : 3 * number + 3]]
    images = torch.cat([batch.images for batch in batches])
    targets = torch.cat([batch.labels for batch in batches])
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert [key for batch in batches for key in batch.keys] == [f"i{index}/epoch {epoch}" for epoch, index in flat]
    for position, (epoch, index) in enumerate(flat):
        want = augment(PLAIN[index], RECIPE, 5, epoch)
        assert torch.equal(images[position], want.image)
        assert torch.equal(targets[position], want.label)


@pytest.mark.parametrize("options", [{"workers": 2}, {"cache_bytes": 0}, {"workers": 1, "cache_bytes": 0}])
def test_workers_and_cache_change_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    before = torch.get_rng_state()
    data = open_data(f"voc:{voc(tmp_path)}?split=trainval")
    want = some(training_batches(data, RECIPE, 2, seed=1), 8)
    assert equal(some(training_batches(data, RECIPE, 2, seed=1, **options), 8), want)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_goes_on_at_any_batch_and_is_shared_by_processes() -> None:
    whole = some(training_batches(PLAIN, RECIPE, 4, seed=2), 9)
    assert equal(some(training_batches(PLAIN, RECIPE, 4, seed=2, first=5), 4), whole[5:])
    parts = [some(training_batches(PLAIN, RECIPE, 4, seed=2, rank=rank, processes=2), 9) for rank in range(2)]
    for number, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(parts[rank][number].images, batch.images[rank::2])
            assert parts[rank][number].keys == batch.keys[rank::2]
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        next(training_batches(PLAIN, RECIPE, 4, processes=3))


def test_files_are_decoded_once(tmp_path: Path) -> None:
    data = open_data(f"voc:{voc(tmp_path)}")
    batches = training_batches(data, RECIPE, 3)
    next(batches)
    for pair in data.pairs:  # type: ignore[attr-defined]
        pair.image.unlink()
    assert len(some(batches, 4)) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_a_user_error_of_one_sentence(tmp_path: Path, workers: int) -> None:
    data = open_data(f"folder:{tree(tmp_path)}")
    save(tmp_path / "labels/a.png", np.full((6, 8), 9, np.uint8))
    with pytest.raises(UserError, match=r"^The label '.*a\.png' holds 9 ") as caught:
        some(training_batches(data, RECIPE, 3, workers=workers), 2)
    assert "\n" not in str(caught.value)


# Counted pixels


def brute(data: Dataset) -> list[int]:
    every = torch.cat([data[index].label.flatten() for index in range(len(data))])
    return [int((every == label).sum()) for label in range(len(data.classes))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("options", ["", "&void=background", "&protocol=pirat&crop=6", "&protocol=whole"])
def test_pixels_are_counted(tmp_path: Path, home: Path, options: str) -> None:
    data = open_data(f"voc:{voc(tmp_path)}?split=train{options}")
    asked: list[int] = []
    assert class_pixels(data, lambda: asked.append(1)).tolist() == brute(data)
    assert len(asked) == 2
    assert class_pixels(data, lambda: asked.append(1)).tolist() == brute(data)
    assert len(asked) == 2, "kept from the first time"


def test_counts_are_those_of_the_encoding_and_of_the_files(tmp_path: Path, home: Path) -> None:
    root = ade20k(tmp_path)
    for number in (150, 151, 150):
        data = open_data(f"ade20k:{root}?classes={number}")
        assert class_pixels(data).tolist() == brute(data)
    save(root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", indices(77, 9, 9, 12))
    changed = open_data(f"ade20k:{root}")
    assert class_pixels(changed).tolist() == brute(changed)
    assert len(list((home / "class-pixels").iterdir())) == 3


def test_damaged_or_unwritable_caches_cost_only_time(tmp_path: Path, home: Path) -> None:
    data = open_data(f"voc:{voc(tmp_path)}")
    for content in ("{", "[]", json.dumps({"pixels": [1, 2]}), json.dumps({"pixels": None})):
        class_pixels(data)
        (file,) = (home / "class-pixels").iterdir()
        file.write_text(content)
        assert class_pixels(data).tolist() == brute(data)
    (file,) = (home / "class-pixels").iterdir()
    file.unlink()
    (home / "class-pixels").rmdir()
    (home / "class-pixels").write_text("a file in the way")
    assert class_pixels(data).tolist() == brute(data)


def test_data_without_files_are_counted_and_not_kept(home: Path) -> None:
    assert class_pixels(PLAIN).tolist() == brute(PLAIN)
    assert not home.exists()
