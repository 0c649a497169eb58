"""PIR-AT in miniature: does a robustly pre-trained backbone save adversarial training?

    python experiments/pirat_miniature.py

Two small ConvNeXts with convolutional stem are pre-trained on a classification task made of the embedded data set:
crops labelled by the class of most of their pixels. One is trained plainly, the other adversarially, both for the same
number of steps. From each, and from fresh weights, a UPerNet is fine-tuned with the same adversarial training for
several budgets, every budget with a schedule of its own (arXiv 2306.12941, section 4). Expected: the robust start
reaches the robustness of the plain one in a fraction of the steps (published: up to six times fewer).

Writes experiments/results/pirat-miniature.md, .json and .svg in about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from small_networks import Classifier, SmallUPerNet, small_convnext
from torch import Tensor, nn
from training_loop import keep, percent, table, train

import robseg
from robseg.data.base import IGNORE_INDEX, Dataset
from robseg.data.sets.shapes import Shapes
from robseg.models.convnext import ConvNeXt
from robseg.seeding import derived_seed
from robseg.training.inner_attack import AttackSettings, perturb
from robseg.training.methods import MethodSettings
from robseg.training.schedule import Schedule

RESULTS = Path(__file__).parent / "results"
EPS = 4.0
PRETRAINING = AttackSettings("pgd", eps=EPS, alpha=2.0, steps=2, random_start=True)
FINE_TUNING = AttackSettings("pgd", eps=EPS, alpha=2.55, steps=2, random_start=False)
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


def pretrain(task: Crops, num_classes: int, *, robust: bool, steps: int, seed: int) -> tuple[ConvNeXt, float]:
    """A backbone trained on the task, and the last losses' mean. Robust: on PGD images of the pooled classifier."""
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
    network.eval()
    return network.backbone, sum(losses[-50:]) / len(losses[-50:])


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
    parser.add_argument("--pretraining-steps", type=int, default=3000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    parser.add_argument("--images", type=int, default=48, help="images that are judged")
    parser.add_argument("--sea-steps", type=int, default=20, help="steps of each of the attacks of SEA")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Shapes(512, split="train")
    task = crops(data, arguments.seed)
    shares = torch.bincount(task.classes).tolist()
    print(f"{len(task.images)} crops, per class {shares}", flush=True)
    backbones: dict[str, dict[str, Tensor] | None] = {"fresh": None}
    spent, losses = {"fresh": 0.0}, {}
    for start in ("plain", "robust"):
        before = time.process_time()
        backbone, losses[start] = pretrain(
            task, len(data.classes), robust=start == "robust", steps=arguments.pretraining_steps, seed=arguments.seed
        )
        backbones[start], spent[start] = backbone.state_dict(), time.process_time() - before
        print(f"{start} backbone: loss {losses[start]:.3f}, {spent[start]:.0f} s CPU", flush=True)
    found: dict[str, dict[int, dict[str, float | None]]] = {start: {} for start in STARTS}
    for budget in arguments.budgets:
        for start in STARTS:
            torch.manual_seed(arguments.seed)
            network = SmallUPerNet(len(data.classes))
            if (weights := backbones[start]) is not None:
                network.backbone.load_state_dict(weights)
            train(network, data, MethodSettings("at", FINE_TUNING), steps=budget, lr=1e-3, weight_decay=1e-2,
                  seed=arguments.seed)  # fmt: skip
            found[start][budget] = judge(network, data, arguments)
            print(start, budget, found[start][budget], flush=True)
    report(found, losses, arguments)


def judge(network: nn.Module, data: Dataset, arguments: argparse.Namespace) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory() as folder:
        result = robseg.evaluate(
            network, f"shapes?split=val&count={arguments.images}", eps=EPS, steps=arguments.sea_steps, out=folder,
            train_data=data, device="cpu", progress=False,
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


def ratios(found: dict[str, dict[int, dict[str, Any]]]) -> list[tuple[int, float, float | None]]:
    """For each budget of the plain start: (budget, its robust mIoU, steps the robust start takes to reach that)."""
    robust = {steps: values["robust"] or 0.0 for steps, values in found["robust"].items()}
    return [
        (steps, values["robust"] or 0.0, steps_to_reach(robust, values["robust"] or 0.0))
        for steps, values in found["plain"].items()
    ]


def _row(steps: int, level: float, needed: float | None, smallest: int) -> list[Any]:
    if needed is None:
        return [steps, percent(level), "never", "–"]
    at_most, at_least = ("at most ", "≥ ") if needed <= smallest else ("", "")
    return [steps, percent(level), f"{at_most}{needed:.0f}", f"{at_least}{steps / needed:.1f}"]


def report(found: dict[str, Any], losses: dict[str, float], arguments: argparse.Namespace) -> None:
    rows = [
        [budget, *(" / ".join(percent(found[start][budget][key]) for key in ("clean", "robust")) for start in STARTS)]
        for budget in arguments.budgets
    ]
    reached = [_row(*one, smallest=min(arguments.budgets)) for one in ratios(found)]
    text = (
        f"mIoU in % clean / in the worst case of SEA ({arguments.sea_steps} steps) at {EPS:g}/255 on "
        f"{arguments.images} images, after so many steps of the same adversarial training; backbones of "
        f"{arguments.pretraining_steps} steps, seed {arguments.seed}.\n\n"
        + table(["steps", *STARTS.values()], rows)
        + "\nSteps that the robust start takes to the robust mIoU of the plain one.\n\n"
        + table(["plain start, steps", "robust mIoU", "robust start, steps", "ratio"], reached)
    )
    keep(
        RESULTS / "pirat-miniature", text, {"arguments": vars(arguments), "pretraining_losses": losses, "found": found}
    )
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (start, label), marker in zip(STARTS.items(), "so^", strict=True):
        axes.plot(
            arguments.budgets, [100 * (found[start][b]["robust"] or 0) for b in arguments.budgets],
            marker=marker, label=label,
        )  # fmt: skip
    axes.set(xlabel="steps of adversarial training", ylabel=f"mIoU under SEA at {EPS:g}/255 in %", xscale="log")
    axes.set_xticks(arguments.budgets, [str(budget) for budget in arguments.budgets], minor=False)
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig((RESULTS / "pirat-miniature").with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
