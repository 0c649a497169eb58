"""Decoding of image and label files, what their values mean, and class lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robseg.data import (
    IGNORE_INDEX,
    distinct_colours,
)
from robseg.data.classes import read_classes
from robseg.data.files import read_image, read_label, read_size
from robseg.data.pairs import label_table, translate
from robseg.errors import UserError
from trees import grey_png, indices, picture, save


@pytest.mark.filterwarnings("error")
def test_images_of_all_kinds_are_rgb_in_0_1(tmp_path: Path) -> None:
    rgb = picture(0)
    want = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    alpha = np.dstack([rgb, indices(1, 255)])
    assert torch.equal(read_image(save(tmp_path / "rgb.png", rgb)), want)
    assert torch.equal(read_image(save(tmp_path / "rgba.png", alpha)), want), "alpha is dropped, not blended"
    assert torch.equal(read_image(save(tmp_path / "x.BMP", rgb)), want)
    grey = want[:1].expand(3, -1, -1)
    assert torch.equal(read_image(save(tmp_path / "grey.png", rgb[..., 0])), grey)
    assert torch.equal(read_image(save(tmp_path / "grey-alpha.png", alpha[..., [0, 3]])), grey)
    palette = Image.fromarray(rgb).quantize(16)
    want = torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1).float() / 255
    assert torch.equal(read_image(save(tmp_path / "palette.png", palette)), want)
    assert torch.equal(read_image(save(tmp_path / "transparent.png", palette, transparency=bytes(range(16)))), want)
    bits = save(tmp_path / "bits.png", rgb[..., 0] > 99, transparency=0)
    assert torch.equal(read_image(bits)[1], torch.from_numpy(rgb[..., 0] > 99).float())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_65535(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 1000], [30000, 65534, 65535]], np.uint16)
    image = read_image(save(tmp_path / f"deep.{suffix}", values))
    assert torch.allclose(image, torch.from_numpy(values / 65535).float().expand(3, -1, -1), atol=1e-7)


def test_cmyk_jpeg_keeps_its_colours_and_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 6), (200, 40, 90))
    image = read_image(save(tmp_path / "cmyk.jpg", flat, "CMYK", quality=100))
    assert torch.allclose(image.mean((1, 2)) * 255, torch.tensor([200.0, 40, 90]), atol=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "turned.jpg", flat, exif=exif)
    assert read_image(turned).shape == (3, 6, 8)
    assert read_size(turned) == (6, 8)


def test_labels_of_all_modes_keep_their_values(tmp_path: Path) -> None:
    values = indices(0, 200)
    want = torch.from_numpy(values).long()
    palette = Image.fromarray(values, "L").convert("P")
    palette.putpalette([channel for colour in distinct_colours(256) for channel in colour])
    assert torch.equal(read_label(save(tmp_path / "l.png", values)), want)
    assert torch.equal(read_label(save(tmp_path / "p.png", palette)), want)
    assert torch.equal(read_label(save(tmp_path / "deep.png", values.astype(np.uint16) * 300)), want * 300)
    assert torch.equal(read_label(save(tmp_path / "bits.png", values > 99)), (want > 99).long())
    assert read_label(tmp_path / "l.png").dtype == torch.int64


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_grey_png_of_few_bits_is_not_stretched(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (3, 5)).tolist()
    assert read_label(grey_png(tmp_path / "x.png", bits, values)).tolist() == values


def broken(path: Path, content: Callable[[bytes], bytes], suffix: str = "png") -> Path:
    file = save(path / f"good.{suffix}", picture(0, 64, 64), "RGB" if suffix == "webp" else "L")
    target = path / f"broken.{suffix}"
    target.write_bytes(content(file.read_bytes()))
    return target


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, share: float) -> None:
    path = broken(tmp_path, lambda content: content[: int(share * len(content))], suffix)
    for read in (read_image, read_label)[: 1 if suffix == "webp" else 2]:
        with pytest.raises(UserError, match=rf"broken\.{suffix}'.*cannot be decoded"):
            read(path)


def test_a_picture_too_large_for_pillow_is_named_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", picture(0, 64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"large\.png' is too large \(4096 pixels, and 2000 are the most.*; scale"):
        read_image(path)


def test_other_bad_files(tmp_path: Path) -> None:
    text = broken(tmp_path, lambda _: b"<html>not found</html>")
    with pytest.raises(UserError, match="of no known image format"):
        read_image(text)
    with pytest.raises(UserError, match=r"nothing\.png' does not exist"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=r"nothing\.png' does not exist"):
        read_size(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="floating-point"):
        read_image(save(tmp_path / "float.tif", np.ones((3, 4), np.float32)))
    with pytest.raises(UserError, match=r"32-bit values \(5 to 70000\)"):
        read_image(save(tmp_path / "wide.tif", np.array([[5, 70000]], np.int32)))
    for channels in (3, 4):
        colours = save(tmp_path / "colours.png", indices(0, 9, 4, 4 * channels).reshape(4, 4, channels))
        with pytest.raises(UserError, match=r"colours\.png' holds colours.*index PNG is expected.*getchannel"):
            read_label(colours)


# What file values mean


@given(st.integers(1, 255), st.sets(st.integers(0, 300), max_size=3), st.integers(0, 1))
def test_label_table_maps_classes_and_void(count: int, void: set[int], first: int) -> None:
    table = label_table(count, void, first)
    values = torch.tensor([sorted(table)])
    labels = translate(values, table, Path("x.png"))
    for value, label in zip(values[0].tolist(), labels[0].tolist(), strict=True):
        assert label == (IGNORE_INDEX if value in void else value - first)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "'x.png' holds 3 at row 2, column 1 (1 of 12 pixels), but its classes are 0 to 2, and 7, 255 is ignored"),
        (254, "254 at row 2, column 1"),
        (70000, "70000 at row 2, column 1"),
        (-1, "-1 at row 2, column 1"),
    ],
)
def test_value_outside_the_classes_is_named_with_its_place(value: int, words: str) -> None:
    values = torch.tensor([[0, 1, 2, 255], [7, 7, 0, 0], [0, 0, 0, 0]])
    values[2, 1] = value
    with pytest.raises(UserError) as caught:
        translate(values, label_table(3, (255, 7)), Path("x.png"))
    assert words in str(caught.value)


# Class lists


def test_class_list_formats(tmp_path: Path) -> None:
    made_up = distinct_colours(5)
    lines = ["sky", "door, double door", "road,1,2,3", "tree\t4 5 6", "car\t7,8,9"]
    file = tmp_path / "names.txt"
    for heading, end in (("", "\n"), ("", "\r\n"), ("\ufeff", "\n"), ("name, r, g, b\n", "\n")):
        file.write_bytes((heading + end.join([*lines, "", ""])).encode())
        classes = read_classes(file)
        assert classes.names == ("sky", "door, double door", "road", "tree", "car")
        assert classes.colours == (made_up[0], made_up[1], (1, 2, 3), (4, 5, 6), (7, 8, 9))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 classes"),
        (b"a\n\nb\n", "line 2"),
        (b"a\nb\na\n", "'a' in line 3"),
        (b"a\nb,1,2\n", "line 2.*not three numbers"),
        (b"a\t1 2 256\n", "line 1.*0 to 255"),
        (b"a\tred\n", "line 1.*not three numbers"),
        (b"a,1,-2,3\n", "line 1.*not three numbers"),
        (b"name,r,g,b\na,1,2\n", "line 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("\n".join(map(str, range(256))).encode(), "256 classes.*1 to 255"),
    ],
)
def test_bad_class_lists(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_classes(tmp_path / "names.txt")


@pytest.mark.parametrize("n", [1, 2, 21, 150, 255])
def test_colours_differ_and_few_are_the_first_of_many(n: int) -> None:
    colours = np.array(distinct_colours(n))
    assert distinct_colours(n) == distinct_colours(255)[:n]
    assert colours[0].tolist() == [0, 0, 0]
    gaps = np.abs(colours[:, None] - colours[None]).sum(-1)[~np.eye(n, dtype=bool)]
    assert gaps.min(initial=765) >= (80 if n <= 21 else 20)
