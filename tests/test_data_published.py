"""VOC, SBD, ADE20K, Cityscapes and list files, in small trees of their true layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import robseg
from robseg.data import Dataset, check_sample, open_data, sample_size
from robseg.data.check import check_data
from robseg.data.layouts import recognise
from robseg.data.sets.cityscapes import TRAIN_IDS
from robseg.errors import UserError
from trees import AUG_ONLY, SBD_TRAIN, VOC_TRAIN, VOC_VAL, ade20k, cityscapes, indices, picture, save, sbd, voc
from trees import with_border as bordered

SHARED = Path(__file__).parents[1] / "../shared/data"


def values_of(stem: str) -> torch.Tensor:
    seed = (*VOC_TRAIN, *VOC_VAL, *AUG_ONLY).index(stem)
    return torch.from_numpy(bordered(indices(seed, 21, 10, 14))).long()


# VOC


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ("", VOC_VAL),
        ("?split=train", VOC_TRAIN),
        ("?split=trainval", tuple(sorted(VOC_TRAIN + VOC_VAL))),
        ("?split=train_aug", VOC_TRAIN + AUG_ONLY),
        ("?split=val&labels=SegmentationClassAug", VOC_VAL),
    ],
)
def test_voc_splits(tmp_path: Path, below: str, options: str, ids: tuple[str, ...]) -> None:
    data = open_data(f"voc:{voc(tmp_path) / below}{options}")
    assert data.ids == ids
    assert (len(data.classes), data.classes.names[15], data.classes.colours[15]) == (21, "person", (192, 128, 128))
    assert "ignored" in data.void
    for index, stem in enumerate(ids):
        assert torch.equal(data[index].label, values_of(stem))


def test_voc_void_is_ignored_or_background(tmp_path: Path) -> None:
    voc(tmp_path)
    ignored = open_data(f"voc:{tmp_path}")[0].label
    counted = open_data(f"voc:{tmp_path}?void=background")
    assert (ignored == 255).any()
    assert torch.equal(counted[0].label, torch.where(ignored == 255, 0, ignored))
    assert "background" in counted.void


def test_train_aug_without_list_is_all_but_val(tmp_path: Path) -> None:
    voc(tmp_path, aug_list=False)
    assert open_data(f"voc:{tmp_path}?split=train_aug").ids == VOC_TRAIN + AUG_ONLY


@pytest.mark.parametrize("name", ["train_aug.txt", "trainaug.txt"])
@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png"])
def test_a_leak_into_train_aug_is_an_error_that_names_the_images(tmp_path: Path, name: str, line: str) -> None:
    lists = voc(tmp_path, aug_list=False) / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    stems = (*VOC_TRAIN, *VOC_VAL[:2], *AUG_ONLY)
    (lists / name).write_text("\r\n".join(line.format(stem, stem) for stem in stems) + "\n\n")
    with pytest.raises(UserError, match=f"2 training images .*{VOC_VAL[0]}', '{VOC_VAL[1]}'; .*leak=leave-out"):
        open_data(f"voc:{tmp_path}?split=train_aug")
    assert open_data(f"voc:{tmp_path}?split=train_aug&leak=leave-out").ids == VOC_TRAIN + AUG_ONLY
    assert open_data(f"voc:{tmp_path}?split=train_aug&leak=allow").ids == tuple(sorted(stems))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("split=test", "Unknown split of voc 'test'; (did you mean|known)"),
        ("void=class", "Unknown void of voc 'class'"),
        ("labels=SegmentationObject", "did you mean SegmentationClass"),
        ("leak=drop", "known: allow, error, leave-out"),
        ("void=ignore&splt=val", "did you mean split"),
    ],
)
def test_bad_voc_options(tmp_path: Path, options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data(f"voc:{voc(tmp_path)}?{options}")


def test_voc_that_lacks_files(tmp_path: Path) -> None:
    base = voc(tmp_path, aug=False) / "VOCdevkit/VOC2012"
    with pytest.raises(UserError, match=r"train_aug of voc needs the folder .*SegmentationClassAug"):
        open_data(f"voc:{tmp_path}?split=train_aug")
    with pytest.raises(UserError, match=r"SegmentationClassAug' does not exist, but .*val\.txt' lists files of it"):
        open_data(f"voc:{tmp_path}?labels=SegmentationClassAug")
    (base / "SegmentationClass/2007_000042.png").unlink()
    with pytest.raises(
        UserError, match=r"1 × listed label that is missing: '.*2007_000042\.png'; line 2 of '.*val\.txt'"
    ):
        open_data(f"voc:{tmp_path}")
    (base / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt' cannot be read"):
        open_data(f"voc:{tmp_path}?split=train")
    (base / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"None of the 2 images .*JPEGImages/a\.jpg"):
        open_data(f"voc:{tmp_path}")
    with pytest.raises(UserError, match="does not hold the data set voc: it needs JPEGImages and ImageSets"):
        open_data(f"voc:{base / 'JPEGImages'}")


# SBD


def test_sbd_leaves_out_the_images_of_voc_val(tmp_path: Path) -> None:
    root = sbd(voc(tmp_path))
    data = open_data(f"sbd:{root}")
    assert data.ids == ("2007_000039", "2008_000015", "2008_000023")
    assert not set(data.ids) & set(open_data(f"voc:{root}").ids)
    want = torch.from_numpy(indices(100 + SBD_TRAIN.index("2007_000039"), 21, 10, 14)).long()
    assert torch.equal(data[0].label, want)
    check_sample(data[0], 21)
    joined = open_data(f"sbd:{root}?split=train_aug")
    assert joined.ids == ("2007_000032", "2007_000039", "2008_000015", "2008_000023")
    assert torch.equal(joined[1].label, values_of("2007_000039")), "VOC's own label, not that of SBD"


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ("split=val", ("2007_000042", "2008_000023")),
        ("split=train&leak=allow", tuple(sorted(SBD_TRAIN))),
        ("split=train&leak=leave-out", ("2007_000039", "2008_000015")),
        ("split=trainval&leak=leave-out", ("2007_000039", "2008_000015", "2008_000023")),
    ],
)
def test_sbd_lists_as_they_are(tmp_path: Path, options: str, ids: tuple[str, ...]) -> None:
    assert open_data(f"sbd:{sbd(voc(tmp_path))}?{options}").ids == ids


def test_sbd_leaks_and_unknown_val(tmp_path: Path) -> None:
    root = sbd(tmp_path / "deep/deeper/deepest/sbd")
    with pytest.raises(UserError, match="voc=FOLDER of VOC2012"):
        open_data(f"sbd:{root}")
    assert len(open_data(f"sbd:{root}?split=train&leak=allow")) == 3
    voc(tmp_path)
    with pytest.raises(UserError, match=r"1 training images .*'2007_000033'"):
        open_data(f"sbd:{root}?split=train&voc={tmp_path}")
    assert len(open_data(f"sbd:{root}?voc={tmp_path}")) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"MATLAB 5.0 MAT-file, nonsense", "cannot be decoded"), (b"", "cannot be decoded"), (None, "no map GTcls")],
)
def test_bad_mat_files(tmp_path: Path, content: bytes | None, words: str) -> None:
    from scipy.io import savemat

    root = sbd(voc(tmp_path))
    path = root / "benchmark_RELEASE/dataset/cls/2007_000039.mat"
    if content is None:
        savemat(path, {"GTinst": {"Segmentation": np.zeros((10, 14))}})
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"2007_000039\.mat' .*{words}"):
        open_data(f"sbd:{root}")[0]


def test_sbd_without_scipy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(f"sbd:{sbd(voc(tmp_path))}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs SciPy: install it with pip install 'robseg\[sbd\]'"):
        data[0]
    with pytest.raises(UserError, match="needs SciPy"):
        check_data(recognise(tmp_path))


# ADE20K


@pytest.mark.parametrize("split", ["train", "training", "val", "validation"])
def test_ade20k_with_and_without_other(tmp_path: Path, split: str) -> None:
    root = ade20k(tmp_path)
    usual, other = (open_data(f"ade20k:{root}?split={split}&classes={number}") for number in (150, 151))
    assert (len(usual.classes), len(other.classes)) == (150, 151)
    assert other.classes.names == ("other", *usual.classes.names)
    assert (usual.classes.names[0], usual.classes.names[149]) == ("wall", "flag")
    values = other[0].label
    assert {0, 150} <= set(values.flatten().tolist())
    assert torch.equal(usual[0].label, torch.where(values == 0, 255, values - 1))
    assert open_data(f"ade20k:{root}/ADEChallengeData2016?split={split}").ids == usual.ids
    assert len(usual) == (3 if split.startswith("train") else 2)


def test_bad_ade20k(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    with pytest.raises(UserError, match="Unknown classes of ade20k '149'"):
        open_data(f"ade20k:{root}?classes=149")
    (root / "ADEChallengeData2016/images/validation/ADE_val_00000002.jpg").unlink()
    with pytest.raises(UserError, match=r"label without image: .*ADE_val_00000002\.png"):
        open_data(f"ade20k:{root}")


# Cityscapes


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    data = open_data(f"cityscapes:{cityscapes(tmp_path)}?split=train")
    assert data.ids == ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "zurich/zurich_000000_000019")
    label = data[0].label.flatten()
    for label_id in range(34):
        want = TRAIN_IDS.index(label_id) if label_id in TRAIN_IDS else 255
        assert label[label_id] == want
    assert data.classes.names[int(label[26])] == "car"
    assert data.classes.names[int(label[33])] == "bicycle"


@pytest.mark.parametrize(
    ("there", "options", "chosen"),
    [
        (("labelTrainIds",), "", "labelTrainIds"),
        (("labelIds", "labelTrainIds"), "", "label ids"),
        (("labelIds", "labelTrainIds"), "?labels=labelTrainIds", "labelTrainIds"),
    ],
)
def test_cityscapes_takes_the_labels_that_are_there(
    tmp_path: Path, there: tuple[str, ...], options: str, chosen: str
) -> None:
    data = open_data(f"cityscapes:{cityscapes(tmp_path, there)}{options}")
    assert chosen in data.void
    assert len(data) == 2
    check_sample(data[1], 19)


# Lists


def voc_list(root: Path, lines: list[str] | None = None) -> Path:
    voc(root)
    default = [f"JPEGImages/{stem}.jpg SegmentationClassAug/{stem}.png" for stem in reversed(VOC_VAL)]
    (root / "VOCdevkit/VOC2012/list.txt").write_text("\n".join(lines if lines is not None else default) + "\n")
    return root / "VOCdevkit/VOC2012"


def test_list_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = voc_list(tmp_path)
    data = open_data(f"list:{root}?classes=voc")
    assert data.ids == tuple(f"JPEGImages/{stem}" for stem in VOC_VAL)
    assert data.classes.names[0] == "background"
    assert torch.equal(data[1].label, values_of(VOC_VAL[1]))
    slashed = [f"/JPEGImages/{stem}.jpg\t/SegmentationClass/{stem}.png" for stem in VOC_VAL]
    (tmp_path / "mine.txt").write_text("\ufeff" + "\r\n".join([slashed[0], "", *slashed[1:]]))
    monkeypatch.chdir(tmp_path)
    assert open_data(f"list:{root}?classes=21&file=mine.txt").ids == data.ids
    absolute = [f"{root}/JPEGImages/{stem}.jpg {root}/SegmentationClass/{stem}.png" for stem in VOC_VAL]
    (tmp_path / "mine.txt").write_text("\n".join(absolute))
    assert len(open_data(f"list:{tmp_path}?classes=21&file=mine.txt")) == 3


def test_list_of_names_with_blanks(tmp_path: Path) -> None:
    save(tmp_path / "my images/a b.png", picture(0))
    save(tmp_path / "labels/a b.png", indices(0))
    (tmp_path / "list.txt").write_text("my images/a b.png\tlabels/a b.png\n")
    assert open_data(f"list:{tmp_path}?classes=3").ids == ("my images/a b",)


GOOD = "JPEGImages/2007_000033.jpg SegmentationClass/2007_000033.png"


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([GOOD, "JPEGImages/2007_000042.jpg"], "classes=voc", "Line 2 of the list .* has 1 parts"),
        ([GOOD + " 1"], "classes=voc", "Line 1 .* has 3 parts"),
        ([GOOD, GOOD], "classes=voc", "image listed twice.*line 2 of"),
        ([GOOD, "", "JPEGImages/x.jpg SegmentationClass/2007_000042.png"], "classes=voc", "JPEGImages/x.jpg'; line 3"),
        ([], "classes=voc", "is empty"),
        ([GOOD], "classes=voc&file=other.txt", "'other.txt' is neither in"),
        ([GOOD], "classes=vok", "'vok' is neither a number nor a file"),
        ([GOOD], "", "are not known"),
        ([GOOD], "classes=voc&split=val", "Unknown option 'split' of list"),
        ([GOOD], "classes=voc&ignore=x", "option ignore of list"),
    ],
)
def test_bad_lists(tmp_path: Path, lines: list[str], options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data(f"list:{voc_list(tmp_path, lines)}?{options}")


# Real data


def opened(text: str) -> Dataset:
    name, _, rest = text.partition(":")
    folder = SHARED / rest.partition("?")[0]
    if not folder.is_dir():
        pytest.skip(f"the real sample {folder} is absent")
    return open_data(f"{name}:{SHARED}/{rest}")


@pytest.mark.parametrize(
    ("text", "count", "classes", "size"),
    [
        ("voc:voc", 15, 21, (335, 500)),
        ("voc:voc?labels=SegmentationClassAug&void=background", 15, 21, (335, 500)),
        ("voc:voc?split=train_aug", 14, 21, (375, 500)),
        ("voc:voc?split=train_aug&protocol=pirat", 14, 21, (473, 473)),
        ("cityscapes:cityscapes?split=train", 1, 19, (1024, 2048)),
        ("cityscapes:cityscapes?protocol=ddcat", 3, 19, (512, 1024)),
        ("ade20k:ade20k", 1, 150, (512, 683)),
        ("ade20k:ade20k?split=train&classes=151&protocol=pirat", 1, 151, (512, 512)),
        ("camvid:camvid-240x180?split=val", 101, 11, (180, 240)),
        ("camvid:camvid-240x180?split=train", 367, 11, (180, 240)),
        ("camvid:camvid-480x360?split=test", 20, 11, (360, 480)),
        ("folder:cocostuff-sample?classes=181", 7, 181, (426, 640)),
        ("folder:cocostuff-sample?classes=182&protocol=resize&to=64x96", 7, 182, (64, 96)),
    ],
)
def test_real_samples(text: str, count: int, classes: int, size: tuple[int, int]) -> None:
    data = opened(text)
    assert (len(data), len(data.classes)) == (count, classes)
    assert list(data.ids) == sorted(data.ids)
    for index in range(0, count, max(count // 7, 1)):
        check_sample(data[index], classes)
        assert sample_size(data, index) == tuple(data[index].label.shape)
    assert sample_size(data, 0) == size


def test_camvid_split_without_leak() -> None:
    train = opened("camvid:camvid-240x180?split=train&without=0016E5")
    val = opened("camvid:camvid-240x180?split=val")
    assert not {name.split("_")[0] for name in train.ids} & {name.split("_")[0] for name in val.ids}
    assert 0 < len(train) < 367


def test_real_voc_is_drawn_in_the_colours_of_its_classes() -> None:
    from PIL import Image

    data = opened("voc:voc")
    with Image.open(SHARED / "voc/VOCdevkit/VOC2012/SegmentationClass/2007_000042.png") as file:
        palette = np.array(file.getpalette()).reshape(-1, 3)[:21]
    assert palette.tolist() == [list(colour) for colour in data.classes.colours]


@pytest.mark.parametrize(
    "text",
    [
        "voc:voc?protocol=pirat&crop=32",
        "cityscapes:cityscapes?protocol=ddcat&long=64",
        "ade20k:ade20k?classes=151&protocol=pirat&crop=32",
        "camvid:camvid-480x360?split=test&protocol=resize&to=36x48",
        "folder:cocostuff-sample?classes=181&protocol=resize&to=32",
    ],
)
def test_real_samples_are_evaluated(tmp_path: Path, text: str) -> None:
    data = opened(text)
    network = torch.nn.Conv2d(3, len(data.classes), 3, padding=1)
    torch.nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    spec = f"{text.partition(':')[0]}:{SHARED}/{text.partition(':')[2]}"
    result = robseg.evaluate(network, spec, eps=4, attack="fgsm", limit=2, out=tmp_path / "run", progress=False)
    assert result.data.name.startswith(data.name)
    assert result.data.void == data.void
    assert result.data.images == min(2, len(data))
    assert result.radii[0].worst_case.aacc <= result.clean.aacc
