"""Which training methods hold? Clean, AT, SAT and DDC-AT on one small PSPNet at equal steps, judged by SEA.

    python experiments/methods.py                          # on the embedded data set
    python experiments/methods.py --camvid CAMVID_ROOT --steps 500 --batch-size 4 --images 6 --sea-steps 50 --eps 4 8

All three robust methods train with the attack that SAT and DDC-AT were published with (BIM, 3 steps from the image;
arXiv 2003.06555), scaled to --train-eps. The models are judged by SEA (arXiv 2306.12941) and by BIM with 2 steps, the
test that DDC-AT was published with. Expected: clean and DDC-AT fall under SEA, AT holds.

Trainings and evaluations are kept below --out, where the same command goes on; runs of other seeds may go on beside
it. Writes experiments/results/methods-NAME.md, .json and .svg. One seed (four models at 800 steps and their
evaluations) takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tables import draw, keep, percent, table

import robseg
from robseg.data import open_data
from robseg.data.base import Dataset
from robseg.data.samples import SampleList
from robseg.records.training_run import read_metrics

METHODS = {"clean": "clean", "at": "AT", "sat": "SAT", "ddcat": "DDC-AT"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", metavar="ROOT", help="train and judge on CamVid instead of the embedded data set")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=800, help="parameter updates of each method")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--train-eps", type=float, default=4.0, help="radius of the attack in training in n/255")
    parser.add_argument("--eps", type=float, nargs="+", default=[2.0, 4.0, 8.0], help="radii of SEA in n/255")
    parser.add_argument("--sea-steps", type=int, default=100, help="steps of each of the attacks of SEA")
    parser.add_argument("--images", type=int, default=24, help="images that are judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", help="of the results; that of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    name = arguments.name or ("camvid" if arguments.camvid else "shapes")
    found: dict[str, dict[int, Any]] = {
        method: {seed: run(method, seed, name, arguments) for seed in arguments.seeds} for method in arguments.methods
    }
    report(found, name, arguments)


def run(method: str, seed: int, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one model and judge it: (aAcc, mIoU) clean, under BIM and in the worst case of SEA at each radius."""
    if arguments.camvid:
        # Sequence 0016E5 is the usual val split; its other frames, which are in train, are left out.
        training, crop = f"camvid:{arguments.camvid}?split=train&without=0016E5", 96
        validation = open_data(f"camvid:{arguments.camvid}?split=val")
    else:
        training, crop = "shapes?split=train&count=512", 64
        validation = open_data(f"shapes?count={arguments.images}")
    model = "small_networks:small_pspnet" + ("_ddcat" if method == "ddcat" else "")
    eps = arguments.train_eps
    recipe: dict[str, Any] = {
        "name": f"{name}-{method}", "data": {"train": training}, "model": {"architecture": model},
        "augmentation": {"crop": crop}, "method": method,
        "attack": {"eps": eps, "alpha": eps / 3, "steps": 3}, "optimiser": {"lr": 2.5e-3, "weight_decay": 1e-4},
        "schedule": {"warmup": 0.1, "power": 0.9}, "steps": arguments.steps, "batch_size": arguments.batch_size,
        "seed": seed, "validation": {"times": 0},
    }  # fmt: skip
    folder = arguments.out / name / f"{method}-{seed}"
    robseg.train(recipe, out=folder / "training", device="cpu")
    judged = spread(validation, arguments.images)
    common: dict[str, Any] = {"checkpoint": str(folder / "training"), "train_data": training, "device": "cpu"}
    sea = robseg.evaluate(
        model, judged, eps=arguments.eps, attack="sea", steps=arguments.sea_steps, out=folder / "sea", **common
    )
    bim = robseg.evaluate(
        model, judged, eps=eps, attack=f"bim?steps=2&alpha={eps / 3:.6g}", out=folder / "bim", **common
    )
    speeds = [line["images_per_s"] for line in read_metrics(folder / "training")]
    return {
        "clean": [sea.clean.aacc, sea.clean.miou],
        "bim": [bim.at(eps).worst_case.aacc, bim.at(eps).worst_case.miou],
        "sea": {f"{eps:g}": [sea.at(eps).worst_case.aacc, sea.at(eps).worst_case.miou] for eps in arguments.eps},
        "training_s": sum(arguments.batch_size / speed for speed in speeds),
    }


def spread(data: Dataset, count: int) -> Dataset:
    """So many images, evenly from all of a data set: neighbouring frames of a video are nearly the same."""
    chosen = [len(data) * i // count for i in range(min(count, len(data)))]
    return SampleList([data[i] for i in chosen], data.classes)


def report(found: dict[str, dict[int, Any]], name: str, arguments: argparse.Namespace) -> None:
    radii, eps = [f"{eps:g}" for eps in arguments.eps], arguments.train_eps
    header = [
        "method",
        "clean",
        f"BIM-2 at {eps:.3g}/255",
        *(f"SEA at {radius}/255" for radius in radii),
        "training, s",
    ]
    rows = []
    for method, runs in found.items():
        columns = [[one["clean"] for one in runs.values()], [one["bim"] for one in runs.values()]]
        columns += [[one["sea"][radius] for one in runs.values()] for radius in radii]
        cells = [f"{percent([p[0] for p in pairs])} / {percent([p[1] for p in pairs])}" for pairs in columns]
        seconds = sum(one["training_s"] for one in runs.values()) / len(runs)
        rows.append([METHODS[method], *cells, f"{seconds:.0f}"])
    seeds, data = ", ".join(map(str, arguments.seeds)), "CamVid" if arguments.camvid else "shapes"
    text = (
        f"aAcc / mIoU in % of a small PSPNet after {arguments.steps} steps of {arguments.batch_size} images on "
        f"{data}, trained with 3 steps of {eps / 3:.3g}/255 within {eps:.3g}/255; "
        f"{arguments.images} validation images, SEA with {arguments.sea_steps} steps; seeds {seeds}, mean ± standard "
        "deviation.\n\n" + table(header, rows)
    )
    said = {key: value for key, value in vars(arguments).items() if key not in ("camvid", "out")}
    keep(f"methods-{name}", text, {"arguments": said, "found": found})
    curves = {}
    for method, runs in found.items():
        points: list[tuple[float, list[float | None]]] = [(0.0, [one["clean"][1] for one in runs.values()])]
        points += [(float(radius), [one["sea"][radius][1] for one in runs.values()]) for radius in radii]
        curves[METHODS[method]] = points
    draw(f"methods-{name}", curves, x="radius of SEA (n/255)", y="mIoU in %")


if __name__ == "__main__":
    main()
