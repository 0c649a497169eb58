"""Which training methods hold? Clean, AT, SAT and DDC-AT on one small PSPNet at equal steps, judged by SEA.

    python experiments/methods.py                          # on the embedded data set
    python experiments/methods.py --camvid CAMVID_ROOT --steps 500 --batch-size 4 --images 6 --sea-steps 50 --eps 4 8

All three robust methods train with the attack that SAT and DDC-AT were published with (BIM, 3 steps from the image;
arXiv 2003.06555), scaled to 4/255. The models are judged by SEA (arXiv 2306.12941) and by BIM with 2 steps, the test
that DDC-AT was published with. Expected: clean and DDC-AT fall under SEA, AT holds.

Writes experiments/results/methods-DATA.md, .json and .svg. The four models at 800 steps and their evaluations take
about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from small_networks import SmallPSPNet
from training_loop import keep, percent, table, train

import robseg
from robseg.data import open_data
from robseg.data.base import Dataset
from robseg.data.samples import SampleList
from robseg.training.inner_attack import AttackSettings
from robseg.training.methods import MethodSettings

RESULTS = Path(__file__).parent / "results"
EPS = 4.0
ATTACK = AttackSettings("pgd", eps=EPS, alpha=EPS / 3, steps=3, random_start=False)
NAMES = {"clean": "clean", "at": "AT", "sat": "SAT", "ddcat": "DDC-AT"}
BIM = f"bim?steps=2&alpha={EPS / 3:.6g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", metavar="ROOT", help="train and judge on CamVid instead of the embedded data set")
    parser.add_argument("--steps", type=int, default=800, help="parameter updates of each method")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--eps", type=float, nargs="+", default=[2.0, 4.0, 8.0], help="radii of SEA in n/255")
    parser.add_argument("--sea-steps", type=int, default=100, help="steps of each of the attacks of SEA")
    parser.add_argument("--images", type=int, default=24, help="images that are judged")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.camvid:
        # Sequence 0016E5 is the usual val split; its other frames, which are in train, are left out.
        name, crop = "camvid", 96
        data = open_data(f"camvid:{arguments.camvid}?split=train&without=0016E5")
        validation = open_data(f"camvid:{arguments.camvid}?split=val")
    else:
        name, crop = "shapes", 64
        data, validation = open_data("shapes?split=train&count=512"), open_data(f"shapes?count={arguments.images}")
    # Neighbouring frames of a video are nearly the same: the images that are judged are spread over it.
    chosen = [len(validation) * i // arguments.images for i in range(min(arguments.images, len(validation)))]
    judged = SampleList([validation[i] for i in chosen], data.classes)
    found = {}
    for method in NAMES:
        torch.manual_seed(arguments.seed)
        network = SmallPSPNet(len(data.classes), branches=method == "ddcat")
        settings = MethodSettings(method, ATTACK)
        start = time.process_time()
        losses = train(
            network, data, settings,
            steps=arguments.steps, batch_size=arguments.batch_size, crop=crop, seed=arguments.seed, say=method,
        )  # fmt: skip
        found[method] = {
            "training_cpu_s": time.process_time() - start,
            "final_loss": sum(losses[-50:]) / len(losses[-50:]),
            **judge(network, data, judged, arguments),
        }
        print(method, found[method], flush=True)
    report(found, name, arguments)


def judge(network: torch.nn.Module, data: Dataset, judged: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """(aAcc, mIoU) clean, under the published test of DDC-AT, and in the worst case of SEA at each radius."""
    common: dict[str, Any] = {"train_data": data, "device": "cpu", "progress": False}
    radii, steps = arguments.eps, arguments.sea_steps
    with tempfile.TemporaryDirectory() as folder:
        sea = robseg.evaluate(network, judged, eps=radii, attack="sea", steps=steps, out=f"{folder}/sea", **common)
        bim = robseg.evaluate(network, judged, eps=EPS, attack=BIM, out=f"{folder}/bim", **common)
    return {
        "clean": [sea.clean.aacc, sea.clean.miou],
        "bim": [bim.at(EPS).worst_case.aacc, bim.at(EPS).worst_case.miou],
        "sea": {f"{eps:g}": [sea.at(eps).worst_case.aacc, sea.at(eps).worst_case.miou] for eps in radii},
    }


def report(found: dict[str, Any], name: str, arguments: argparse.Namespace) -> None:
    under_sea = [f"SEA at {eps:g}/255" for eps in arguments.eps]
    header = ["method", "clean", f"BIM-2 at {EPS:g}/255", *under_sea, "training, s CPU"]
    rows = [
        [
            NAMES[method],
            *(
                " / ".join(percent(value) for value in pair)
                for pair in (one["clean"], one["bim"], *one["sea"].values())
            ),
            f"{one['training_cpu_s']:.0f}",
        ]
        for method, one in found.items()
    ]
    text = (
        f"aAcc / mIoU in % of a small PSPNet after {arguments.steps} steps of {arguments.batch_size} images on "
        f"{name}, trained with {ATTACK.steps} steps of {ATTACK.alpha:.3g}/255 within {EPS:g}/255; {arguments.images} "
        f"validation images, SEA with {arguments.sea_steps} steps, seed {arguments.seed}.\n\n" + table(header, rows)
    )
    file = RESULTS / f"methods-{name}"
    keep(file, text, {"arguments": {**vars(arguments), "camvid": bool(arguments.camvid)}, "found": found})
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (method, one), marker in zip(found.items(), "osD^", strict=True):
        values = [one["clean"][1], *(pair[1] for pair in one["sea"].values())]
        axes.plot([0, *arguments.eps], [100 * (value or 0) for value in values], marker=marker, label=NAMES[method])
    axes.set(xlabel="radius of SEA (n/255)", ylabel="mIoU in %", ylim=(0, 100), xticks=[0, *arguments.eps])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
