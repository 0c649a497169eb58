"""The command line as a user types it: what it prints, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robseg import cli
from robseg.records import files
from tiny import tiny_problem

FACTORY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from torch import nn
from tiny import Tiny, tiny_problem

def make(num_classes):
    return tiny_problem(1, num_classes, (1, 16, 16))[0].float()

def fixed():
    return make(3)

def two(depth, width):
    return make(depth)

def nan(num_classes):
    model = make(num_classes)
    model.head.bias.data[0] = float("nan")
    return model

def wrong():
    return 3

def fails(num_classes):
    raise RuntimeError("no such depth")

ready = make(3)
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a factory and a folder set of 3 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "factory", raising=False)
    (tmp_path / "factory.py").write_text(FACTORY)
    for part in ("images", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
    network = tiny_problem(1, 3, (1, 16, 16))[0].float()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (18, 22, 3), dtype=np.uint8)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        label = network(image).argmax(1)[0].numpy().astype(np.uint8)
        label[:2] = 255
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "set" / "labels" / f"{index}.png")
    (tmp_path / "set" / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path


def robseg(capsys, monkeypatch, *arguments):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["robseg", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


BASE = ["--data", "folder:set", "--steps", "3", "--device", "cpu", "--out", "run"]


def test_evaluate_prints_a_table_and_says_where_things_are(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE, "--eps", "2", "--eps", "8")
    assert (code, err) == (0, "")
    for word in ("clean", "apgd-mce-bal", "worst case", "mIoU", "run/report.html", "deviations", "3 images"):
        assert word in out
    result = json.loads((here / "run" / "result.json").read_text())
    assert [c["name"] for c in result["data"]["classes"]] == ["sky", "road", "car"]
    assert result["settings"]["attacks"][0]["steps"] == 3
    # The same again goes on with the finished run, and a report can be written anew.
    assert robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE, "--eps", "2", "--eps", "8")[0] == 0
    code, out, _ = robseg(capsys, monkeypatch, "report", "a=run", "b=run", "--out", "both.html")
    assert code == 0
    assert (here / "both.html").exists()


def test_names_are_no_markup(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    (here / "set").rename(here / "a[red]b[x]")
    arguments = ["evaluate", "factory:make", *BASE, "--eps", "1", "--attack", "fgsm", "--data", "folder:a[red]b[x]"]
    code, out, err = robseg(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "")
    assert "factory:make on folder a[red]b[x], 3 images" in out


@pytest.mark.parametrize("model", ["factory:make", "factory:fixed", "factory:ready"])
def test_factories(here, capsys, monkeypatch, model):
    code, _, err = robseg(capsys, monkeypatch, "evaluate", model, *BASE, "--eps", "0", "--attack", "fgsm")
    assert (code, err) == (0, "")
    assert json.loads((here / "run" / "result.json").read_text())["clean"]["aacc"] == 1


def test_checkpoint_replaces_weights(here, capsys, monkeypatch):
    other = tiny_problem(9, 3, (1, 16, 16))[0].float()
    torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}, "epoch": 3}, "weights.pth")
    code, _, err = robseg(
        capsys, monkeypatch, "evaluate", "factory:make", *BASE, "--eps", "0", "--checkpoint", "weights.pth"
    )
    assert (code, err) == (0, "")
    assert json.loads((here / "run" / "result.json").read_text())["clean"]["aacc"] < 1


def _damage(path):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def _set_label(value):
    def change():
        label = np.array(Image.open("set/labels/1.png"))
        label[5, 7] = value
        Image.fromarray(label).save("set/labels/1.png")

    return change


def _empty():
    for file in Path("set").rglob("*.png"):
        file.unlink()


def _other_checkpoint():
    torch.save({"backbone.conv1.weight": torch.zeros(3)}, "other.pth")


def _other_run():
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")


MISTAKES = {
    "image does not decode": (lambda: _damage("set/images/1.png"), [], "set/images/1.png"),
    "label of another size": (
        lambda: Image.fromarray(np.zeros((9, 9), np.uint8)).save("set/labels/1.png"), [], "set/labels/1.png"),
    "label value outside": (_set_label(7), [], "7"),
    "empty folder": (_empty, [], "set"),
    "no such folder": (None, ["--data", "folder:nowhere"], "nowhere"),
    "unknown data": (None, ["--data", "camvit:set"], "camvid"),
    "unknown data option": (None, ["--data", "folder:set?clases=3"], "classes"),
    "other checkpoint": (_other_checkpoint, ["--checkpoint", "other.pth"], "conv1.weight"),
    "no checkpoint": (None, ["--checkpoint", "missing.pth"], "missing.pth"),
    "negative eps": (None, ["--eps", "-1"], "eps must be between 0 and 255"),
    "eps over 255": (None, ["--eps", "256"], "eps must be between 0 and 255"),
    "eps nan": (None, ["--eps", "nan"], "eps must be between 0 and 255"),
    "unknown attack": (None, ["--attack", "sae"], "did you mean sea"),
    "unknown attack option": (None, ["--attack", "pgd?step=3"], "step"),
    "steps 0": (None, ["--steps", "0"], "steps must be at least 1"),
    "limit 0": (None, ["--limit", "0"], "limit"),
    "batch size 0": (None, ["--batch-size", "0"], "batch_size"),
    "folder of something else": (_other_run, [], "not empty"),
    "out is a file": (lambda: Path("run").write_text("x"), [], "run"),
    "out below a file": (lambda: Path("file").write_text("x"), ["--out", "file/run"], "file"),
    "long side alone": (None, ["--long-side", "64"], "window"),
    "window 0": (None, ["--window", "0"], "window"),
    "mean alone": (None, ["--mean", "0,0,0"], "std"),
    "imagenet and other": (None, ["--mean", "imagenet", "--std", "1,1,1"], "give --mean imagenet and leave --std away"),
    "mean of two": (None, ["--mean", "0,0", "--std", "1,1,1"], "three numbers"),
    "device": (None, ["--device", "gpu0"], "gpu0"),
    "cuda not there": (None, ["--device", "cuda:93"], "cuda:93"),
    "train data of other classes": (None, ["--train-data", "shapes?count=2&size=32"], "classes"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(here, capsys, monkeypatch, mistake):
    prepare, arguments, words = MISTAKES[mistake]
    if prepare:
        prepare()
    code, _, err = robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE, *arguments)
    _is_one_sentence(code, err, words)
    assert not (here / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("factory:nan", "NaN logits"),
        ("factory:mak", "did you mean make"),
        ("factory:ready.x", "Unknown attribute of factory:ready 'x'"),
        ("factory:number.x", "factory:number has no attribute 'x'"),
        ("factory:two", "depth, width"),
        ("factory:wrong", "gave a int"),
        ("factory:fails", "no such depth"),
        ("nofactory:make", "nofactory"),
        ("demo-plane", "demo-plain"),
        ("./nowhere", "no folder"),
        ("set", "model.yaml"),
        ("small_unet", "--checkpoint"),
        ("pspnet50_voc", "--checkpoint"),
    ],
)
def test_wrong_models(here, capsys, monkeypatch, model, words):
    monkeypatch.setenv("ROBSEG_HOME", str(here / "home"))
    code, _, err = robseg(capsys, monkeypatch, "evaluate", model, *BASE)
    _is_one_sentence(code, err, words)
    assert not (here / "run").exists() or model == "factory:nan"


def test_another_run_is_refused_with_the_key(here, capsys, monkeypatch):
    assert robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE, "--eps", "4")[0] == 0
    before = (here / "run" / "result.json").read_bytes()
    code, _, err = robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE, "--eps", "4", "--seed", "3")
    _is_one_sentence(code, err, "seed is 0 there and 3 now")
    assert (here / "run" / "result.json").read_bytes() == before


def _is_one_sentence(code, err, words):
    assert code == 2, err
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_full_disk(here, capsys, monkeypatch, tmp_path):
    """On a small tmpfs where one can be mounted; else the first write that does not fit is refused as a disk would."""
    arguments = ["evaluate", "factory:make", *BASE[:-1], "small/run", "--eps", "4", "--save-images", "float"]
    (here / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", here / "small"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        if not mounted:

            def full(*_, **__):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(files.Path, "replace", full)
        code, _, err = robseg(capsys, monkeypatch, *arguments)
        _is_one_sentence(code, err, "No space is left")
        assert "small/run" in err
        assert not [p for p in (here / "small").rglob("*") if p.name.endswith(".part")]
        assert not (here / "small" / "run" / "result.json").exists()
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=20m", here / "small"], check=True)
            assert robseg(capsys, monkeypatch, *arguments)[0] == 0
    finally:
        if mounted:
            subprocess.run(["umount", here / "small"], check=True)


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['robseg', '--help']\nfrom robseg.cli import app\ntry: app()\nexcept SystemExit: pass\n"
    )
    check = "heavy = {'torch', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout


def test_our_own_faults_exit_with_1(here, capsys, monkeypatch):
    monkeypatch.setattr("robseg.evaluation.prepare.survey", lambda *_: 1 / 0)
    code, _, err = robseg(capsys, monkeypatch, "evaluate", "factory:make", *BASE)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "fault of robseg" in err


def test_version(capsys, monkeypatch):
    code, out, _ = robseg(capsys, monkeypatch, "--version")
    assert code == 0
    assert out.startswith("robseg 0.")
