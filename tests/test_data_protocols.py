"""Evaluation protocols: the published figures, sizes, labels, and their options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filling import image, labels
from robseg.data import Dataset, Sample, check_sample, open_data, sample_size
from robseg.data.protocols import ProtocolSet, ddcat, pirat, resize, to_8bit, whole
from robseg.errors import UserError
from trees import ade20k, cityscapes, tree, voc

FIGURES = json.loads((Path(__file__).parent / "fixtures/training.json").read_text())

sides = st.integers(1, 70)


def sample(height: int, width: int, seed: int = 0) -> Sample:
    picture = image(seed, 1, height, width)[0].mul(255).round().div(255)
    return Sample(picture, labels(seed, 1, height, width, 5)[0], "x")


def test_pirat_gives_the_published_figures() -> None:
    want, seed = FIGURES["pirat_val_transform"], FIGURES["seed"]
    picture = (image(seed + 5, 1, 90, 131)[0] * 255).round() / 255
    found = pirat(64)(Sample(picture, labels(seed + 6, 1, 90, 131, 21)[0], "x"))
    pixels = to_8bit(found.image).long()
    assert pixels.sum((0, 1)).tolist() == want["channel_sums"]
    assert int(pixels[32].sum()) == want["row32_sum"]
    assert torch.bincount(found.label.flatten(), minlength=21).tolist() == want["label_histogram"]


@given(sides, sides, sides, st.integers(0, 3))
def test_sizes_are_foretold_and_samples_stay_good(height: int, width: int, number: int, kind: int) -> None:
    protocol = (pirat(number), ddcat(number), whole(), resize(number, number + 3))[kind]
    before = sample(height, width)
    after = protocol(before)
    assert tuple(after.label.shape) == protocol.size((height, width))
    check_sample(after, 5)
    assert set(after.label.flatten().tolist()) <= set(before.label.flatten().tolist())
    assert after.image.shape[-1] == number if kind == 0 else True
    assert max(after.label.shape) == number if kind == 1 else True
    scaled = after.image * 255
    assert torch.allclose(scaled, scaled.round(), atol=1e-3)


@pytest.mark.parametrize(("height", "width", "offset"), [(64, 93, 14), (64, 95, 16), (93, 64, 14), (64, 64, 0)])
def test_the_centre_crop_rounds_halves_to_even(height: int, width: int, offset: int) -> None:
    columns = torch.arange(max(height, width)).remainder(250)
    label = columns[None, :width].expand(height, -1) if width > height else columns[:height, None].expand(-1, width)
    found = pirat(64)(Sample(torch.zeros(3, height, width), label.contiguous(), "x")).label
    assert int(found[0, 0]) == offset


def test_images_and_labels_are_scaled_as_pillow_does() -> None:
    before = sample(40, 60)
    after = resize(25, 33)(before)
    picture = Image.fromarray(to_8bit(before.image).numpy()).resize((33, 25), Image.Resampling.BILINEAR)
    assert (to_8bit(after.image).numpy() == np.array(picture)).all()
    label = Image.fromarray(before.label.to(torch.uint8).numpy()).resize((33, 25), Image.Resampling.NEAREST)
    assert (after.label.numpy() == np.array(label)).all()


def test_ddcat_scales_without_antialiasing() -> None:
    """Half the size: the mean of the four pixels around each new centre, whatever lies farther off."""
    before = sample(32, 64)
    after = ddcat(32)(before)
    quads = before.image.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert (after.image - quads).abs().max() <= 0.51 / 255
    assert torch.equal(ddcat(64)(before).image, before.image)
    assert ddcat(512).size((375, 500)) == (384, 512)
    assert ddcat(512).size((500, 333)) == (512, 341)


@pytest.mark.parametrize(
    ("make", "text", "name", "size"),
    [
        (voc, "voc:{root}?protocol=pirat", "voc val, protocol pirat 473", (473, 473)),
        (voc, "voc:{root}?protocol=pirat&crop=7&void=background", "voc val, protocol pirat 7", (7, 7)),
        (voc, "voc:{root}?protocol=ddcat", "voc val, protocol ddcat 512", (366, 512)),
        (ade20k, "ade20k:{root}?protocol=pirat", "ade20k val, 150 classes, protocol pirat 512", (512, 512)),
        (cityscapes, "cityscapes:{root}?protocol=ddcat", "cityscapes val, protocol ddcat 1024", (512, 1024)),
        (tree, "folder:{root}?protocol=whole", ", protocol whole", (6, 8)),
        (tree, "folder:{root}?protocol=resize&to=5x9", ", protocol resize 5x9", (5, 9)),
        (tree, "folder:{root}?protocol=resize&to=7", ", protocol resize 7x7", (7, 7)),
    ],
)
def test_protocols_as_options(tmp_path: Path, make: object, text: str, name: str, size: tuple[int, int]) -> None:
    make(tmp_path)  # type: ignore[operator]
    data = open_data(text.format(root=tmp_path))
    assert isinstance(data, ProtocolSet)
    assert isinstance(data, Dataset)
    assert data.name.endswith(name)
    assert sample_size(data, 0) == size == tuple(data[0].label.shape)
    check_sample(data[0], len(data.classes))
    assert data.void == data.dataset.void


def test_shapes_take_a_protocol_and_keep_their_own_options() -> None:
    data = open_data("shapes?count=2&size=40&protocol=pirat&crop=32")
    assert sample_size(data, 1) == (32, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("crop=473", "option crop of folder belongs to a protocol; add protocol="),
        ("protocol=pirat", "protocol pirat of folder needs the option crop"),
        ("protocol=ddcat", "needs the option long"),
        ("protocol=resize", "needs the option to"),
        ("protocol=pirat&long=3", "pirat has no option long; it takes crop"),
        ("protocol=whole&crop=3", "whole has no option crop; it takes none"),
        ("protocol=pirat&crop=0", "'0'; it must be a whole number of 1 or more"),
        ("protocol=pirat&crop=-3", "'-3'"),
        ("protocol=pirat&crop=4.5", "'4.5'"),
        ("protocol=resize&to=3x", "'3x'; it must be as to=512"),
        ("protocol=piratt&crop=3", "Unknown protocol 'piratt'; did you mean pirat"),
    ],
)
def test_bad_protocols(tmp_path: Path, options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data(f"folder:{tree(tmp_path)}?{options}")
