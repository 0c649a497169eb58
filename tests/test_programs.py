"""Models saved as programs: TorchScript and torch.export files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreign import MEAN, STD, assert_gradient, enliven, normalised, pictures
from robseg.errors import UserError
from robseg.loading.model_source import open_model

# Files of TorchScript go on being about, and torch says at each that new ones should not be made.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class Small(nn.Module):
    """Logits at half the size, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.drop(F.gelu(self.conv(x))))}


def test_torchscript(tmp_path) -> None:
    network = enliven(Small())
    images = pictures(3, 3, 40, 24)
    torch.jit.script(network).save(tmp_path / "script.pt")
    torch.jit.trace(network, images, strict=False).save(tmp_path / "traced.ts")
    with torch.no_grad():
        wanted = resized(network(normalised(images))["out"], (40, 24))
    for name in (str(tmp_path / "script.pt"), f"torchscript:{tmp_path / 'traced.ts'}"):
        model = open_model(name, num_classes=4, mean=MEAN, std=STD)
        torch.testing.assert_close(model(images).detach(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images[:1]).detach(), wanted[:1], rtol=1e-4, atol=1e-5)
        assert_gradient(model, images)


@pytest.mark.parametrize("fixed", [False, True])
def test_torch_export(tmp_path, fixed) -> None:
    from robseg.models.modes import attack_mode

    network = enliven(Small())
    limits = {0: ("b", 1, 64), 2: ("h", 8, 512), 3: ("w", 8, 512)}
    dims = {axis: torch.export.Dim(name, min=low, max=high) for axis, (name, low, high) in limits.items()}
    example = pictures(2, 3, 32, 48)
    program = torch.export.export(network, (example,), dynamic_shapes=None if fixed else {"x": dims})
    torch.export.save(program, tmp_path / "model.pt2")
    images = pictures(3, 3, 32, 48)
    for name in (str(tmp_path / "model.pt2"), f"export:{tmp_path / 'model.pt2'}"):
        model = open_model(name, num_classes=4, mean=MEAN, std=STD)
        with torch.no_grad(), attack_mode(model):
            wanted = resized(network(normalised(images))["out"], (32, 48))
            torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(images[:1]), wanted[:1], rtol=1e-4, atol=1e-5)
            assert model(pictures(1, 3, 50, 20)).shape == (1, 4, 50, 20)
    assert_gradient(model, images)


def _program(path: Path) -> bytes:
    torch.export.save(torch.export.export(enliven(Small()), (pictures(2, 3, 32, 48),)), path)
    return path.read_bytes()


def test_faulty_programs(tmp_path) -> None:
    whole = _program(tmp_path / "whole.pt2")
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    torch.save(Small().state_dict(), tmp_path / "weights.pth")
    torch.jit.script(Small()).save(tmp_path / "script.pt")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    for name, words in {
        "export:cut.pt2": "truncated",
        "export:script.pt": "name it as torchscript:",
        "torchscript:whole.pt2": "name it as export:",
        "torchscript:weights.pth": "not saved by torch.jit.save",
        "export:absent.pt2": "no file",
        "export:whole.pt2?siez=3": "only one is size",
        "export:whole.pt2?size=3y": "HEIGHTxWIDTH",
        "model.onnx": "ONNX",
        "onnx:model.onnx": "ONNX",
    }.items():
        before, colon, after = name.rpartition(":")
        with pytest.raises(UserError, match=words):
            open_model(f"{before}{colon}{tmp_path / after}", num_classes=4)


def test_program_with_a_pickle_of_code_is_refused(tmp_path) -> None:
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    _program(tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as old, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as new:
        for name in old.namelist():
            bad = name.endswith("sample_inputs/model.pt")
            new.writestr(name, pickle.dumps(Evil()) if bad else old.read(name))
        assert any(name.endswith("sample_inputs/model.pt") for name in old.namelist())
    with pytest.raises(UserError, match="may run code"):
        open_model(str(tmp_path / "evil.pt2"), num_classes=4)
    assert not (tmp_path / "ran").exists()
