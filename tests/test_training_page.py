"""The report of a training, from folders that no training wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from robseg.errors import UserError
from robseg.report.training_page import (
    best_of,
    commands,
    read_training,
    render,
    verdict,
    warnings,
    write_training_report,
)

CLASSES = [{"name": "sky & <b>sea</b>", "colour": [10, 20, 200]}, {"name": "Straße", "colour": [90, 90, 90]}]


def validation(step: int, clean: float | None, attacked: float | None, *, best: bool) -> dict[str, Any]:
    def scores(value: float | None) -> dict[str, Any]:
        return {"miou": value, "aacc": value, "macc": value, "iou": [value, None]}

    under = attacked if attacked is not None else clean
    return {
        "step": step, "epoch": step / 7,
        "validation": {
            "images": 1449, "clean": scores(clean), "attacked": None if attacked is None else scores(attacked),
            "attack": None if attacked is None else "pgd[steps=5,start=clean]", "eps": 4.0, "seconds": 1.5,
            "criterion": "clean.miou" if attacked is None else "attacked.miou", "value": under, "best": best,
        },
    }  # fmt: skip


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": number, "epoch": number / 7, "loss": loss, "parts": {"main": loss}, "accuracy": 0.5,
        "rate": 1e-3 / number, "gradient": None, "images_per_s": 12.5,
    }  # fmt: skip


GOOD = [
    *[step(n, 2 / n) for n in range(1, 51)],
    validation(50, 0.5, 0.3, best=True),
    *[step(n, 2 / n) for n in range(51, 101)],
    validation(100, 0.6, 0.4, best=True),
]


def folder(
    path: Path, lines: list[dict[str, Any]] = GOOD, *, samples: int = 0, model: bool = True, **changes: Any
) -> Path:
    path.mkdir(exist_ok=True)
    recipe: dict[str, Any] = {
        "name": "my <recipe>", "data": {"train": "voc:{root}?split=train", "validation": "voc:{root}?split=val",
        "root": "/data/my VOC"}, "model": {"architecture": "pspnet50", "checkpoint": None, "backbone": "resnet50.pth"},
        "method": "at", "attack": {"name": "pgd", "objective": "ce", "eps": 4.0, "alpha": None, "steps": 2,
        "random_start": False}, "optimiser": {"name": "sgd", "lr": 0.01, "weight_decay": 1e-4}, "batch_size": 16,
        "precision": "fp32", "validation": {"times": 10, "window": None},
    }  # fmt: skip
    names = [entry["name"] for entry in CLASSES]
    entry = {"name": "voc", "images": 1464, "classes": names, "void": "none"}
    run = {
        "robseg_version": "0.1.0", "torch_version": "2.9", "steps": 100, "epochs": 14.3, "parameters": 46_000_000,
        "device": "cpu", "processes": 2, "data": entry, "validation_data": entry,
    }  # fmt: skip
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    (path / "run.yaml").write_text(yaml.safe_dump(run))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if model:
        (path / "best").mkdir(exist_ok=True)
        for place in (path, path / "best"):
            (place / "model.yaml").write_text(yaml.safe_dump({"classes": CLASSES}))
    for index in range(samples):
        place = path / "samples" / str(index)
        place.mkdir(parents=True)
        rng = np.random.default_rng(index)
        for name in ("image", "adversarial"):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place / f"{name}.png")
        for name in ("label", "prediction", "adversarial-prediction"):
            values = rng.choice(np.array([0, 1, 255], dtype=np.uint8), (20, 30))
            Image.fromarray(values).save(place / f"{name}.png")
    return path


class Page(HTMLParser):
    """Tags that were opened, pictures, and the text; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_a_finished_training(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", samples=2)
    file = write_training_report(run)
    assert file == run / "report.html"
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert "b" not in page.tags
    assert "my <recipe>" in page.text
    assert "sky & <b>sea</b>" in page.text
    assert "Straße" in page.text
    assert (
        "After all 100 steps, mIoU is 60.0\u00a0% on 1,449 clean images and 40.0\u00a0% under PGD-5 at 4/255."
        in page.text
    )
    assert "weights of resnet50.pth" in page.text
    assert len(page.sources) == 4 + 2 * 5
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"(src|href)=\"?(https?:|//)", text)
    assert "not finished" not in text
    assert text == render(read_training(run))
    elsewhere = write_training_report(run, tmp_path / "other.html")
    assert elsewhere.read_text(encoding="utf-8") == text


def test_what_to_run_next(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    lines = [line for _, line in commands(read_training(run))]
    assert len(lines) == 2
    for line in lines:
        assert f"robseg evaluate {run}/best --data 'voc:/data/my VOC?split=val'" in line
        assert "--train-data 'voc:/data/my VOC?split=train' --eps 4 --eps 8" in line
    given = folder(tmp_path / "given", data={"train": "given", "validation": None, "root": None})
    assert all("--data YOUR_VALIDATION_DATA" in line for _, line in commands(read_training(given)))
    rootless = folder(tmp_path / "b", data={"train": "voc:{root}", "validation": "voc:{root}", "root": None})
    assert all("--train-data YOUR_TRAINING_DATA" in line for _, line in commands(read_training(rootless)))
    cut = folder(tmp_path / "cut", GOOD[:30], model=False)
    assert [line for _, line in commands(read_training(cut))] == [f"robseg train --resume --out {cut}"]


def test_an_unfinished_training_says_so(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [*GOOD[:51], step(51), step(52)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 53, "lo')
    training = read_training(run)
    assert training.done == 52
    assert verdict(training).startswith("After 52 of 100 steps, at the last validation after 50, mIoU is 50.0\u00a0%")
    assert "52 of 100 steps are done" in warnings(training)[0]
    Page(render(training))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [step(1)],
        GOOD[:50],
        [validation(100, 0.5, 0.2, best=True)],
        [*GOOD[:50], validation(50, 0.5, None, best=True)],
        [*GOOD[:50], validation(50, None, None, best=False)],
        [*GOOD[:50], validation(50, None, 0.1, best=False), step(51)],
    ],
    ids=["nothing", "one step", "no validation", "no steps", "no attack", "nothing counted", "partly counted"],
)
@pytest.mark.parametrize("samples", [0, 1])
def test_whatever_is_missing_is_left_out(tmp_path: Path, lines: list[dict[str, Any]], samples: int) -> None:
    run = folder(tmp_path / "run", lines, samples=samples, model=samples > 0, method="clean" if samples else "ddcat")
    if samples:
        (run / "samples" / "0" / "adversarial.png").unlink()
        (run / "samples" / "0" / "label.png").write_bytes(b"damaged")
    Page(render(read_training(run)))


def test_the_best_is_the_last_that_was_best_and_a_fall_from_it_is_told(tmp_path: Path) -> None:
    lines = [
        *GOOD, validation(150, 0.7, 0.35, best=False), *[step(n) for n in range(101, 201)],
        validation(200, 0.8, 0.2, best=False),
    ]  # fmt: skip
    run = folder(tmp_path / "run", lines)
    training = read_training(run)
    best = best_of(training.validations)
    assert best is not None
    assert best["step"] == 100
    assert "mIoU under attack was best after 100 steps, 40.0\u00a0%" in verdict(training)
    assert any("fell from 40.0\u00a0% after 100 steps to 20.0\u00a0%" in text for text in warnings(training))


def test_long_trainings_stay_small(tmp_path: Path) -> None:
    lines = [step(n, 1 + n % 3) for n in range(1, 20_001)]
    lines += [validation(n, 0.5, 0.2, best=n == 10) for n in range(10, 20_000, 200)]
    text = render(read_training(folder(tmp_path / "run", lines)))
    assert len(text) < 400_000
    assert "the last 12 of 100" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "run.yaml").unlink(), "run.yaml is missing"),
        (lambda run: (run / "recipe.yaml").write_text("[1, 2]"), "recipe.yaml"),
        (lambda run: (run / "recipe.yaml").write_text("a: [1"), "recipe.yaml"),
        (lambda run: (run / "recipe.yaml").write_text("data: 5"), "recipe.yaml is damaged: data"),
        (lambda run: (run / "recipe.yaml").write_text("data:"), "recipe.yaml is damaged: data"),
        (lambda run: (run / "run.yaml").write_text("data: {}"), "run.yaml is damaged: steps"),
        (lambda run: (run / "metrics.jsonl").write_text("5\n"), "metrics.jsonl, line 1"),
        (lambda run: (run / "metrics.jsonl").write_text("null\n"), "metrics.jsonl, line 1"),
        (lambda run: (run / "metrics.jsonl").write_text("[]\n"), "metrics.jsonl, line 1"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": "x"}\n'), "metrics.jsonl, line 1"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 5, "validation": 3}\n'), "metrics.jsonl, line 1"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n'), "metrics.jsonl, line 1"),
    ],
)
def test_damaged_folders(tmp_path: Path, damage: Any, words: str) -> None:
    run = folder(tmp_path / "run")
    damage(run)
    with pytest.raises(UserError, match=words):
        write_training_report(run)
