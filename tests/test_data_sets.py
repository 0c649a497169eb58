"""Folders of files and CamVid, their specs, and what is said about bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robseg.data import (
    DATASETS,
    Dataset,
    check_sample,
    open_data,
    sample_size,
)
from robseg.data.augment import AUGMENTATIONS
from robseg.data.protocols import _OPTION_OF, OPTIONS
from robseg.errors import UserError
from trees import camvid, indices, picture, save, tree


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
        (without("labels/a.png"), "", r"has 1 × image without label: '.*images/a\.jpg'.*add the label"),
        (without("images/sub/c.jpg"), "", r"has 1 × label without image: '.*labels/sub/c\.png'"),
        (emptied("images"), "", "no image in .*images.*jpeg"),
        (emptied("labels"), "", "no label in .*labels.*png"),
        (moved("images/sub/c.jpg", "images/a.png"), "", r"same name up to the suffix: '.*a\.png'; 'a\.jpg' is there"),
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
    with pytest.raises(UserError, match=r"5 × image without .*b\.jpg.*c\.jpg.*d\.jpg', \.\.\.;"):
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
        ("nonsense", "known: ade20k, camvid, cityscapes, folder, list, sbd, shapes, voc"),
        ("", "names nothing"),
        ("camvid", "write camvid:FOLDER"),
        ("camvid:", "write camvid:FOLDER"),
        ("folder?classes=3", "write folder:FOLDER"),
        ("folder:{root}/nowhere", "nowhere' of the data set folder does not exist"),
        ("folder:{root}/classes.txt", "is not a folder"),
        ("{root}", "is a folder and not a data set; write NAME:FOLDER, as in folder:"),
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


# The guide


def test_the_guide_names_every_set_protocol_option_and_transform() -> None:
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    options = ("split", "labels", "void", "leak", "voc", "classes", "sequence", "without", "images", "ignore", "zero")
    names = [*DATASETS, *_OPTION_OF, *OPTIONS, *AUGMENTATIONS, *options]
    assert [name for name in names if f"`{name}" not in text and f"{name}=" not in text] == []
