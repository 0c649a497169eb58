"""Models of other libraries: built from their configuration, saved, opened as the command line does, and compared."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreign import (
    MEAN,
    QUERIES,
    SEMANTIC,
    STD,
    assert_gradient,
    enliven,
    normalised,
    oneformer,
    pictures,
    segformer,
    write_processor,
)
from robseg.errors import UserError
from robseg.loading.model_source import open_model
from robseg.models.adapters import FixedBatch, FlippedChannels, Padded, Resized, query_logits
from robseg.models.wrapper import SegmentationModel


def library(name: str) -> Any:
    """A package of an extra; the test is skipped without it, or where its build is for another torch."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} is not installed or does not work: {error}")


@pytest.fixture
def transformers():
    return library("transformers")


def saved(transformers: Any, folder: Path, kind: str, config: Any, **processor: Any) -> nn.Module:
    network = enliven(getattr(transformers, kind)(config))
    network.save_pretrained(folder)
    write_processor(folder, **processor)
    return network


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("name", SEMANTIC)
def test_transformers_semantic_segmentation(transformers, tmp_path, name) -> None:
    kind, config = SEMANTIC[name]
    network = saved(transformers, tmp_path, kind, config(transformers))
    model = open_model(f"hf:{tmp_path}", num_classes=5)
    images = pictures(2, 3, 64, 64)
    with torch.no_grad():
        wanted = resized(network(normalised(images)).logits, (64, 64))
        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-5)
        assert model(images).std(dim=(0, 2, 3)).min() > 1e-3
        # Images of a size the network was not made for, whether or not it takes them itself.
        assert model(pictures(1, 3, 75, 52)).shape == (1, 5, 75, 52)
    assert_gradient(model, images)


def own_scores(network: nn.Module, x: Tensor, **inputs: Any) -> Tensor:
    raw = network(x, **inputs)
    masks = resized(raw.masks_queries_logits, tuple(x.shape[-2:])).sigmoid()
    return torch.einsum("bqc,bqhw->bchw", raw.class_queries_logits.softmax(-1)[..., :-1], masks)


@pytest.mark.parametrize("name", QUERIES)
def test_transformers_mask_queries(transformers, tmp_path, name) -> None:
    kind, config = QUERIES[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this version of transformers has no {kind}")
    network = saved(transformers, tmp_path, kind, config(transformers))
    model = open_model(f"hf:{tmp_path}", num_classes=5)
    images = pictures(2, 3, 64, 64)
    with torch.no_grad():
        wanted = own_scores(network, normalised(images))
        torch.testing.assert_close(model(images).exp(), wanted, rtol=1e-3, atol=1e-6)
        assert model(pictures(1, 3, 96, 70)).shape == (1, 5, 96, 70)
    if name == "EoMT":  # Its softmax is in float32 whatever the rest is in.
        assert_gradient(model, images, tolerance=1e-2, step=1e-4)
    else:
        assert_gradient(model, images)


def test_oneformer_is_told_its_task(transformers, tmp_path) -> None:
    network = saved(transformers, tmp_path, "OneFormerForUniversalSegmentation", oneformer(transformers))
    with pytest.raises(UserError, match="tokenizer"):
        open_model(f"hf:{tmp_path}", num_classes=5)
    letters = sorted({*"thetaskissemantic"})
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(["the task is semantic"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert len(set(tokens[0].tolist())) > 8
    model = open_model(f"hf:{tmp_path}", num_classes=5)
    images = pictures(2, 3, 64, 64)
    with torch.no_grad():
        wanted = own_scores(network, normalised(images), task_inputs=tokens.expand(2, -1))
        torch.testing.assert_close(model(images).exp(), wanted, rtol=1e-3, atol=1e-6)
    assert_gradient(model, images)


def test_query_logits_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 30.0, 300.0):
        classes = (scale * torch.randn(2, 9, 6, generator=generator)).requires_grad_()
        masks = (scale * torch.randn(2, 9, 4, 5, generator=generator)).requires_grad_()
        logits = query_logits(classes, masks)
        gradients = torch.autograd.grad(logits.sum(), (classes, masks))
        assert all(bool(value.isfinite().all()) for value in (logits, *gradients))
        exact = query_logits(classes.double(), masks.double())
        if scale == 1.0:
            torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    # The masks of all queries are far below 1e-38, so their plain sum would be 0 and its logarithm -inf.
    low = query_logits(torch.zeros(1, 3, 3), torch.full((1, 3, 2, 2), -200.0))
    torch.testing.assert_close(low, torch.full((1, 2, 2, 2), -200.0))


CONVENTIONS = {
    "no mean": ({"do_normalize": False}, lambda x: x),
    "not rescaled": (
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
        lambda x: (255 * x - 120) / 60,
    ),
    "range [0, 255]": ({"do_rescale": False, "do_normalize": False}, lambda x: 255 * x),
    "range [0, 2]": ({"rescale_factor": 1 / 127.5}, lambda x: normalised(2 * x)),
    "BGR": ({"do_normalize": False, "do_flip_channel_order": True}, lambda x: x.flip(1)),
    "MobileViT's own": (
        {"do_normalize": None, "do_flip_channel_order": True, "image_processor_type": "MobileViTImageProcessor"},
        lambda x: x.flip(1),
    ),
    "short file": ({"do_normalize": None, "do_rescale": True}, normalised),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_of_image_processors(transformers, tmp_path, name) -> None:
    changes, convention = CONVENTIONS[name]
    network = saved(transformers, tmp_path, SEMANTIC["SegFormer"][0], segformer(transformers), **changes)
    images = pictures(2, 3, 48, 64)
    with torch.no_grad():
        wanted = resized(network(convention(images)).logits, (48, 64))
        torch.testing.assert_close(open_model(f"hf:{tmp_path}", num_classes=5)(images), wanted, rtol=1e-4, atol=1e-5)


def test_processor_written_by_the_library(transformers, tmp_path) -> None:
    network = saved(transformers, tmp_path, SEMANTIC["SegFormer"][0], segformer(transformers))
    (tmp_path / "preprocessor_config.json").unlink()
    transformers.SegformerImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        wanted = resized(network(normalised(images)).logits, (32, 32))
        torch.testing.assert_close(open_model(f"hf:{tmp_path}", num_classes=5)(images), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "inside"), [("processor", (40, 56)), ("64x32", (64, 32)), ("48", (48, 72)), ("32x48", (32, 48))]
)
def test_size_inside_the_model(transformers, tmp_path, option, inside) -> None:
    kind, config = SEMANTIC["SegFormer"]
    network = saved(transformers, tmp_path, kind, config(transformers), size={"height": 40, "width": 56})
    model = open_model(f"hf:{tmp_path}?size={option}", num_classes=5)
    images = pictures(2, 3, 32, 48)
    smaller = F.interpolate(normalised(images), size=inside, mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images), resized(network(smaller).logits, (32, 48)), rtol=1e-4, atol=1e-5)
    assert_gradient(model, images)


def test_command_line_evaluates_a_folder(transformers, tmp_path) -> None:
    from robseg.evaluation.evaluate import evaluate

    saved(transformers, tmp_path / "model", SEMANTIC["SegFormer"][0], segformer(transformers, labels=2))
    data = [(pictures(3, 32, 32, seed=i), torch.randint(0, 2, (32, 32)), str(i)) for i in range(2)]
    result = evaluate(
        f"hf:{tmp_path / 'model'}", data, classes=2, eps=8, attack="fgsm", out=tmp_path / "run", progress=False
    )
    assert result.at(8).worst_case.aacc <= result.clean.aacc
    assert result.model.mean == [round(value, 6) for value in MEAN]


def _spoil(folder: Path, file: str, content: bytes | None) -> None:
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def _reshape(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS = {
    "no weights": (lambda f: _spoil(f, "model.safetensors", None), "has no weights"),
    "no config": (lambda f: _spoil(f, "config.json", None), "has no config.json"),
    "no processor": (lambda f: _spoil(f, "preprocessor_config.json", None), "--mean and --std"),
    "truncated": (lambda f: _spoil(f, "model.safetensors", (f / "model.safetensors").read_bytes()[:9000]), "cannot be"),
    "bad JSON": (lambda f: _spoil(f, "preprocessor_config.json", b"{"), "not valid JSON"),
    "bad mean": (lambda f: write_processor(f, image_mean=[0.5]), "3 numbers each"),
    "another task": (lambda f: _reshape(f, {"architectures": ["SegformerForImageClassification"]}), "another task"),
    "no segmentation": (lambda f: _spoil(f, "config.json", b'{"model_type": "bert"}'), "no semantic"),
    "unknown kind": (lambda f: _reshape(f, {"model_type": "nonsense"}), "no configuration of a model"),
    "own code": (
        lambda f: _reshape(f, {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}),
        "its own code",
    ),
    "another shape": (lambda f: _reshape(f, {"decoder_hidden_size": 24}), "linear_|of another shape|cannot be loaded"),
    "missing entries": (lambda f: _reshape(f, {"depths": [2, 1, 1, 1]}), "missing"),
    "left over entries": (lambda f: _reshape(f, {"num_encoder_blocks": 3}), "not the model's|cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_folders(transformers, tmp_path, name) -> None:
    spoil, words = FAULTS[name]
    saved(transformers, tmp_path, SEMANTIC["SegFormer"][0], segformer(transformers))
    spoil(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        open_model(f"hf:{tmp_path}", num_classes=5)
    assert "\n" not in str(raised.value)


def test_folder_without_weights_takes_a_checkpoint(transformers, tmp_path) -> None:
    network = saved(transformers, tmp_path, SEMANTIC["SegFormer"][0], segformer(transformers))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "own.pth")
    model = open_model(f"hf:{tmp_path}", num_classes=5, checkpoint=str(tmp_path / "own.pth"), mean=MEAN, std=STD)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), resized(network(normalised(images)).logits, (32, 32)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:", "needs a folder"),
        ("hf:./absent", "no folder './absent'"),
        ("hf:a/b/c", "no folder 'a/b/c'"),
        ("hf:x?sise=3", "did you mean size"),
    ],
)
def test_names_that_are_none(name, words) -> None:
    with pytest.raises(UserError, match=words):
        open_model(name, num_classes=5)


def test_hub_without_network(transformers, monkeypatch) -> None:
    import huggingface_hub

    def offline(*args: Any, local_files_only: bool = False, **options: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing") if local_files_only else OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"preprocessor_config.json and model.safetensors of https.*someone/model"):
        open_model("hf:someone/model", num_classes=5)


def test_hub_from_its_cache(transformers, tmp_path, monkeypatch) -> None:
    import huggingface_hub

    saved(transformers, tmp_path, SEMANTIC["SegFormer"][0], segformer(transformers))
    asked = []

    def cached(name: str, *, local_files_only: bool = False, **options: Any) -> str:
        asked.append((name, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert open_model("hf:someone/model", num_classes=5)(pictures(1, 3, 32, 32)).shape == (1, 5, 32, 32)
    assert asked == [("someone/model", True)]


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvision(tmp_path, name) -> None:
    from robseg.models.published import IMAGENET_MEAN, IMAGENET_STD

    library("torchvision")
    models = importlib.import_module("torchvision.models")
    with pytest.raises(UserError, match="without weights"):
        open_model(f"torchvision:{name}", num_classes=4)
    with pytest.raises(UserError, match="did you mean fcn_resnet50"):
        open_model("torchvision:fcn_resnet5", num_classes=4)
    more = {} if name.startswith("lraspp") else {"aux_loss": True}
    network = enliven(models.get_model(name, weights=None, weights_backbone=None, num_classes=4, **more))
    torch.save(network.state_dict(), tmp_path / "own.pth")
    model = open_model(f"torchvision:{name}", num_classes=4, checkpoint=str(tmp_path / "own.pth")).eval()
    images = pictures(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(model(images), network((images - mean) / std)["out"], rtol=1e-4, atol=1e-5)
    assert_gradient(model, images)
    with pytest.raises(UserError, match=r"has 4 classes, the model 3.*data with 4 classes"):
        open_model(f"torchvision:{name}", num_classes=3, checkpoint=str(tmp_path / "own.pth"))


def test_smp(tmp_path) -> None:
    smp = library("segmentation_models_pytorch")
    network = smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    network.save_pretrained(tmp_path / "folder")
    images = pictures(2, 3, 64, 64)
    for name, checkpoint in (
        ("smp:unet?encoder=resnet18", str(tmp_path / "own.pth")),
        (f"smp:{tmp_path}/folder", None),
    ):
        model = open_model(name, num_classes=4, checkpoint=checkpoint, mean=MEAN, std=STD).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(images), network(normalised(images)), rtol=1e-4, atol=1e-5)
            assert model(pictures(1, 3, 63, 50)).shape == (1, 4, 63, 50)
    assert_gradient(model, pictures(2, 3, 45, 64))
    for name, words in {
        "smp:nonsense": "cannot build 'nonsense'",
        "smp:unet?encoder=resnet1": "cannot build",
    }.items():
        with pytest.raises(UserError, match=words):
            open_model(name, num_classes=4, checkpoint="x.pth")


@pytest.mark.parametrize("module", ["torchvision", "segmentation_models_pytorch", "transformers"])
def test_absent_libraries_are_named(module, monkeypatch) -> None:
    from robseg.loading import extras

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    form = {"torchvision": "torchvision:x", "transformers": "hf:a/b"}.get(module, "smp:x")
    with pytest.raises(UserError, match=rf"package {module}.*pip install 'robseg\["):
        open_model(form, num_classes=4)


def test_adapters_keep_places_and_values() -> None:
    same = nn.Identity()
    images = pictures(5, 3, 10, 14)
    torch.testing.assert_close(FlippedChannels(same)(images)[:, 0], images[:, 2])
    torch.testing.assert_close(Padded(same, 8)(images), images)
    torch.testing.assert_close(FixedBatch(same, 2)(images), images)
    assert Resized(same, 20)(images).shape == (5, 3, 20, 28)
    assert Resized(same, (6, 7))(images).shape == (5, 3, 6, 7)
    shrunk = SegmentationModel(Padded(nn.AvgPool2d(2), 8))(images)
    # Half the size: the padded input is what the logits are brought to before they are cropped.
    pooled = F.avg_pool2d(F.pad(images, (0, 2, 0, 6)), 2)
    torch.testing.assert_close(shrunk, resized(pooled, (16, 16))[..., :10, :14])
