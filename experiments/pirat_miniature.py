"""PIR-AT in miniature: does a robustly pre-trained backbone save adversarial training?

    python experiments/pirat_miniature.py
    python experiments/pirat_miniature.py --pretraining-images 512 --training-images 512 --pretraining-steps 3000 \
        --name pirat-same-images

Two small ConvNeXts with convolutional stem are pre-trained on a classification task made of the embedded data set:
crops labelled by the class of most of their pixels. As with ImageNet and VOC, there are far more pictures of the task
than labelled images to fine-tune on; the second command has the same pictures for both. One is trained plainly, the
other adversarially, both for the same number of steps. From each, and from fresh weights, a UPerNet is fine-tuned with
the same adversarial training for several budgets, every budget with a schedule of its own (arXiv 2306.12941). Expected:
the robust start reaches the robustness of the plain one in a fraction of the steps (published: up to six times fewer).

Everything is kept below --out, where the same command goes on; runs of other seeds may go on beside it. Writes
experiments/results/pirat-miniature.md, .json and .svg. One seed takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_networks import Classifier, SmallUPerNet, small_convnext
from tables import draw, keep, percent, table
from torch import Tensor, nn

import robseg
from robseg.data.base import IGNORE_INDEX, Dataset
from robseg.data.sets.shapes import Shapes
from robseg.seeding import derived_seed
from robseg.training.inner_attack import AttackSettings, perturb
from robseg.training.schedule import Schedule

EPS = 4.0
PRETRAINING = AttackSettings("pgd", eps=EPS, alpha=2.0, steps=2, random_start=True)
CROP = 32
STARTS = {"robust": "robust backbone (PIR-AT)", "plain": "plain backbone (AT)", "fresh": "fresh weights (AT)"}


@dataclass
class Crops:
    """The classification task: images (N, 3, CROP, CROP) and the class of most of each crop's labelled pixels."""

    images: Tensor
    classes: Tensor


def crops(data: Dataset, seed: int, per_image: int = 6) -> Crops:
    """Random crops of every image in which one class has the most pixels; background alone is left out in part.

    Of the crops that are mainly background, one in six stays: otherwise most of the task were one class.
    """
    rng = np.random.default_rng(seed)
    images, classes = [], []
    for sample in data:  # type: ignore[attr-defined]
        height, width = sample.label.shape
        for _ in range(per_image):
            top, left = rng.integers(0, height - CROP + 1), rng.integers(0, width - CROP + 1)
            window = (..., slice(top, top + CROP), slice(left, left + CROP))
            label = sample.label[window]
            counts = torch.bincount(label[label != IGNORE_INDEX], minlength=len(data.classes))
            shape = counts[1:].argmax() + 1
            # A shape that fills an eighth of the crop is what it shows.
            main = int(shape) if counts[shape] >= CROP * CROP / 8 else 0
            if main != 0 or rng.random() < 1 / 6:
                images.append(sample.image[window])
                classes.append(main)
    return Crops(torch.stack(images), torch.tensor(classes))


def pretrain(task: Crops, num_classes: int, *, robust: bool, steps: int, seed: int) -> dict[str, Tensor]:
    """The weights of a backbone trained on the task. Robust: on PGD images of the pooled classifier."""
    torch.manual_seed(seed)
    network = Classifier(small_convnext(), num_classes)
    as_map = _AsMap(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = Schedule(2e-3, steps, warmup=steps // 10)
    generator = torch.Generator().manual_seed(derived_seed(seed, "crops"))
    losses = []
    for step in range(steps):
        rows = torch.randint(len(task.images), (32,), generator=generator)
        images, classes = task.images[rows], task.classes[rows]
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        if robust:
            labels = classes.view(-1, 1, 1).expand(-1, CROP, CROP)
            keys = [f"{step}/{row}" for row in range(len(rows))]
            images = perturb(as_map, images, labels, PRETRAINING, seed=seed, keys=keys)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        network.train()
        loss = F.cross_entropy(network(images), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"{'robust' if robust else 'plain'} backbone: loss {sum(losses[-50:]) / len(losses[-50:]):.3f}", flush=True)
    return network.backbone.state_dict()


class _AsMap(nn.Module):
    """A classifier whose answer stands at every pixel, so that the attacks of segmentation apply to it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits[:, :, None, None].expand(-1, -1, *images.shape[-2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining-steps", type=int, default=4000)
    parser.add_argument("--pretraining-images", type=int, default=4096, help="whose crops are the classification task")
    parser.add_argument("--training-images", type=int, default=64, help="to fine-tune on")
    parser.add_argument("--name", default="pirat-miniature", help="of the results")
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    parser.add_argument("--images", type=int, default=48, help="images that are judged")
    parser.add_argument("--sea-steps", type=int, default=20, help="steps of each of the attacks of SEA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    report({seed: run(seed, arguments) for seed in arguments.seeds}, arguments)


def run(seed: int, arguments: argparse.Namespace) -> dict[str, dict[int, dict[str, float | None]]]:
    """Of every start and budget: mIoU clean and in the worst case of SEA, aAcc there."""
    data, out = Shapes(arguments.training_images, split="train"), arguments.out / arguments.name / f"seed-{seed}"
    pictures = Shapes(arguments.pretraining_images, split="train")
    found: dict[str, dict[int, dict[str, float | None]]] = {start: {} for start in STARTS}
    for start in STARTS:
        weights = None if start == "fresh" else backbone(pictures, start, seed, arguments.pretraining_steps, out)
        for budget in arguments.budgets:
            folder = out / f"{start}-{budget}"
            fine_tune(weights, data, budget, seed, folder)
            found[start][budget] = judge(folder, data, arguments)
            print(f"seed {seed}, {start}, {budget} steps: {found[start][budget]}", flush=True)
    return found


def backbone(data: Shapes, start: str, seed: int, steps: int, out: Path) -> dict[str, Tensor]:
    """The pre-trained weights, from their file where they were made before."""
    file = out / f"{start}-backbone-{len(data)}-images-{steps}-steps.safetensors"
    if not file.is_file():
        weights = pretrain(crops(data, seed), len(data.classes), robust=start == "robust", steps=steps, seed=seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in weights.items()}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    return load_file(file)


def fine_tune(weights: dict[str, Tensor] | None, data: Shapes, steps: int, seed: int, folder: Path) -> None:
    """Adversarial training of a UPerNet from a backbone, the same for all."""
    torch.manual_seed(seed)
    network = SmallUPerNet(len(data.classes))
    if weights is not None:
        network.backbone.load_state_dict(weights)
    recipe: dict[str, Any] = {
        "name": "pirat-miniature", "data": {"train": "given"}, "model": {"architecture": "given"},
        "augmentation": {"crop": 64}, "method": "at", "attack": {"eps": EPS, "alpha": 2.55, "steps": 2},
        "optimiser": {"lr": 1e-3, "weight_decay": 1e-2}, "schedule": {"warmup": 0.1, "power": 0.9}, "steps": steps,
        "batch_size": 8, "seed": seed, "validation": {"times": 0},
    }  # fmt: skip
    robseg.train(recipe, network=network, train_data=data, out=folder / "training", device="cpu", progress=False)


def judge(folder: Path, data: Shapes, arguments: argparse.Namespace) -> dict[str, float | None]:
    result = robseg.evaluate(
        "small_networks:SmallUPerNet", f"shapes?split=val&count={arguments.images}", eps=EPS,
        steps=arguments.sea_steps, checkpoint=str(folder / "training"), out=folder / "sea", train_data=data,
        device="cpu", progress=False,
    )  # fmt: skip
    worst = result.at(EPS).worst_case
    return {"clean": result.clean.miou, "robust": worst.miou, "robust_aacc": worst.aacc}


def steps_to_reach(curve: dict[int, float], level: float) -> float | None:
    """Steps at which the best so far reaches a level, between budgets by a line; None if it never does."""
    last_steps, last = 0, 0.0
    for steps, value in sorted(curve.items()):
        if value >= level:
            return steps if last_steps == 0 else last_steps + (steps - last_steps) * (level - last) / (value - last)
        if value > last:
            last_steps, last = steps, value
    return None


def curve(runs: dict[int, Any], start: str) -> dict[int, float]:
    """{budget: robust mIoU}, the mean over the seeds."""
    budgets = next(iter(runs.values()))[start]
    return {budget: fmean(one[start][budget]["robust"] or 0.0 for one in runs.values()) for budget in budgets}


def ratio_row(budget: int, level: float, robust: dict[int, float]) -> list[Any]:
    """For a budget of another start: its robust mIoU, the steps the robust start takes to that, and their ratio."""
    needed = steps_to_reach(robust, level)
    if needed is None:
        return [budget, percent([level]), "never", "–"]
    at_most, at_least = ("at most ", "≥ ") if needed <= min(robust) else ("", "")
    return [budget, percent([level]), f"{at_most}{needed:.0f}", f"{at_least}{budget / needed:.1f}"]


def report(runs: dict[int, Any], arguments: argparse.Namespace) -> None:
    def values(start: str, budget: int, key: str) -> list[float | None]:
        return [one[start][budget][key] for one in runs.values()]

    rows = [
        [budget, *(" / ".join(percent(values(start, budget, key)) for key in ("clean", "robust")) for start in STARTS)]
        for budget in arguments.budgets
    ]
    robust = curve(runs, "robust")
    text = (
        f"mIoU in % clean / in the worst case of SEA ({arguments.sea_steps} steps) at {EPS:g}/255 on "
        f"{arguments.images} images, after so many steps of the same adversarial training on "
        f"{arguments.training_images} images; backbones of {arguments.pretraining_steps} steps on crops of "
        f"{arguments.pretraining_images}; seeds {', '.join(map(str, runs))}, mean ± standard deviation.\n\n"
        + table(["steps", *STARTS.values()], rows)
    )
    for start in ("plain", "fresh"):
        reached = [ratio_row(budget, level, robust) for budget, level in curve(runs, start).items()]
        header = [f"{STARTS[start]}, steps", "robust mIoU", "robust backbone, steps", "ratio"]
        text += f"\nSteps that the robust backbone takes to the mean robust mIoU of: {STARTS[start]}.\n\n"
        text += table(header, reached)
    said = {key: value for key, value in vars(arguments).items() if key != "out"}
    keep(arguments.name, text, {"arguments": said, "found": runs})
    curves = {
        label: [(float(budget), values(start, budget, "robust")) for budget in arguments.budgets]
        for start, label in STARTS.items()
    }
    draw(arguments.name, curves, x="steps of adversarial training", y="mIoU under SEA in %", log=True)


if __name__ == "__main__":
    main()
