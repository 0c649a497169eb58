"""What the user names becomes a model: files, functions of theirs as docs/models.md shows them, and mistakes."""

from __future__ import annotations

import hashlib
import http.server
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreign import assert_gradient, enliven, pictures
from robseg.errors import UserError
from robseg.loading.checkpoint import load_weights
from robseg.loading.model_source import open_model
from robseg.loading.normaliser import take_normaliser
from robseg.loading.places import fetch
from robseg.models.architectures import ARCHITECTURES
from robseg.models.published import PUBLISHED

DOCS = Path(__file__).parents[1] / "docs" / "models.md"

THEIR_CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.head(self.conv(x).tanh())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder: their_code.py, and mine.py put together from the Python blocks of the documentation."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "their_code.py").write_text(THEIR_CODE)
    (tmp_path / "mine.py").write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for module in ("mine", "their_code"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield tmp_path
    for module in ("mine", "their_code"):
        sys.modules.pop(module, None)


def their_net(folder: Path, classes: int) -> nn.Module:
    """Their network with weights, which are in theirs.pth too, as DataParallel would name them."""
    from their_code import Net

    net = enliven(Net(classes))
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "theirs.pth")
    return net


def up(logits: Tensor, aligned: bool = False) -> Tensor:
    return F.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=aligned)


CAFFE = torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
SHOWN = {
    "plain": (4, lambda net, x: up(net(x))),
    "bgr": (4, lambda net, x: up(net(255 * x.flip(1) - CAFFE))),
    "symmetric": (4, lambda net, x: up(net(2 * x - 1))),
    "half": (4, lambda net, x: up(net(x), aligned=True)),
    "background_first": (5, lambda net, x: up(net(x)[:, 1:])),
    "binary": (1, lambda net, x: F.pad(up(net(x)), (0, 0, 0, 0, 1, 0))),
    "probabilities": (4, lambda net, x: up(net(x).softmax(1).log())),
    "fixed_size": (4, lambda net, x: up(net(F.interpolate(x, (64, 96), mode="bilinear", antialias=True)))),
    "multiples": (
        4, lambda net, x: F.interpolate(net(F.pad(x, (0, 0, 0, 16))), (64, 64), mode="bilinear")[:, :, :48]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_functions_of_the_documentation(folder: Path, name: str) -> None:
    classes, wanted = SHOWN[name]
    net = their_net(folder, classes)
    model = open_model(f"mine:{name}", num_classes=4 if classes > 1 else 2, checkpoint="theirs.pth").eval()
    images = pictures(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), wanted(net, images), rtol=1e-4, atol=1e-5)
    assert_gradient(model, images)


def test_leftovers_of_the_documentation(folder: Path) -> None:
    net = their_net(folder, 4)
    weights = torch.load(folder / "theirs.pth")["state_dict"]
    torch.save(weights | {"module.aux_head.weight": torch.zeros(3)}, folder / "theirs.pth")
    with pytest.raises(UserError, match=r"not the model's: module.aux_head.weight"):
        open_model("mine:plain", num_classes=4, checkpoint="theirs.pth")
    images = pictures(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(open_model("mine:with_leftovers", num_classes=4)(images), up(net(images)))


def test_documentation_is_short_and_names_real_commands() -> None:
    from typer.testing import CliRunner

    from robseg.cli import app

    text = DOCS.read_text(encoding="utf-8")
    kinds = text.split("# Odd inputs")[0].split("\n## ")[1:]
    assert len(kinds) == 6
    for kind in kinds:
        lines = [line for line in kind.splitlines()[1:] if line.strip()]
        assert len(lines) <= 15, kind.splitlines()[0]
    known = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).output
    for command in re.findall(r"robseg evaluate (.*)", text):
        for option in re.findall(r"(--[a-z-]+)", command.split("#")[0]):
            assert option in known
    for name in re.findall(r"robseg (?:models|evaluate) ([a-z0-9_]+_[a-z0-9_]+)", text):
        assert name in PUBLISHED


def test_weights_of_a_wrapped_network_keep_their_account(folder: Path) -> None:
    """A checkpoint fits the network in a wrapper or the wrapper, but every entry still counts."""
    from mine import Bgr

    net = their_net(folder, 4)
    inner = net.state_dict()
    for names in (inner, {f"net.{k}": v for k, v in inner.items()}, {f"module.net.{k}": v for k, v in inner.items()}):
        wrapper = nn.Sequential(Bgr(enliven(type(net)(4), seed=3)))
        load_weights(wrapper, names, source="x.pth")
        assert all(torch.equal(wrapper[0].net.state_dict()[k], inner[k]) for k in inner)
    wrapper = Bgr(enliven(type(net)(4), seed=3))
    before = {k: v.clone() for k, v in wrapper.state_dict().items()}
    for spoilt, words in (
        ({k: v for k, v in inner.items() if k != "conv.bias"}, "missing: conv.bias"),
        (inner | {"neck.weight": torch.zeros(2)}, "not the model's: neck.weight"),
        (inner | {"conv.bias": torch.zeros(9)}, r"conv.bias \(\[9\] in the file, \[8\]"),
    ):
        with pytest.raises(UserError, match=words):
            load_weights(wrapper, spoilt, source="x.pth")
    assert all(torch.equal(wrapper.state_dict()[k], before[k]) for k in before)


def test_checkpoint_of_other_classes_says_both_and_how_to_pick(tmp_path) -> None:
    torch.save(ARCHITECTURES["small_unet"](num_classes=5).state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"has 5 classes, the model 7 .*data with 5 classes.*--classes 5"):
        open_model("small_unet", num_classes=7, checkpoint=str(tmp_path / "five.pth"))


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [
        ("pspnet50_cityscapes", 21, "name the model pspnet50_voc, which has 21"),
        ("pspnet50_cityscapes", 150, "name the bare architecture pspnet50, with data of 150 classes"),
    ],
)
def test_published_model_of_other_classes(tmp_path, monkeypatch, name, classes, words) -> None:
    from dataclasses import replace

    from robseg.models.dilated import PSP, DilatedSegmenter

    monkeypatch.setitem(
        PUBLISHED, name, replace(PUBLISHED[name], build=lambda count: DilatedSegmenter((1, 1, 1, 1), PSP, count))
    )
    torch.save(DilatedSegmenter((1, 1, 1, 1), PSP, classes).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"has {classes} classes, the model 19.*{words}"):
        open_model(name, num_classes=19, checkpoint=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("place", ["", "module.", "module.normalize."])
def test_normaliser_in_a_file_is_kept(tmp_path, place) -> None:
    network = enliven(ARCHITECTURES["small_unet"](num_classes=3))
    mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.5, 0.25, 0.75])
    beside = {f"{place}mean": mean.view(1, 3, 1, 1), f"{place}std": std.view(1, 3, 1, 1)}
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()} | beside, tmp_path / "x.pth")
    model = open_model("small_unet", num_classes=3, checkpoint=str(tmp_path / "x.pth")).eval()
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)))
    plain = open_model("small_unet", num_classes=3, checkpoint=str(tmp_path / "x.pth"), mean=[0] * 3, std=[1] * 3)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), network(images))


def test_what_is_no_normaliser_stays() -> None:
    vector, other = torch.ones(3), torch.ones(4)
    for state in (
        {"mean": vector},
        {"mean": vector, "std": other},
        {"mean": vector, "std": torch.zeros(3)},
        {"a.mean": vector, "a.std": vector, "b.mean": vector, "b.std": vector},
    ):
        assert take_normaliser(state) == (state, None)
    own = nn.Module()
    own.register_buffer("mean", vector)
    assert take_normaliser({"mean": vector, "std": vector}, own)[1] is None
    counted = take_normaliser({"mean": 255 * torch.tensor([0.4, 0.5, 0.6]), "std": torch.full((3,), 51.0)})[1]
    assert counted is not None
    assert counted.mean == pytest.approx((0.4, 0.5, 0.6))
    assert counted.std == pytest.approx((0.2, 0.2, 0.2))


@pytest.fixture
def server(tmp_path):
    """A web server over a folder, as far as the next computer."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "web"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "web").mkdir()
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", tmp_path / "web"
    served.shutdown()
    served.server_close()


def test_checkpoint_from_a_url(server, tmp_path, monkeypatch) -> None:
    address, web = server
    monkeypatch.setenv("ROBSEG_HOME", str(tmp_path / "home"))
    torch.save(ARCHITECTURES["small_unet"](num_classes=3).state_dict(), web / "x.pth")
    right = hashlib.sha256((web / "x.pth").read_bytes()).hexdigest()
    # As a path, in which one of the two slashes is lost.
    model = open_model("small_unet", num_classes=3, checkpoint=str(Path(f"{address}/x.pth#sha256={right}")))
    assert model(pictures(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    (web / "x.pth").unlink()
    assert fetch(f"{address}/x.pth").is_file()
    with pytest.raises(UserError, match=rf"has the sha256 {right}, not {'0' * 64}"):
        fetch(f"{address}/x.pth#sha256={'0' * 64}")
    with pytest.raises(UserError, match=r"cannot be downloaded.*or put it at .*absent.pth"):
        fetch(f"{address}/absent.pth")
    assert not list((tmp_path / "home").rglob("*.part"))


def test_file_of_the_hub_without_network(monkeypatch) -> None:
    import huggingface_hub

    def offline(*arguments: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"download it from https://huggingface.co/someone/model and give its path"):
        fetch("hf:someone/model/sub/x.pth")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small_unt", "did you mean small_unet"),
        ("small_unet", "without weights"),
        ("./absent", "no folder and no file"),
        ("absent.pth", "no folder and no file"),
        ("absent_module:f", "cannot be imported"),
        ("robseg.errors:UserErorr", "did you mean UserError"),
        ("robseg.spec:parse_spec", "gave|failed"),
        ("demo-plain", "robseg demo"),
        ("weights.pth", "no published model"),
        ("other_folder", "name it as hf:"),
        ("cut.pth", "truncated or damaged"),
        ("code.pth", "running code"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, name, words) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBSEG_HOME", str(tmp_path / "home"))
    torch.save(nn.Linear(2, 2).state_dict(), "weights.pth")
    Path("cut.pth").write_bytes(Path("weights.pth").read_bytes()[:-200])
    torch.save({"model": nn.Linear(2, 2)}, "code.pth")
    Path("other_folder").mkdir()
    Path("other_folder", "config.json").write_text("{}")
    with pytest.raises(UserError, match=words) as raised:
        open_model(name, num_classes=3)
    assert "\n" not in str(raised.value)
