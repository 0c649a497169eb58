"""What an attack costs beyond the forward and backward passes it cannot do without.

    OMP_NUM_THREADS=1 python benchmarks/attack_overhead.py [--model NAME] [--steps 10] [--rounds 5]

Bare: N + 1 forward passes and N backward passes of the cross-entropy to the image, nothing else. Attack: APGD of N
steps on each objective, tracking ce as SEA does. The two alternate within one run and the median of the ratios is
printed, so that a machine whose speed drifts does not matter. The radius is so small
that no image is lost early. One thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F

from robseg.attacks.apgd import apgd
from robseg.models.architectures import ARCHITECTURES
from robseg.models.modes import attack_mode
from robseg.models.wrapper import SegmentationModel


def bare(model: SegmentationModel, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    with attack_mode(model):
        for i in range(steps + 1):
            x = images.detach().requires_grad_(i < steps)
            with torch.set_grad_enabled(i < steps):
                loss = F.cross_entropy(model(x), labels, reduction="sum")
            if i < steps:
                torch.autograd.grad(loss, x)


def seconds(call, device: str) -> float:
    # On the CPU the time that this process computed: others that share the machine do not count.
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="upernet_convnext_t_cvst")
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 151])
    parser.add_argument("--objectives", nargs="+", default=["ce", "mce", "mce-bal", "js"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"{arguments.model}, batch {arguments.batch} of {arguments.size}x{arguments.size}, {arguments.steps} steps")
    for classes in arguments.classes:
        compare(arguments, classes)


def compare(arguments: argparse.Namespace, classes: int) -> None:
    torch.manual_seed(0)
    model = SegmentationModel(ARCHITECTURES[arguments.model](num_classes=classes).eval()).to(arguments.device)
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size).to(arguments.device)
    with torch.no_grad():
        labels = model(images).argmax(1)
    options = {
        "eps": 1e-6,
        "tracked": "ce",
        "steps": arguments.steps,
        "class_weights": torch.full((classes,), 1 / classes),
    }
    bare(model, images, labels, 1)
    for objective in arguments.objectives:
        attack = partial(apgd, model, images, labels, objective=objective, **options)
        base = partial(bare, model, images, labels, arguments.steps)
        pairs = [(seconds(base, arguments.device), seconds(attack, arguments.device)) for _ in range(arguments.rounds)]
        ratios = [ours / theirs for theirs, ours in pairs]
        print(
            f"{classes:4d} classes  {objective:8s} overhead {statistics.median(ratios) - 1:+.1%} "
            f"(from {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}), bare {pairs[0][0]:.2f} s"
        )


if __name__ == "__main__":
    main()
