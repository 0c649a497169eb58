"""UPerNet with ConvNeXt-T-CvSt on CamVid, adversarially trained with 2 and with 5 steps, on a GPU.

    python experiments/camvid_gpu.py CAMVID_ROOT [--backbone FILE] [--epochs 60]

CAMVID_ROOT: CamVid at 480 x 360. --backbone: an ImageNet classifier to begin with, robust for PIR-AT (arXiv
2306.12941); fresh weights without it. Images/s and memory are those of the training, attack included; the models are
judged by SEA with --sea-steps steps. Writes experiments/results/camvid-gpu.md, .json and .svg, and the trainings below
--out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tables import draw, keep, percent, table

import robseg
from robseg.records.training_run import read_metrics

RADII = (4.0, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the folder of CamVid")
    parser.add_argument("--backbone", help="weights of an ImageNet classifier: a file, a URL or hf:OWNER/NAME/FILE")
    parser.add_argument("--normalisation", default="own", help="of the input the backbone wants: own, none, imagenet")
    parser.add_argument("--attack-steps", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop", type=int, default=352)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--sea-steps", type=int, default=300)
    parser.add_argument("--images", type=int, help="judge only so many images")
    parser.add_argument("--architecture", default="upernet_convnext_t_cvst")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("camvid-gpu"))
    arguments = parser.parse_args()
    found = {steps: run(steps, arguments) for steps in arguments.attack_steps}
    report(found, arguments)


def run(attack_steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with so many attack steps, and judge the best model."""
    # Sequence 0016E5 is the usual val split; its other frames, which are in train, are left out.
    training, judged = f"camvid:{arguments.root}?split=train&without=0016E5", f"camvid:{arguments.root}?split=val"
    recipe: dict[str, Any] = {
        "name": f"camvid-at{attack_steps}", "data": {"train": training, "validation": judged},
        "model": {"architecture": arguments.architecture, "backbone": arguments.backbone,
                  "normalisation": arguments.normalisation},
        "augmentation": {"crop": arguments.crop, "scale": [0.75, 1.5], "blur": "radius"},
        "method": "at", "attack": {"eps": 4, "alpha": 2.55, "steps": attack_steps},
        "optimiser": {"name": "adamw", "lr": arguments.lr, "weight_decay": 0.01},
        "schedule": {"warmup": 0.1}, "epochs": arguments.epochs, "batch_size": arguments.batch_size,
        "precision": arguments.precision, "workers": 8 if arguments.device != "cpu" else 0, "validation": {"times": 6},
    }  # fmt: skip
    folder = arguments.out / f"at{attack_steps}"
    on_gpu = arguments.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    robseg.train(recipe, out=folder, device=arguments.device)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    speeds = [line["images_per_s"] for line in read_metrics(folder) if "images_per_s" in line]
    result = robseg.evaluate(
        str(folder / "best"), judged, eps=RADII, attack="sea", steps=arguments.sea_steps, limit=arguments.images,
        train_data=training, device=arguments.device, out=arguments.out / f"at{attack_steps}-sea",
    )  # fmt: skip
    return {
        "images_per_s": median(speeds),
        "memory_gib": memory,
        "clean": [result.clean.aacc, result.clean.miou],
        "sea": {f"{eps:g}": [result.at(eps).worst_case.aacc, result.at(eps).worst_case.miou] for eps in RADII},
        "images": len(result.images),
    }


def scores(one: dict[str, Any]) -> list[list[float | None]]:
    """(aAcc, mIoU) clean and in the worst case at each radius."""
    return [one["clean"], *one["sea"].values()]


def report(found: dict[int, dict[str, Any]], arguments: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    rows = [
        [
            f"AT, {steps} steps", f"{one['images_per_s']:.1f}",
            "–" if one["memory_gib"] is None else f"{one['memory_gib']:.1f}",
            *(" / ".join(percent([value]) for value in pair) for pair in scores(one)),
        ]
        for steps, one in found.items()
    ]  # fmt: skip
    header = ["training", "images/s", "memory, GiB", "clean", *(f"SEA at {eps:g}/255" for eps in RADII)]
    text = (
        f"aAcc / mIoU in % of {arguments.architecture} on CamVid after {arguments.epochs:g} epochs in batches of "
        f"{arguments.batch_size}, {arguments.precision}, from {arguments.backbone or 'fresh weights'}; {device}; SEA "
        f"with {arguments.sea_steps} steps on {next(iter(found.values()))['images']} images.\n\n" + table(header, rows)
    )
    keep("camvid-gpu", text, {"epochs": arguments.epochs, "device": device, "found": found})
    curves = {
        f"AT, {steps} steps": [(eps, [pair[1]]) for eps, pair in zip((0.0, *RADII), scores(one), strict=True)]
        for steps, one in found.items()
    }
    draw("camvid-gpu", curves, x="radius of SEA (n/255)", y="mIoU in %")


if __name__ == "__main__":
    main()
