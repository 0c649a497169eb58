"""`robseg data check`, `show` and `index`: recognition, every fault in one pass, the contact sheet, conversion."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from robseg.cli import app
from robseg.data import as_dataset, open_data
from robseg.data.base import ClassList
from robseg.data.check import check_data
from robseg.data.convert import index_masks
from robseg.data.layouts import format_spec, recognise
from robseg.data.sheet import _legend, contact_sheet, overlay
from robseg.errors import UserError
from robseg.spec import Spec, parse_spec
from trees import (
    VOC_PALETTE,
    VOC_VAL,
    ade20k,
    camvid,
    cityscapes,
    indices,
    picture,
    save,
    sbd,
    tree,
    voc,
    voc_palette_png,
)

SHARED = Path(__file__).parents[1] / "../shared/data"


def kinds(root: Path) -> dict[str, list[str]]:
    """{kind of fault: file names}."""
    found: dict[str, list[str]] = {}
    for fault in check_data(recognise(root)).faults:
        found.setdefault(fault.kind, []).append(fault.path.name)
    return found


# Recognition


def test_each_layout_is_recognised_with_its_splits(tmp_path: Path) -> None:
    for name, make, splits in (
        ("voc", voc, ("train", "val", "train_aug")),
        ("ade20k", ade20k, ("train", "val")),
        ("cityscapes", cityscapes, ("train", "val")),
        ("camvid", camvid, ("train", "val")),
    ):
        root = tmp_path / f"{name} of 100% & more"
        make(root)
        specs = recognise(root)
        assert [(spec.name, spec.options["split"]) for spec in specs] == [(name, split) for split in splits]
        for spec in specs:
            assert parse_spec(format_spec(spec)) == spec
            assert len(open_data(format_spec(spec))) > 1
        assert check_data(specs).faults == []
    assert [spec.name for spec in recognise(tree(tmp_path / "folder"))] == ["folder"]
    (tmp_path / "empty").mkdir()
    assert recognise(tmp_path / "empty") == []


def test_several_sets_in_one_folder_are_all_recognised(tmp_path: Path) -> None:
    for make in (voc, sbd, ade20k):
        make(tmp_path)
    camvid(tmp_path / "CamVid")
    cityscapes(tmp_path / "cityscapes")
    specs = recognise(tmp_path)
    assert list(dict.fromkeys(spec.name for spec in specs)) == ["voc", "sbd", "ade20k", "cityscapes", "camvid"]
    assert all(len(open_data(format_spec(spec))) > 1 for spec in specs)


def test_sbd_beside_voc_is_recognised_without_leak(tmp_path: Path) -> None:
    specs = recognise(sbd(voc(tmp_path)))
    assert [(spec.name, spec.options["split"]) for spec in specs][-1] == ("sbd", "train_noval")
    assert check_data(specs).faults == []


def test_sbd_without_voc_is_checked_all_the_same(tmp_path: Path) -> None:
    report = check_data(recognise(sbd(tmp_path)))
    assert [split.images for split in report.splits] == [3, 2]
    assert report.faults == []


def test_what_is_reported_of_a_good_set(tmp_path: Path) -> None:
    report = check_data(recognise(voc(tmp_path)))
    val = next(split for split in report.splits if split.spec.options["split"] == "val")
    data = open_data(f"voc:{tmp_path}")
    labels = [data[index].label for index in range(3)]
    assert (val.images, dict(val.sizes)) == (3, {(10, 14): 3})
    assert int(val.pixels[-1]) == sum(int((label == 255).sum()) for label in labels)
    assert val.pixels[:-1].tolist() == [sum(int((label == k).sum()) for label in labels) for k in range(21)]
    assert val.void_share == pytest.approx(0.1)


# Faults


def test_every_fault_is_found_in_one_pass(tmp_path: Path) -> None:
    base = voc(tmp_path) / "VOCdevkit/VOC2012"
    images, labels, aug = base / "JPEGImages", base / "SegmentationClass", base / "SegmentationClassAug"
    (labels / "2007_000032.png").unlink()
    good = (images / "2007_000039.jpg").read_bytes()
    (images / "2007_000039.jpg").write_bytes(good[: len(good) // 2])
    save(labels / "2007_000033.png", np.full((10, 14), 22, np.uint8))
    save(labels / "2007_000042.png", indices(0, 21, 14, 10))
    voc_palette_png(labels / "2007_000061.png", np.full((10, 14), 255, np.uint8))
    (aug / "2008_000015.png").write_text("<html>")
    shutil.copy(images / "2007_000033.jpg", images / "2009_000001.jpg")
    assert kinds(tmp_path) == {
        "listed label that is missing": ["2007_000032.png"],
        "undecodable image": ["2007_000039.jpg"],
        "label value outside the encoding": ["2007_000033.png"],
        "size mismatch": ["2007_000042.png"],
        "empty label": ["2007_000061.png"],
        "undecodable label": ["2008_000015.png"],
        "picture of both val and train": ["2009_000001.jpg"],
    }


def test_leaks_are_faults_beside_others(tmp_path: Path) -> None:
    base = voc(tmp_path) / "VOCdevkit/VOC2012"
    with (base / "ImageSets/Segmentation/train_aug.txt").open("a") as file:
        file.write(f"{VOC_VAL[1]}\n")
    (base / "SegmentationClass/2007_000032.png").unlink()
    found = kinds(tmp_path)
    assert found == {
        "listed label that is missing": ["2007_000032.png"],
        "picture of both val and train": [f"{VOC_VAL[1]}.jpg"],
    }
    with pytest.raises(UserError, match="are in VOC val"):
        check_data([parse_spec(f"voc:{tmp_path}?split=train_aug")])
    root = sbd(tmp_path)
    specs = [parse_spec(f"voc:{root}"), parse_spec(f"sbd:{root}?split=train")]
    for stem in ("2007_000033", "2007_000039"):
        shutil.copy(base / f"JPEGImages/{stem}.jpg", root / f"benchmark_RELEASE/dataset/img/{stem}.jpg")
    assert [(fault.kind, fault.path.name) for fault in check_data(specs).faults] == [
        ("picture of both val and train", "2007_000033.jpg")
    ]


def test_a_split_that_cannot_be_opened_does_not_hide_the_others(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    shutil.rmtree(root / "ADEChallengeData2016/annotations/training")
    (root / "ADEChallengeData2016/annotations/training").mkdir()
    (root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png").write_text("")
    assert list(kinds(root)) == ["set that cannot be opened", "undecodable label"]


def test_unpaired_files_of_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, tuple("abcd"))
    (tmp_path / "labels/a.png").unlink()
    (tmp_path / "images/b.jpg").unlink()
    save(tmp_path / "images/c.png", picture(9))
    assert kinds(tmp_path) == {
        "image without label": ["a.jpg"],
        "label without image": ["b.png"],
        "image of the same name up to the suffix": ["c.png"],
    }


def test_a_picture_saved_again_in_another_split_is_found(tmp_path: Path) -> None:
    camvid(tmp_path)
    with Image.open(tmp_path / "val/0016E5_2.png") as file:
        file.save(tmp_path / "train/0006R0_1.png", compress_level=0)
    found = check_data([Spec("camvid", str(tmp_path), {"split": split}) for split in ("train", "val")]).faults
    assert [(fault.kind, fault.path.name) for fault in found if fault.path.name == "0016E5_2.png"] == [
        ("picture of both train and val", "0016E5_2.png")
    ]


@pytest.mark.parametrize(
    ("mode", "words"),
    [("RGB", "colours are those of the classes: convert"), ("RGBA", "convert"), ("equal", "three equal channels")],
)
def test_colour_masks_are_told_and_how_to_convert_them(tmp_path: Path, mode: str, words: str) -> None:
    base = voc(tmp_path) / "VOCdevkit/VOC2012"
    colours = np.array(VOC_PALETTE, np.uint8)
    values = indices(3, 21, 10, 14)
    mask = np.repeat(values[..., None], 3, axis=-1) if mode == "equal" else colours[values]
    save(base / "SegmentationClass/2007_000042.png", mask, None if mode == "equal" else mode)
    (fault,) = check_data(recognise(tmp_path)).faults
    assert fault.kind == "colour mask instead of an index mask"
    assert words in fault.text


def test_a_palette_in_another_order_is_told_and_the_right_one_is_not(tmp_path: Path) -> None:
    base = voc(tmp_path) / "VOCdevkit/VOC2012"
    values = np.zeros((10, 14), np.uint8)
    values[5:] = 1
    shuffled = Image.fromarray(values, "L").convert("P")
    shuffled.putpalette([*VOC_PALETTE[0], *VOC_PALETTE[15]])
    shuffled.putdata(values.flatten().tolist())
    save(base / "SegmentationClass/2007_000042.png", shuffled)
    (fault,) = check_data(recognise(tmp_path)).faults
    assert (fault.kind, fault.path.name) == ("palette in another order than the classes", "2007_000042.png")
    assert "'person'" in fault.text


# The command


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_check_command(tmp_path: Path) -> None:
    root = voc(tmp_path)
    code, text = run("check", str(root))
    assert code == 0
    assert "voc val: 3 images, 14 x 10 (3)" in text
    assert "10.00% of the pixels" in text
    assert "no fault found" in text
    label = root / "VOCdevkit/VOC2012/SegmentationClass" / f"{VOC_VAL[0]}.png"
    label.write_bytes(label.read_bytes()[:60])
    code, text = run("check", f"voc:{root}?split=val")
    assert code == 2
    assert "1 fault:" in text
    assert str(label) in text


def test_check_of_a_folder_without_class_list(tmp_path: Path) -> None:
    (tree(tmp_path) / "classes.txt").unlink()
    code, text = run("check", str(tmp_path))
    assert code == 0
    assert "the labels hold 3 values of 0 to 2, so that classes=3 would fit" in text
    code, text = run("check", str(tmp_path), "--classes", "2")
    assert code == 2
    assert "label value outside the encoding" in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{root}", "No known data set was recognised"),
        ("{root}/nowhere", "nowhere' does not exist"),
        ("nonsense", "Unknown data set 'nonsense'"),
        ("shapes", "not made of files"),
        ("voc:{root}", "does not hold the data set voc"),
    ],
)
def test_what_cannot_be_checked(tmp_path: Path, source: str, words: str) -> None:
    code, text = run("check", source.format(root=tmp_path))
    assert code == 2
    assert words in text


def test_names_that_are_no_text_are_faults(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    odd = os.fsdecode(b"\xff\xfe")
    for part, suffix in (("images", "jpg"), ("labels", "png")):
        shutil.copy(root / f"{part}/a.{suffix}", root / f"{part}/{odd}.{suffix}")
    code, text = run("check", f"folder:{root}")
    assert code == 2
    assert r"images that is not UTF-8: " in text
    assert r"it holds b'\xff\xfe.jpg': give the file a name in UTF-8" in text
    with pytest.raises(UserError, match="has 1 × name of a file of the images that is not UTF-8") as caught:
        open_data(f"folder:{root}")
    str(caught.value).encode()
    root.rename(tmp_path / odd)
    with pytest.raises(
        UserError, match=r"The folder b'.*\\xff\\xfe' of the data set folder has a name that is not UTF-8"
    ):
        open_data(f"folder:{tmp_path / odd}")


@pytest.mark.parametrize("out", ["file/x.png", "folder.png"])
def test_sheets_that_cannot_be_written(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    code, text = run("show", f"voc:{voc(tmp_path)}", "--out", str(tmp_path / out))
    assert code == 2
    assert str(tmp_path / out) in text
    assert not list(tmp_path.rglob("*.part"))


def test_show_command(tmp_path: Path) -> None:
    out = tmp_path / "new/sheet.png"
    code, _ = run("show", f"voc:{voc(tmp_path)}", "--out", str(out), "--count", "2")
    assert code == 0
    with Image.open(out) as file:
        file.load()
        assert file.mode == "RGB"
    code, text = run("show", f"voc:{tmp_path}", "--out", "sheet.jpg")
    assert code == 2
    assert ".png" in text


def test_sheet_holds_the_images_and_the_colours_of_the_classes(tmp_path: Path) -> None:
    data = open_data(f"voc:{voc(tmp_path)}")
    drawn = np.asarray(overlay(data[0], data.classes)).astype(int)
    label, image = data[0].label.numpy(), np.asarray(data[0].image.permute(1, 2, 0) * 255)
    want = 0.35 * image + 0.65 * np.array(data.classes.colours + ((0, 0, 0),) * 235)[label]
    assert np.abs(drawn - want)[label != 255].max() <= 1
    assert (drawn[label == 255].std(-1) == 0).all()
    sheet = np.asarray(contact_sheet(data, count=9))
    legend = {
        colour for label, colour in enumerate(data.classes.colours) if any((s.label == label).any() for s in data)
    }  # type: ignore[attr-defined]
    assert legend <= {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("letters", [4, 25, 60])
def test_long_names_leave_room_for_the_shares(letters: int) -> None:
    label = torch.arange(16).reshape(4, 4) % 3
    data = as_dataset([(torch.zeros(3, 4, 4), label, "x" * 300)], class_names=[c * letters for c in "WMX"])
    legend = np.asarray(_legend([data[0]], data.classes))[:60]
    assert legend.shape[1] <= 340
    blank = (legend[:, 22:] == 255).all((0, 2))
    # Names, a gap that no name goes into, and the shares at the right edge.
    gaps = "".join("." if column else "#" for column in blank)
    assert re.fullmatch(r"\.?#[#.]*?\.{8,}[#.]{25,45}\.{8,12}", gaps)
    assert contact_sheet(data).width == 640 + legend.shape[1]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_masks_become_index_masks(tmp_path: Path, mode: str) -> None:
    classes = ClassList(("sky", "road", "car"), ((128, 128, 128), (128, 64, 128), (64, 0, 128)))
    values = indices(0, 4)
    values[0] = [0, 1, 2, 3, 0, 1, 2, 3]
    colours = np.array([*classes.colours, (1, 2, 3)], np.uint8)
    mask = Image.fromarray(colours[values])
    save(tmp_path / "masks/city/a.png", mask.quantize(8) if mode == "P" else mask)
    report = index_masks(tmp_path / "masks", classes, tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out/city/a.png"))
    assert (written == np.where(values == 3, 255, values)).all()
    assert (report.masks, dict(report.unknown)) == (1, {(1, 2, 3): int((values == 3).sum())})
    with pytest.raises(UserError, match="exists already"):
        index_masks(tmp_path / "masks", classes, tmp_path / "out")


def test_index_command(tmp_path: Path) -> None:
    colours = np.array(VOC_PALETTE, np.uint8)
    values = indices(3, 21)
    save(tmp_path / "images/a.png", picture(0))
    save(tmp_path / "colours/a.png", colours[values])
    code, text = run("index", str(tmp_path / "colours"), "--classes", "voc", "--out", str(tmp_path / "labels"))
    assert (code, "1 masks written" in text) == (0, True)
    assert (open_data(f"folder:{tmp_path}?classes=21")[0].label.numpy() == values).all()


def test_half_a_conversion_is_not_left_behind(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"masks/{name}.png", np.array(VOC_PALETTE, np.uint8)[indices(3, 21)])
    good = (tmp_path / "masks/b.png").read_bytes()
    (tmp_path / "masks/b.png").write_bytes(good[: len(good) // 2])
    code, text = run("index", str(tmp_path / "masks"), "--classes", "voc", "--out", str(tmp_path / "labels"))
    assert (code, "b.png' cannot be decoded" in text) == (2, True)
    (tmp_path / "masks/b.png").write_bytes(good)
    code, text = run("index", str(tmp_path / "masks"), "--classes", "voc", "--out", str(tmp_path / "masks/a.png/x"))
    assert (code, "cannot be written: Not a directory" in text) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize(
    ("mask", "classes", "words"),
    [
        (np.full((4, 4, 3), 9, np.uint8), "3", "no file '3' with a line name,r,g,b"),
        (np.full((4, 4, 3), 9, np.uint8), "{root}/names.txt", "'road' in line 2 of .* has no colour; write road,r,g,b"),
        (np.full((4, 4, 3), 9, np.uint8), "voc", r"Less than 1% .* is \(9, 9, 9\)"),
        (np.array([[0, 0], [0, 7]], np.uint8), "voc", "is grey and .* index mask already"),
    ],
)
def test_what_is_no_colour_mask_is_not_converted(tmp_path: Path, mask: np.ndarray, classes: str, words: str) -> None:
    save(tmp_path / "masks/a.png", mask)
    (tmp_path / "names.txt").write_text("sky,1,2,3\nroad\n")
    classes = classes.format(root=tmp_path)
    code, text = run("index", str(tmp_path / "masks"), "--classes", classes, "--out", str(tmp_path / "labels"))
    assert code == 2
    assert re.search(words, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "names.txt"]


# Real data


@pytest.mark.parametrize(
    ("folder", "lines"),
    [
        ("voc", ["voc val: 15 images", "voc train_aug: 14 images"]),
        ("cityscapes", ["cityscapes train: 1 images, 2048 x 1024 (1)", "cityscapes val: 3 images"]),
        ("ade20k", ["ade20k train, 150 classes: 1 images", "ade20k val, 150 classes: 1 images, 683 x 512 (1)"]),
        ("camvid-480x360", ["camvid test: 20 images, 480 x 360 (20)"]),
        ("cocostuff-sample", ["7 images", "so that classes=181 would fit"]),
    ],
)
def test_real_samples_are_recognised_faultless_and_shown(tmp_path: Path, folder: str, lines: list[str]) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the real sample {SHARED / folder} is absent")
    code, text = run("check", str(SHARED / folder))
    assert code == 0
    assert all(line in text for line in lines)
    spec = format_spec(recognise(SHARED / folder)[-1])
    source = f"{spec}?classes=181" if spec.startswith("folder") else spec
    assert run("show", source, "--out", str(tmp_path / "sheet.png"), "--count", "2")[0] == 0
