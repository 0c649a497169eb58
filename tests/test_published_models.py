"""The published architectures against figures that the published implementations printed, without their weights."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import filling
from robseg.loading.checkpoint import load_weights, read_checkpoint
from robseg.models.architectures import ARCHITECTURES
from robseg.models.convnext import ConvNeXt
from robseg.models.ddcat import BRANCHES, DDCAT, without_branches
from robseg.models.dilated import ASPP, PSP, DilatedSegmenter
from robseg.models.published import PUBLISHED, PublishedModel
from robseg.models.segmenter import MaskTransformer, Segmenter
from robseg.models.upernet import UPerNet
from robseg.models.vit import VisionTransformer
from robseg.training.methods import METHODS, batch_loss, divide
from robseg.training.trainee import Trainee

FIXTURES = Path(__file__).parent / "fixtures"
MANIFEST = json.loads(gzip.decompress((FIXTURES / "models_manifest.json.gz").read_bytes()))
FIGURES = json.loads((FIXTURES / "models.json").read_text())
TRAINING = json.loads((FIXTURES / "training.json").read_text())

# The same entry has the same value in every model, and drawing the values takes longer than all forward passes.
entry = cache(filling.tensor_for)


def published_weights(name: str) -> dict[str, Tensor]:
    prefix = MANIFEST[name]["prefix"]
    return {prefix + key: entry(prefix + key, tuple(shape)) for key, shape in MANIFEST[name]["entries"].items()}


def loaded(build: Callable[[int], nn.Module], name: str, file: Path, ignore: tuple[str, ...] = ()) -> nn.Module:
    """A network with the weights of a published model, from a checkpoint nested as its authors saved it."""
    model = PUBLISHED[name]
    weights = published_weights(name)
    if model.mean is None:
        torch.save(weights, file)
    else:
        momentum = {0: {"momentum_buffer": torch.zeros(64, 3, 3, 3)}}
        torch.save({"epoch": 50, "state_dict": weights, "optimizer": {"state": momentum, "param_groups": []}}, file)
    with torch.device("meta"):
        network = build(model.num_classes)
    network = network.to_empty(device="cpu")
    load_weights(network, read_checkpoint(file), source=str(file), ignore=ignore)
    file.unlink()
    return network.eval()


def normalised(model: PublishedModel, images: Tensor) -> Tensor:
    if model.mean is None or model.std is None:
        return images
    return (images - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]


def test_every_published_model_is_in_the_table() -> None:
    assert set(PUBLISHED) == set(MANIFEST) == {key.partition("/")[0] for key in FIGURES}
    for name, model in PUBLISHED.items():
        assert model.name == name
        assert model.prefix == MANIFEST[name]["prefix"]
        assert model.num_classes == next(
            figure["shape"][1] for key, figure in FIGURES.items() if key.startswith(f"{name}/")
        )


@pytest.mark.parametrize("name", MANIFEST)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    """Entry by entry in training; at test time the branches of DDC-AT, and nothing else, are gone."""
    model, entries = PUBLISHED[name], MANIFEST[name]["entries"]
    with torch.device("meta"):
        training, test = ARCHITECTURES[name.rpartition("_")[0]](model.num_classes), model.build(model.num_classes)
    assert {key: list(value.shape) for key, value in training.state_dict().items()} == entries
    kept = {key: shape for key, shape in entries.items() if not key.startswith(("cls2.", "mask1."))}
    assert {key: list(value.shape) for key, value in test.state_dict().items()} == kept


@pytest.mark.parametrize("key", FIGURES)
def test_logits_and_losses_are_the_published_ones(key: str, tmp_path: Path) -> None:
    name, _, size = key.partition("/")
    height, width = map(int, size.split("x"))
    model, figure = PUBLISHED[name], FIGURES[key]
    network = loaded(model.build, name, tmp_path / "model.pth", model.ignore)
    with torch.inference_mode():
        logits = network(normalised(model, filling.image(figure["seed"], 1, height, width)))
    assert list(logits.shape) == figure["shape"]
    assert logits.mean().item() == pytest.approx(figure["mean"], abs=1e-4 * figure["std"])
    assert logits.std().item() == pytest.approx(figure["std"], rel=1e-4)
    picked = logits[0, :, :: height // 8, :: width // 8].numpy()
    expected = np.load(FIXTURES / "models.npz")[key]
    assert np.abs(picked - expected).max() < 1e-4 * figure["std"]  # 1e-5 on the machine where this was written


@pytest.mark.parametrize("name", [name for name in TRAINING if name in PUBLISHED])
def test_losses_are_the_published_ones(name: str, tmp_path: Path) -> None:
    """The losses of four images, in evaluation mode so that dropout and batch norm stand still."""
    model, figure = PUBLISHED[name], TRAINING[name]
    network = loaded(ARCHITECTURES[name.rpartition("_")[0]], name, tmp_path / "model.pth")
    seed, (height, width) = TRAINING["seed"], TRAINING["size"]
    images = filling.image(seed, 4, height, width)
    labels = filling.labels(seed + 1, 4, height, width, 21)
    labels[:, :3, :4] = 255
    trainee = Trainee(network, model.mean, model.std)
    if isinstance(network, DDCAT):
        check_ddcat_losses(trainee, figure, images, labels)
        return
    with torch.no_grad():
        step = batch_loss(trainee.all_outputs(images), images, labels)
    found = [step.parts["main"].item(), step.parts["auxiliary"].item(), step.loss.item()]
    assert found == pytest.approx([figure[key] for key in ("main_loss", "aux_loss", "total")], rel=1e-5)


def check_ddcat_losses(trainee: Trainee, figure: dict[str, float], images: Tensor, labels: Tensor) -> None:
    noise = np.random.Generator(np.random.PCG64(TRAINING["seed"] + 2)).choice([-0.03, 0.03], size=images.shape)
    adversarial = (images + torch.from_numpy(noise.astype(np.float32))).clamp(0, 1)
    differs = divide(trainee, images, adversarial)
    assert differs.float().mean((1, 2)).tolist() == pytest.approx(figure["mask_target_share"])

    batch, mask_target = METHODS["ddcat"](trainee, images, lambda rows: adversarial[rows])
    assert mask_target is not None
    with torch.no_grad():
        step = batch_loss(trainee.all_outputs(batch), batch, labels, mask_target=mask_target)
        main = trainee(batch)
    logits_and_mask = (step.parts["main"] + step.parts["mask"]).item()
    found = [logits_and_mask, step.parts["auxiliary"].item(), step.loss.item(), step.logits.mean().item()]
    keys = ["logits_plus_mask_loss", "aux_loss", "total", "joined_mean"]
    assert found == pytest.approx([figure[key] for key in keys], rel=1e-5)
    assert main.mean().item() == pytest.approx(figure["main_branch_mean"], rel=1e-5)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "convolutional stem": lambda: UPerNet(ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32), stem=(4, 8), drop_path=0.5), 5),
    "patch stem": lambda: UPerNet(ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32)), 5),
    "segmenter": lambda: Segmenter(
        VisionTransformer(64, 16, width=24, depth=2, heads=3, drop_path=0.5), MaskTransformer(24, 24, 2, 3, 5)
    ),
    "pspnet": lambda: DilatedSegmenter((1, 1, 1, 1), PSP, 5),
    "deeplab": lambda: DilatedSegmenter((1, 1, 1, 1), ASPP, 5),
    "ddcat": lambda: DDCAT((1, 1, 1, 1), ASPP, 5),
}


@pytest.fixture(scope="module", params=BUILDERS)
def small(request: pytest.FixtureRequest) -> nn.Module:
    """Every architecture with few layers and fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[request.param]()


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (31, 40), (48, 64), (50, 35)])
def test_any_size_gives_logits_of_that_size(small: nn.Module, size: tuple[int, int]) -> None:
    """Padding is on the right and below, so that an image that was padded beforehand gives the same logits."""
    height, width = size
    if isinstance(small, UPerNet):
        padded = [max(side, 32) for side in size]
    else:
        multiple, rest = (16, 0) if isinstance(small, Segmenter) else (8, 1)
        padded = [math.ceil((side - rest) / multiple) * multiple + rest for side in size]
    image = filling.image(3, 2, height, width)
    with torch.no_grad():
        logits = small.eval()(image)
        again = small(F.pad(image, (0, padded[1] - width, 0, padded[0] - height)))[..., :height, :width]
    assert logits.shape == (2, 5, height, width)
    assert logits.isfinite().all()
    assert torch.allclose(logits, again, atol=1e-5)


def test_batches_do_not_mix_images_and_the_input_is_left_alone(small: nn.Module) -> None:
    images = filling.image(4, 3, 40, 56)
    kept = images.clone()
    with torch.no_grad():
        logits = small.eval()(images)
        alone = torch.cat([small(image[None]) for image in images])
    assert torch.allclose(logits, alone, atol=1e-4)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "segmenter"])
def test_training_outputs_agree_with_prediction(name: str) -> None:
    network, images = BUILDERS[name]().eval(), filling.image(7, 1, 40, 56)
    with torch.no_grad():
        outputs = network.training_outputs(images)  # type: ignore[operator]
        main = outputs.main if isinstance(network, DDCAT) else outputs[0]
        assert torch.equal(network(images), main)


def test_training_trains_every_parameter_and_reaches_the_image(small: nn.Module) -> None:
    """A parameter without gradient would stop distributed training at its second step."""
    small.train()
    images = filling.image(5, 8, 40, 56).requires_grad_()
    outputs = small(images)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    assert [output.shape[1] for output in outputs] == {DDCAT: [5, 2, 5, 5], Segmenter: [5]}.get(type(small), [5, 5])
    assert all(output.shape[2:] == (40, 56) for output in outputs)
    labels = filling.labels(6, 8, 40, 56, 2)
    sum(F.cross_entropy(output, labels) for output in outputs).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    untrained = [name for name, p in small.named_parameters() if p.requires_grad and p.grad is None]
    small.zero_grad()
    assert untrained == []


def test_networks_can_be_copied_and_pickled(small: nn.Module) -> None:
    twin = pickle.loads(pickle.dumps(small))
    assert torch.equal(twin.eval()(torch.zeros(1, 3, 32, 32)), small.eval()(torch.zeros(1, 3, 32, 32)))


def test_ddcat_branches_vanish_at_test_time() -> None:
    """Prediction neither runs nor needs them: a network without them, as large as any other, gives the same logits."""
    images = filling.image(8, 1, 41, 57)
    network, plain = DDCAT((1, 1, 1, 1), ASPP, 5).eval(), without_branches((1, 1, 1, 1), ASPP, 5).eval()
    load_weights(plain, network.state_dict(), source="DDC-AT", ignore=BRANCHES)
    for branch in (network.cls2, network.mask1, network.aux_cls1):
        for parameter in branch.parameters():
            nn.init.constant_(parameter, torch.nan)
    with torch.no_grad():
        logits = network(images)
        assert logits.isfinite().all()
        assert torch.equal(plain(images), logits)
    never_had_any = DilatedSegmenter((1, 1, 1, 1), ASPP, 5)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in never_had_any.parameters())


@pytest.mark.parametrize("chosen", [0, 1])
def test_ddcat_joins_by_the_mask(chosen: int) -> None:
    network = DDCAT((1, 1, 1, 1), ASPP, 5).eval()
    images = filling.image(9, 2, 33, 41)
    with torch.no_grad():
        network.mask1[4].bias.copy_(torch.tensor([1e4 * (1 - chosen), 1e4 * chosen]))
        outputs = network.training_outputs(images)
        network.cls1, network.cls2 = network.cls2, network.cls1
        swapped = network.training_outputs(images)
    assert torch.equal(outputs.joined, (outputs if chosen == 0 else swapped).main)
    assert not torch.equal(outputs.main, swapped.main)


# ImageNet models of torchvision and timm without their classifier (and, for ConvNeXt, with three more output norms).
DEEP_STEM = -9408 - 128 + 112320 + 512 + 4096 + 16384
PARAMETERS = {
    "upernet_convnext_t": 28589128 - 769000 + 1344,
    "upernet_convnext_s": 50223688 - 769000 + 1344,
    "upernet_convnext_b": 88591464 - 1025000 + 1792,
    "segmenter_vit_s": 22050664 + (1025 - 197) * 384,
    "pspnet50": 25557032 - 2049000 + DEEP_STEM,
    "pspnet101": 44549160 - 2049000 + DEEP_STEM,
    "deeplabv3_50_ddcat": 25557032 - 2049000 + DEEP_STEM,
    "deeplabv3_101": 44549160 - 2049000 + DEEP_STEM,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_backbones_have_the_size_of_their_originals(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name](7)
    belongs = ("layer", "backbone.", "encoder.")
    assert sum(p.numel() for key, p in network.named_parameters() if key.startswith(belongs)) == PARAMETERS[name]


def test_the_stem_of_the_base_size_has_three_layers() -> None:
    with torch.device("meta"):
        network = ARCHITECTURES["upernet_convnext_b_cvst"](7).eval()
    stem = [key for key in network.state_dict() if ".stem." in key and key.endswith("weight")]
    assert [key.rpartition(".stem.")[2][0] for key in stem] == ["0", "1", "3", "4", "6", "7"]
    assert network(torch.zeros(1, 3, 64, 96, device="meta")).shape == (1, 7, 64, 96)
