"""Train a small model on CamVid, plainly or adversarially, for `robseg evaluate` to judge.

    python experiments/camvid_small.py CAMVID_ROOT plain  camvid-models/plain
    python experiments/camvid_small.py CAMVID_ROOT robust camvid-models/robust
    robseg evaluate camvid-models/plain --data "camvid:CAMVID_ROOT?split=val" --limit 20 --out camvid-plain

The recipes are camvid-small-plain and camvid-small-robust; the same without this file:

    robseg train camvid-small-plain data.root=CAMVID_ROOT --out camvid-models/plain
"""

from __future__ import annotations

import argparse
from pathlib import Path

import robseg


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("recipe", choices=("plain", "robust"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    overrides = {"data.root": arguments.root, "seed": arguments.seed}
    result = robseg.train(f"camvid-small-{arguments.recipe}", out=arguments.out, device=arguments.device, **overrides)
    print(f"{result.folder}: {result.steps} steps, last loss {result.loss:.3f}")


if __name__ == "__main__":
    main()
