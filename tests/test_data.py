"""Data sets: decoding, matching of files, class lists, specs, and what is said about bad input."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robseg.data import (
    DATASETS,
    IGNORE_INDEX,
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
from robseg.data.classes import read_classes
from robseg.data.files import read_image, read_label, read_size
from robseg.data.pairs import label_table, translate
from robseg.errors import UserError

SHARED = Path(__file__).parents[1] / "../shared/data"


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


# Decoding


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


# Folder sets


def test_folder_set(tmp_path: Path) -> None:
    data = open_data(f"folder:{tree(tmp_path)}")
    assert isinstance(data, Dataset)
    assert data.ids == ("a", "b", "sub/c")
    assert data.classes.names == ("kind 0", "kind 1", "kind 2")
    assert "255" in data.void
    assert len(data) == 3 == len(list(data))  # type: ignore[call-overload]
    sample = data[0]
    assert sample.id == "a"
    assert torch.equal(sample.label, torch.from_numpy(indices(1)).long())
    check_sample(sample, 3)
    assert sample_size(data, 0) == (6, 8)


@pytest.mark.parametrize("images", ["image", "IMG", "JPEGImages"])
@pytest.mark.parametrize("labels", ["label", "Masks", "annotations", "SegmentationClass"])
def test_usual_names_of_folders(tmp_path: Path, images: str, labels: str) -> None:
    tree(tmp_path, images=images)
    (tmp_path / "labels").rename(tmp_path / labels)
    assert len(open_data(f"folder:{tmp_path}")) == 3


def test_folder_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a:b", images="pictures/left")
    (root / "labels").rename(root / "truth")
    (root / "classes.txt").rename(tmp_path / "mine.txt")
    (root / "pictures/left/.hidden.jpg").write_text("")
    (root / "pictures/left/Thumbs.db").write_text("")
    monkeypatch.chdir(tmp_path)
    data = open_data(f"folder:{root}?images=pictures/left&labels=truth&classes=mine.txt")
    assert data.ids == ("a", "b", "sub/c")
    assert open_data("folder:a:b?images=pictures/left&labels=truth&classes=3").classes.names[2] == "class 2"
    label = torch.from_numpy(indices(1)).long()
    for options, want in (
        ("classes=2&zero=ignore", torch.where(label == 0, 255, label - 1)),
        ("classes=3&ignore=1", torch.where(label == 1, 255, label)),
        ("classes=3&ignore=0,2", torch.where(label == 1, label, 255)),
        ("classes=255&zero=ignore", torch.where(label == 0, 255, label - 1)),
    ):
        data = open_data(f"folder:a:b?images=pictures/left&labels=truth&{options}")
        assert torch.equal(data[0].label, want), options


def test_all_255_classes_survive_a_shift(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture(0, 16, 16))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "labels/a.png", values)
    shifted = open_data(f"folder:{tmp_path}?classes=255&zero=ignore")[0].label.flatten().tolist()
    assert shifted == [255, *range(255)]
    plain = open_data(f"folder:{tmp_path}?classes=255")[0].label.flatten().tolist()
    assert plain == [*range(255), 255]


def test_labels_inside_the_folder_of_images(tmp_path: Path) -> None:
    assert open_data(f"folder:{tree(tmp_path, images='.')}?images=.").ids == ("a", "b", "sub/c")


def test_image_and_label_of_different_size(tmp_path: Path) -> None:
    save(tree(tmp_path) / "labels/a.png", indices(0, 3, 8, 6))
    with pytest.raises(UserError, match=r"images/a\.jpg' is 8 x 6 .*labels/a\.png' is 6 x 8"):
        open_data(f"folder:{tmp_path}")[0]


def test_bad_label_value_in_a_folder_set(tmp_path: Path) -> None:
    save(tree(tmp_path) / "labels/a.png", np.full((6, 8), 9, np.uint8))
    with pytest.raises(
        UserError, match=r"labels/a\.png' holds 9 at row 0, column 0 \(48 of 48.*0 to 2.*255 is ignored"
    ):
        open_data(f"folder:{tmp_path}")[0]


def without(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).unlink()


def moved(path: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / path).rename(root / target)


def emptied(path: str) -> Callable[[Path], object]:
    return lambda root: [file.unlink() for file in (root / path).rglob("*.*")]


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (without("labels/a.png"), "", r"1 of 3 images have no label .*images/a\.jpg"),
        (without("images/sub/c.jpg"), "", r"1 of 3 labels have no image .*labels/sub/c\.png"),
        (emptied("images"), "", "no image in .*images.*jpeg"),
        (emptied("labels"), "", "no label in .*labels.*png"),
        (moved("images/sub/c.jpg", "images/a.png"), "", r"a\.jpg' and .*a\.png' have the same name"),
        (moved("images", "photos"), "", "no folder of images in .*name it with images="),
        (moved("labels", "truth"), "", "no folder of labels in .*labels="),
        (lambda root: (root / "Image").mkdir(), "", "Several folders .*Image and images.*images="),
        (nothing, "images=photos", "photos' does not exist"),
        (nothing, "labels=classes.txt", "not a folder"),
        (nothing, "labels=images", "must be in two"),
        (nothing, "labels=.&images=labels", "no label in"),
        (without("classes.txt"), "", "classes.txt.*classes=NUMBER"),
        (nothing, "classes=names.txt", "'names.txt' is neither a number nor a file"),
        (nothing, "classes=0", "0 classes"),
        (nothing, "classes=-3", "-3 classes"),
        (nothing, "classes=256", "256 classes.*1 to 255"),
        (nothing, "clases=3", "'clases'.*did you mean classes.*allowed: classes, images"),
        (nothing, "ignore=void", "'void'.*0 to 65535"),
        (nothing, "ignore=-1", "'-1'.*0 to 65535"),
        (nothing, "zero=void", "'void'.*class, ignore"),
    ],
)
def test_bad_folder_sets(tmp_path: Path, change: Callable[[Path], object], options: str, words: str) -> None:
    change(tree(tmp_path))
    with pytest.raises(UserError, match=words):
        open_data(f"folder:{tmp_path}?{options}")


def test_many_lonely_images_are_counted_and_three_are_named(tmp_path: Path) -> None:
    tree(tmp_path, tuple("abcdef"))
    for stem in "bcdef":
        (tmp_path / f"labels/{stem}.png").unlink()
    with pytest.raises(UserError, match=r"5 of 6 images .*b\.jpg.*c\.jpg.*d\.jpg', \.\.\.;"):
        open_data(f"folder:{tmp_path}")
    (tmp_path / "labels/a.png").rename(tmp_path / "labels/a_mask.png")
    with pytest.raises(UserError, match="there is 'a' here and 'a_mask' there"):
        open_data(f"folder:{tmp_path}")


# CamVid


def test_camvid(tmp_path: Path) -> None:
    root = camvid(tmp_path)
    data = open_data(f"camvid:{root}")
    assert data.ids == ("0016E5_2", "0016E5_3")
    assert len(data.classes) == 11
    assert "11" in data.void
    stored = torch.from_numpy(indices(0, 12)).long()
    assert (stored == 11).any()
    assert torch.equal(data[0].label, torch.where(stored == 11, 255, stored))
    for options, ids in (
        ("", ("0001TP_1", "0006R0_1", "0016E5_1")),
        ("&without=0016E5", ("0001TP_1", "0006R0_1")),
        ("&sequence=0016E5,0001TP", ("0001TP_1", "0016E5_1")),
        ("&sequence=0016E5,0001TP&without=0016E5", ("0001TP_1",)),
    ):
        filtered = open_data(f"camvid:{root}?split=train{options}")
        assert filtered.ids == ids
        assert [sample.id for sample in filtered] == list(ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("split=validation", "Unknown split of camvid 'validation'; known: test, train, val"),
        ("split=test", "lacks the folders test and testannot.*only train and val"),
        ("spilt=val", "did you mean split.*allowed: split, sequence, without"),
        ("without=0016E6", "without=0016E6.*sequences 0016E5"),
        ("without=0016E5", "No frame of camvid is left"),
        ("split=train&sequence=0016E5,X", "sequence=X .*0001TP, 0006R0, 0016E5"),
        ("without=", "No frame fits"),
    ],
)
def test_bad_camvid(tmp_path: Path, options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data(f"camvid:{camvid(tmp_path)}?{options}")


# Specs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("camvit:x", "Unknown data set 'camvit'; did you mean camvid"),
        ("nonsense", "known: camvid, folder, shapes"),
        ("", "names nothing"),
        ("camvid", "write camvid:FOLDER"),
        ("camvid:", "write camvid:FOLDER"),
        ("folder?classes=3", "write folder:FOLDER"),
        ("folder:{root}/nowhere", "nowhere' of the data set folder does not exist"),
        ("folder:{root}/classes.txt", "is not a folder"),
        ("{root}", "is a folder and not a data set; write NAME:"),
        ("camvid:{root}", "no split at all"),
        ("camvid:{root}?split", "not of the form key=value"),
    ],
)
def test_bad_specs(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data(text.format(root=tree(tmp_path)))


def test_embedded_set_opens_and_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(DATASETS) >= {"camvid", "folder", "shapes"}
    data = open_data("shapes?count=3&size=32")
    assert len(data) == 3
    check_sample(data[2], len(data.classes))
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "set")
    assert len(open_data("folder:~/set")) == 3


# Python API


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


# Real data


def opened(text: str) -> Dataset:
    folder = SHARED / text.partition("?")[0].partition(":")[2]
    if not folder.is_dir():
        pytest.skip(f"the real sample {folder} is absent")
    name, _, rest = text.partition(":")
    return open_data(f"{name}:{SHARED}/{rest}")


@pytest.mark.parametrize(
    ("text", "count", "classes", "size"),
    [
        ("camvid:camvid-240x180?split=val", 101, 11, (180, 240)),
        ("camvid:camvid-240x180?split=train", 367, 11, (180, 240)),
        ("camvid:camvid-480x360?split=test", 20, 11, (360, 480)),
        ("folder:cocostuff-sample?classes=181", 7, 181, (426, 640)),
        ("folder:cocostuff-sample?classes=182", 7, 182, (426, 640)),
        ("folder:ade20k/ADEChallengeData2016?classes=150&zero=ignore", 2, 150, None),
        ("folder:ade20k/ADEChallengeData2016?classes=151", 2, 151, None),
    ],
)
def test_real_samples(text: str, count: int, classes: int, size: tuple[int, int] | None) -> None:
    data = opened(text)
    assert (len(data), len(data.classes)) == (count, classes)
    assert list(data.ids) == sorted(data.ids)
    for index in range(0, count, max(count // 7, 1)):
        check_sample(data[index], classes)
        assert sample_size(data, index) == tuple(data[index].label.shape)
    assert size is None or sample_size(data, 0) == size


def test_camvid_split_without_leak() -> None:
    train = opened("camvid:camvid-240x180?split=train&without=0016E5")
    val = opened("camvid:camvid-240x180?split=val")
    assert not {name.split("_")[0] for name in train.ids} & {name.split("_")[0] for name in val.ids}
    assert 0 < len(train) < 367
