"""The list of published models, what is said of each, and where its weights are looked for."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from robseg.cli import app
from robseg.errors import UserError
from robseg.loading import places
from robseg.loading.identify import published_fits
from robseg.loading.model_source import known_models, open_model
from robseg.models.architectures import ARCHITECTURES
from robseg.models.published import PUBLISHED


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_list_names_every_model() -> None:
    text = printed()
    assert all(name in text for name in (*PUBLISHED, *ARCHITECTURES))
    row = next(line for line in text.splitlines() if "upernet_convnext_s_cvst_voc" in line)
    assert row.split() == ["upernet_convnext_s_cvst_voc", "voc", "21", "76.6", "66.0", "36.4", "no"]
    assert text.count("licence: not stated") == len({(m.source, m.input) for m in PUBLISHED.values()})


def test_list_fits_a_terminal() -> None:
    lines = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).output.splitlines()
    assert any(line.split()[:3] == ["upernet_convnext_t_cvst_ade20k", "ade20k", "151"] for line in lines)


@pytest.mark.parametrize("name", PUBLISHED)
def test_details(name: str) -> None:
    model, text = PUBLISHED[name], printed(name)
    assert model.architecture in ARCHITECTURES
    assert name == f"{model.architecture}_{model.data}"
    words = (model.architecture, f"{model.num_classes} classes", model.source, model.input, model.file, model.page)
    assert all(word in text for word in words)
    assert ("0.485" in text) == (model.mean is not None)
    assert model.scores == () or f"mIoU {model.scores[0].miou:g} %" in text
    assert all(a.eps < b.eps and a.miou >= b.miou for a, b in zip(model.scores, model.scores[1:], strict=False))


def test_details_of_an_architecture() -> None:
    assert "DeepLabv3 on ResNet-101" in printed("deeplabv3_101")
    assert isinstance(CliRunner().invoke(app, ["models", "deeplab"]).exception, UserError)


def test_weights_are_looked_for_where_the_error_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBSEG_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"UperNet-ConvNext-T_CVST, PASCAL-VOC.*github.com.*--checkpoint") as raised:
        open_model("upernet_convnext_t_cvst_voc", num_classes=21)
    place = tmp_path / "models" / "upernet_convnext_t_cvst_voc.pth"
    assert str(place) in str(raised.value)
    assert places.stored_weights("upernet_convnext_t_cvst_voc") is None
    place.parent.mkdir()
    torch.save({"head.weight": torch.zeros(3)}, place)
    with pytest.raises(UserError, match=f"'{place}' is of another architecture"):
        open_model("upernet_convnext_t_cvst_voc", num_classes=21)
    row = next(line for line in printed().splitlines() if "upernet_convnext_t_cvst_voc" in line)
    assert row.split()[-1] == "yes"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_told_apart_by_their_entries(name: str) -> None:
    with torch.device("meta"):
        shapes = {
            key: value.shape for key, value in PUBLISHED[name].build(PUBLISHED[name].num_classes).state_dict().items()
        }
    # One number seen many times: the check is of names and shapes, and needs no memory.
    state = {f"module.{key}": torch.ones(1).expand(shape) if shape else torch.ones(()) for key, shape in shapes.items()}
    fits = published_fits({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")})
    twin = name.replace("_ddcat", "")
    # Without the branches of training a DDC-AT file cannot be told from that of the undefended baseline.
    assert fits in ([name], [twin, name], [twin, twin.replace("50_", "50_ddcat_")])


def test_known_models_are_distinct() -> None:
    names = known_models()
    assert len(set(names)) == len(names)
    assert {"demo-plain", "small_unet", "segmenter_vit_s_ade20k"} <= set(names)
