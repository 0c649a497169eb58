"""A finished run folder without a model: random predictions, and every count and score that follows from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from robseg.attacks.catalogue import find_attacks, protocol_of
from robseg.data.palette import distinct_colours
from robseg.metrics.counts import Counts, concatenate, image_counts, stack
from robseg.metrics.scores import image_accuracy, image_miou, scores
from robseg.metrics.worst_case import worst_accuracy, worst_miou
from robseg.records.files import write_text
from robseg.records.result import (
    AttackScores,
    ClassEntry,
    DataEntry,
    ImageEntry,
    ImageRadius,
    ModelEntry,
    Protocol,
    Radius,
    Result,
    ScoreTable,
    Timings,
    WorstCase,
)
from robseg.records.run_folder import CLEAN, RunFolder, condition_name, save_png
from robseg.records.settings import make_settings

Pixels = np.ndarray


def fabricate_run(
    path: Path,
    *,
    seed: int = 0,
    eps: Sequence[float] = (4, 8),
    attacks: Sequence[str] = ("sea",),
    ids: Sequence[str] = ("first", "second", "third"),
    names: Sequence[str] = ("sky", "road", "tree", "car"),
    size: tuple[int, int] = (24, 32),
    weakness: float = 0.1,
    previews: Sequence[int] | None = None,
    pictures: Sequence[Pixels] | None = None,
    labels: Sequence[Pixels] | None = None,
    warnings: Sequence[str] = (),
    norm: str = "linf",
    data_seed: int = 0,
) -> Result:
    """Write a run folder with `result.json` and return the result.

    weakness: the share of pixels that an attack turns wrong per 1/255 of radius; the clean predictions err in 10 %.
    previews: indices of the images that have previews, None for all.
    pictures, labels: (H, W, 3) and (H, W) uint8, else blocks of `size` are drawn, with an ignored stripe on top.
    """
    settings = make_settings(
        model="tiny", data="folder:data", eps=tuple(eps), norm=norm, attacks=find_attacks(attacks, steps=5), seed=seed
    )
    count, number = len(names), len(ids)
    data_rng = np.random.default_rng(data_seed)
    labels = [_blocks(data_rng, size, count) for _ in ids] if labels is None else [np.array(label) for label in labels]
    pictures = pictures if pictures is not None else [_picture(data_rng, label) for label in labels]
    rng = np.random.default_rng(seed)
    folder = RunFolder(path, count)
    folder.begin({"settings": settings.model_dump(mode="json"), "identity": {}})
    shown = range(number) if previews is None else previews

    def predict(condition: str, share: float) -> Counts:
        parts = []
        for index, label in enumerate(labels):
            prediction = _with_errors(rng, label, count, share)
            folder.write_prediction(condition, index, torch.from_numpy(prediction))
            parts.append(
                image_counts(torch.from_numpy(prediction)[None].long(), torch.from_numpy(label)[None].long(), count)
            )
        return concatenate(parts)

    clean = predict(CLEAN, 0.1)
    for index in shown:
        save_png(folder.preview_folder(index) / "original.png", pictures[index])
        save_png(folder.preview_folder(index) / "label.png", labels[index])
    radii, chosen, per_attack = [], [], []
    for e in settings.eps:
        rows = []
        for order, attack in enumerate(settings.attacks):
            condition = condition_name(e, attack.name)
            rows.append(predict(condition, min(0.97, 0.1 + e * weakness * (0.8 + 0.1 * order)) if e else 0.1))
            for index in shown:
                change = rng.choice([-1.0, 1.0], size=pictures[index].shape) * e
                place = folder.preview_folder(index)
                save_png(place / f"{condition}.png", (pictures[index] + change).clip(0, 255).astype(np.uint8))
                grey = 127.5 + 127.5 * change / max(e, 1e-9)
                save_png(place / f"{condition}_perturbation.png", grey.clip(0, 255).astype(np.uint8))
        choices = stack([clean, *rows])
        for_aacc, for_miou = worst_accuracy(choices), worst_miou(choices).choice
        by_accuracy = ScoreTable.of(scores(choices.choose(for_aacc)))
        own = np.stack([image_miou(part) for part in (clean, *rows)]).min(axis=0)
        worst = ScoreTable.of(scores(choices.choose(for_miou))).model_dump() | {
            "aacc": by_accuracy.aacc, "aacc_pooled": by_accuracy.aacc_pooled,
            "nmiou": None if np.isnan(own).all() else float(np.nanmean(own)),
        }  # fmt: skip
        found = [
            AttackScores(
                name=attack.name, scores=ScoreTable.of(scores(row)),
                forward_passes=6 * number, backward_passes=5 * number, invalid_points=0,
            )
            for attack, row in zip(settings.attacks, rows, strict=True)
        ]  # fmt: skip
        radii.append(Radius(eps=e, attacks=found, worst_case=WorstCase(**worst)))
        chosen.append((for_aacc, for_miou))
        per_attack.append([image_accuracy(row) for row in rows])
    members = [attack.name for attack in settings.attacks]
    candidates = [CLEAN, *members]
    clean_accuracy = image_accuracy(clean)
    images = [
        ImageEntry(
            index=i, id=ids[i], height=labels[i].shape[0], width=labels[i].shape[1],
            counted_pixels=int(clean.target[i].sum()), clean_accuracy=_number(clean_accuracy[i]),
            radii=[
                ImageRadius(
                    eps=radius.eps,
                    accuracy={name: _number(row[i]) for name, row in zip(members, rows, strict=True)},
                    chosen_for_aacc=candidates[a[i]], chosen_for_miou=candidates[m[i]],
                )
                for radius, rows, (a, m) in zip(radii, per_attack, chosen, strict=True)
            ],
        )
        for i in range(number)
    ]  # fmt: skip
    colours = distinct_colours(count)
    pixels = clean.target.sum(axis=0).tolist()
    protocol, deviations = protocol_of(settings.attacks, norm)
    empty = [entry.id for entry in images if not entry.counted_pixels]
    total = sum(label.size for label in labels)
    result = Result(
        robseg_version="0.1.0",
        settings=settings.model_dump(mode="json"),
        model=ModelEntry(
            name="tiny", parameters=7_703_497, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], precision="fp32",
            sha256=_sha256(f"model {seed}"),
        ),
        data=DataEntry(
            name="folder:data", images=number, images_without_counted_pixels=empty,
            void="Label 255 and class 11 are ignored.", void_share=1 - sum(pixels) / total,
            classes=[ClassEntry(name=n, colour=c, pixels=p) for n, c, p in zip(names, colours, pixels, strict=True)],
            sha256=_sha256(f"data {data_seed}"),
        ),
        protocol=Protocol(name=protocol, deviations=deviations),
        class_weights=None, clean=ScoreTable.of(scores(clean)), radii=radii, images=images, warnings=list(warnings),
        forward_passes=6 * number * len(members) * len(radii), backward_passes=5 * number * len(members) * len(radii),
        environment={"python": "3.12.1", "torch": "2.9.0", "device": "cpu: x86_64"},
        timings=Timings(
            finished="2025-01-01T12:00:00+00:00", attack_seconds=754.3,
            seconds_per_condition={CLEAN: 0.3}
            | {condition_name(r.eps, name): 125.6 for r in radii for name in members},
        ),
        folder=path,
    )  # fmt: skip
    write_text(path / "result.json", result.model_dump_json(indent=1))
    return result


def _blocks(rng: np.random.Generator, size: tuple[int, int], classes: int) -> Pixels:
    """A label of blocks, with an ignored stripe on top."""
    grid = rng.integers(0, classes, size=(4, 4))
    label = np.kron(grid, np.ones((-(-size[0] // 4), -(-size[1] // 4))))[: size[0], : size[1]].astype(np.uint8)
    label[: max(1, size[0] // 10)] = 255
    return label


def _picture(rng: np.random.Generator, label: Pixels) -> Pixels:
    colours = rng.integers(40, 216, size=(256, 3))
    return (colours[label] + rng.normal(0, 6, size=(*label.shape, 3))).clip(0, 255).astype(np.uint8)


def _with_errors(rng: np.random.Generator, label: Pixels, classes: int, share: float) -> Pixels:
    """The label (classes of a shuffled place where ignored) with `share` of its pixels wrong, in blocks of 2 x 2."""
    height, width = label.shape
    coarse = (-(-height // 2), -(-width // 2))
    wrong = np.kron(rng.random(coarse) < share, np.ones((2, 2), bool))[:height, :width]
    other = np.kron(rng.integers(0, classes, coarse), np.ones((2, 2), np.uint8))[:height, :width]
    return np.where(wrong | (label == 255), other, label).astype(np.uint8)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
