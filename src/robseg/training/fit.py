"""Clean and adversarial training in one loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.data.base import IGNORE_INDEX, Dataset, Sample
from robseg.errors import UserError, unknown_name
from robseg.models.modes import attack_mode
from robseg.seeding import derived_seed, image_generator

Method = Literal["clean", "at"]

CACHE_BYTES = 512 * 2**20
"""Decoded data sets of up to this size stay in memory during training."""


@dataclass(frozen=True)
class Recipe:
    """How to train; all of it is written into model.yaml.

    method: "clean", or "at": each batch is replaced by its adversarial images, found by PGD on cross-entropy within
        Linf `eps` in `attack_steps` steps of `alpha`, from a uniform random start. Both in n/255: 4.0 means 4/255.
    steps: parameter updates, each on `batch_size` images.
    lr: peak rate of AdamW, reached after `warmup` (a fraction) of the steps and followed by a cosine down to 0.
    weight_decay: not applied to parameters of one dimension (biases, norms).
    crop: side of random square crops, padded with black that is ignored where the image is smaller; None for whole
        images, which must then be of one size.
    flip: mirror half of the images.

    Raises UserError for values out of range.
    """

    method: Method = "clean"
    steps: int = 1000
    batch_size: int = 8
    lr: float = 2.5e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    eps: float = 4.0
    alpha: float = 3.0
    attack_steps: int = 2
    crop: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise unknown_name("training method", self.method, get_args(Method))
        at_least = {"steps": 1, "batch_size": 1, "attack_steps": 1, "eps": 0, "alpha": 0, "weight_decay": 0}
        if self.crop is not None:
            at_least["crop"] = 1
        for name, least in at_least.items():
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise UserError(f"{name} of the training is {value}; it must be {least} or more.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr of the training is {self.lr}; it must be above 0.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup of the training is {self.warmup}; it is a fraction of the steps, 0 to 1.")


PLAIN = Recipe(method="clean", steps=1000, lr=2.5e-3)
ROBUST = Recipe(method="at", steps=700, lr=3e-3, eps=4.0, alpha=3.0, attack_steps=2)
"""What the demo trains small_unet of width 16 with, on Shapes(count=512, split="train")."""


class Progress(NamedTuple):
    """One training step, counted from 1. loss and accuracy are of the batch trained on: adversarial under "at"."""

    step: int
    loss: float
    accuracy: float
    lr: float


def fit(
    network: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Progress]:
    """Train `network` in place and leave it in evaluation mode on `device`; give the record of all steps.

    network: images (B, 3, H, W) in [0, 1] to logits (B, C, H, W) of the data's C classes; a network that wants
        something else is wrapped in `robseg.models.wrapper.SegmentationModel`.
    data: labels (H, W) of 0..C-1; pixels of 255 count neither in the loss nor in the attack.
    out: folder in which training.csv gets a line for every step.
    progress: called after every step.

    All randomness is drawn from `seed`, the ids of the images and the step; the global generators stay as they were.
    Raises UserError when the loss or the weights stop being finite, and where network and data do not fit.
    """
    device = torch.device(device)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.lr)
    history: list[Progress] = []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "training.csv").write_text("step,loss,accuracy,lr\n")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step, batch in enumerate(itertools.islice(_batches(data, recipe, seed), recipe.steps), 1):
            images = batch.images.to(device, memory_format=torch.channels_last)
            labels = batch.labels.to(device)
            if recipe.method == "at":
                images = perturb(
                    network, images, labels,
                    eps=recipe.eps / 255, alpha=recipe.alpha / 255, steps=recipe.attack_steps,
                    seed=seed, keys=batch.keys,
                )  # fmt: skip
            # Dropout and the like know only the global generator.
            torch.manual_seed(derived_seed(seed, "training step", str(step)))
            rate = learning_rate(step, recipe)
            loss, accuracy = _update(network, optimiser, images, labels, rate, len(data.classes))
            if not math.isfinite(loss):
                raise UserError(f"The training diverged: its loss is {loss} at step {step}, rate {rate:.3g}; lower lr.")
            history.append(Progress(step, loss, accuracy, rate))
            if out is not None:
                with (out / "training.csv").open("a") as file:
                    file.write(f"{step},{loss:.6g},{accuracy:.6g},{rate:.6g}\n")
            if progress is not None:
                progress(history[-1])
    network.eval()
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise UserError(f"The training diverged: weights are not finite after step {recipe.steps}; lower lr.")
    return history


def perturb(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    seed: int,
    keys: Sequence[str],
) -> Tensor:
    """Adversarial images for training: PGD on cross-entropy (arXiv 1706.06083) from a uniform random start.

    images: (B, 3, H, W) in [0, 1]; labels: (B, H, W); eps and alpha in the images' units. keys: one text an image, to
    which with `seed` its random start belongs. The network is in evaluation mode meanwhile; neither its batch-norm
    statistics nor its parameters' gradients are touched.
    """
    noise = torch.stack(
        [torch.rand(images.shape[1:], generator=image_generator(seed, key, "at start")) for key in keys]
    )
    adversarial = (images + eps * (2 * noise.to(images) - 1)).clamp(0, 1)
    with attack_mode(network):
        for _ in range(steps):
            adversarial.requires_grad_(True)
            loss = F.cross_entropy(network(adversarial), labels, ignore_index=IGNORE_INDEX, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = adversarial.detach() + alpha * gradient.sign()
            adversarial = (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1)
    return adversarial.detach()


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step 1..steps: a line up to `lr`, then half a cosine, which would reach 0 one step after the last."""
    rising = round(recipe.warmup * recipe.steps)
    if step <= rising:
        return recipe.lr * step / rising
    return recipe.lr * (1 + math.cos(math.pi * (step - rising) / (recipe.steps - rising + 1))) / 2


def _update(
    network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor, rate: float, num_classes: int
) -> tuple[float, float]:
    """One step of the optimiser unless the loss is not finite; loss and accuracy over the counted pixels before it."""
    network.train()
    logits = network(images)
    wanted = (len(images), num_classes, *labels.shape[1:])
    if tuple(logits.shape) != wanted:
        raise UserError(f"The network gives logits of shape {tuple(logits.shape)}; the data need {wanted}.")
    counted = labels != IGNORE_INDEX
    pixels = counted.sum().clamp(min=1)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / pixels
    if loss.isfinite():
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    right = (logits.argmax(1) == labels) & counted
    return loss.item(), (right.sum() / pixels).item()


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


class _Batch(NamedTuple):
    """images (B, 3, H, W), labels (B, H, W), and for each image a text that occurs once in the whole training."""

    images: Tensor
    labels: Tensor
    keys: list[str]


def _batches(data: Dataset, recipe: Recipe, seed: int) -> Iterator[_Batch]:
    """Batches without end; one may span two epochs."""
    cache: dict[int, Sample] = {}
    order = _order(len(data), seed)
    while True:
        samples, keys = [], []
        for epoch, index in itertools.islice(order, recipe.batch_size):
            sample = cache.get(index) or data[index]
            if (sample.image.nbytes + sample.label.nbytes) * len(data) <= CACHE_BYTES:
                cache[index] = sample
            keys.append(f"{sample.id}/epoch {epoch}")
            samples.append(augment(sample, recipe, image_generator(seed, keys[-1], "augmentation")))
        sizes = {tuple(sample.label.shape): sample.id for sample in samples}
        if len(sizes) > 1:
            listed = ", ".join(f"'{name}' {h} x {w}" for (h, w), name in sizes.items())
            raise UserError(f"Images of one batch differ in size ({listed}); set crop to train on crops of one size.")
        yield _Batch(torch.stack([s.image for s in samples]), torch.stack([s.label for s in samples]), keys)


def _order(count: int, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, index) without end, every epoch in an order of its own."""
    for epoch in itertools.count():
        generator = image_generator(seed, f"epoch {epoch}", "order")
        yield from ((epoch, index) for index in torch.randperm(count, generator=generator).tolist())


def augment(sample: Sample, recipe: Recipe, generator: torch.Generator) -> Sample:
    """The sample mirrored by chance and, where the recipe has a crop, cut to crop x crop at a random place."""
    image, label = sample.image, sample.label
    if recipe.flip and torch.rand((), generator=generator) < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    if recipe.crop is not None:
        height, width = label.shape
        padding = (0, max(recipe.crop - width, 0), 0, max(recipe.crop - height, 0))
        image, label = F.pad(image, padding), F.pad(label, padding, value=IGNORE_INDEX)
        top, left = (int(torch.randint(side - recipe.crop + 1, (), generator=generator)) for side in label.shape)
        window = (..., slice(top, top + recipe.crop), slice(left, left + recipe.crop))
        image, label = image[window], label[window]
    return Sample(image, label, sample.id)
