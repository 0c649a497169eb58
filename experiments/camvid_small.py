"""Train a small model on CamVid, plainly or adversarially, for `robseg evaluate` to judge.

    python experiments/camvid_small.py CAMVID_ROOT plain  camvid-models/plain
    python experiments/camvid_small.py CAMVID_ROOT robust camvid-models/robust
    robseg evaluate camvid-models/plain --data "camvid:CAMVID_ROOT?split=val" --limit 20 --out camvid-plain

CamVid's usual val split is sequence 0016E5, whose other frames are in train: they are left out here, so that no scene
is judged that was trained on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from robseg.data import open_data
from robseg.loading.model_folder import save_model
from robseg.models.small_unet import small_unet
from robseg.training.fit import Progress, Recipe, fit

RECIPES = {
    "plain": Recipe(method="clean", steps=1200, lr=2.5e-3, crop=128),
    "robust": Recipe(method="at", steps=1200, lr=2.5e-3, crop=128, eps=4.0, alpha=3.0, attack_steps=2),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    data = open_data(f"camvid:{arguments.root}?split=train&without=0016E5")
    torch.manual_seed(arguments.seed)
    network = small_unet(len(data.classes))

    def show(progress: Progress) -> None:
        if progress.step % 50 == 0:
            print(
                f"step {progress.step}/{recipe.steps}: loss {progress.loss:.3f}, accuracy {progress.accuracy:.3f}",
                flush=True,
            )

    history = fit(network, data, recipe, seed=arguments.seed, device=arguments.device, progress=show)
    save_model(
        arguments.out, network.cpu(), architecture="small_unet", arguments={"num_classes": len(data.classes)},
        classes=data.classes,
        training={"data": data.name, "seed": arguments.seed, "final_loss": history[-1].loss, **asdict(recipe)},
    )  # fmt: skip
    print(f"{arguments.out}: trained on {len(data)} images of {data.name}")


if __name__ == "__main__":
    main()
