"""The report of a training as one HTML file, from the folder of the training alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from robseg.data.base import IGNORE_INDEX
from robseg.errors import UserError
from robseg.loading.model_folder import DESCRIPTION, GIVEN, model_words
from robseg.records.files import write_text
from robseg.records.training_run import BEST, RECIPE, RUN, SAMPLES, read_metrics
from robseg.records.yaml_files import read_yaml
from robseg.report.page import MEASURES, percent
from robseg.report.pictures import Level, paint_map, photograph
from robseg.report.training_figures import loss_curve, rate_curve, validation_curve

PICTURES = Level(side=384, quality=80, all_attacks=False)

MOST_SAMPLES = 6
MOST_ROWS = 12
"""Of more validations the table shows the last ones; the curves have them all."""

FALLEN = 0.02
"""By how much the criterion may lie below its best before the report warns of it."""

METHODS = {
    "clean": "clean training",
    "at": "adversarial training (AT): every image of a batch is adversarial",
    "sat": "SAT: half of each batch is adversarial",
    "ddcat": "DDC-AT: half of each batch is adversarial, pixels are divided between two branches",
}
PARTS = ("image", "label", "prediction", "adversarial", "adversarial-prediction")


@dataclass(frozen=True)
class Training:
    """What a training's folder holds: recipe.yaml, run.yaml, model.yaml's classes (None before a model was saved), and
    the lines of metrics.jsonl."""

    folder: Path
    recipe: Mapping[str, Any]
    run: Mapping[str, Any]
    classes: Sequence[Mapping[str, Any]] | None
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]

    @property
    def done(self) -> int:
        """Steps that were made."""
        return int(self.steps[-1]["step"]) if self.steps else 0


def write_training_report(folder: Path, file: Path | None = None) -> Path:
    """Write the report of a training, finished or not, to one self-contained HTML file: FOLDER/report.html.

    Raises UserError where the folder holds no training, what it holds is damaged, or the file cannot be written.
    """
    file = folder / "report.html" if file is None else file
    write_text(file, render(read_training(folder)))
    return file


def read_training(folder: Path) -> Training:
    """Read the folder of a training; a last line of metrics.jsonl that is not whole yet is left out.

    Raises UserError where it holds no training, or what it holds is damaged.
    """
    for name in (RECIPE, RUN):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no training: {name} is missing; give the folder that a training wrote.")
    recipe, run = read_yaml(folder / RECIPE), read_yaml(folder / RUN)
    for name, content, sections, values in (
        (RECIPE, recipe, ("data", "model", "attack", "optimiser", "validation"), ("name", "method", "batch_size")),
        (RUN, run, ("data",), ("steps", "epochs", "parameters", "device", "processes")),
    ):
        wrong = [key for key in sections if not isinstance(content.get(key), Mapping)]
        wrong += [key for key in values if content.get(key) is None]
        if wrong:
            raise UserError(f"{folder / name} is damaged: {wrong[0]} is not what a training writes there.")
    places = [place / DESCRIPTION for place in (folder, folder / BEST) if (place / DESCRIPTION).is_file()]
    classes = read_yaml(places[0]).get("classes") if places else None
    lines = read_metrics(folder)
    return Training(
        folder, recipe, run, classes,
        [line for line in lines if "loss" in line], [line for line in lines if "validation" in line],
    )  # fmt: skip


def render(training: Training) -> str:
    """The page of a training."""
    environment = Environment(
        loader=PackageLoader("robseg.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "short": _short}
    last = training.validations[-1]["validation"] if training.validations else None
    best = best_of(training.validations)
    samples, shown = _samples(training)
    names = training.run["data"]["classes"]
    return environment.get_template("training.html.j2").render(
        training=training,
        heading=training.recipe["name"],
        verdict=verdict(training),
        warnings=warnings(training),
        last=last,
        best=best,
        rows=training.validations[-MOST_ROWS:],
        facts=_facts(training),
        curves=_curves(training),
        class_names=names,
        colours=[entry["colour"] for entry in training.classes] if training.classes else None,
        samples=samples,
        shown=shown,
        void=IGNORE_INDEX,
        commands=commands(training),
        settings=yaml.safe_dump(dict(training.recipe), sort_keys=False, allow_unicode=True, width=100),
    )


def verdict(training: Training) -> str:
    """One sentence with the numbers: how far it came, and what the last and the best validation found."""
    of = training.run["steps"]
    begin = f"After {training.done:,} of {of:,} steps" if training.done < of else f"After all {of:,} steps"
    if not training.validations:
        loss = f" the loss is {training.steps[-1]['loss']:.3f};" if training.steps else ""
        return f"{begin}{loss} there was no validation{' yet' if training.done < of else ''}."
    line = training.validations[-1]
    if line["step"] < training.done:
        begin = f"{begin}, at the last validation after {line['step']:,}"
    found = line["validation"]
    text = f"{begin}, mIoU is {percent(found['clean']['miou'])}\u00a0% on {found['images']:,} clean images"
    if found["attacked"]:
        text += (
            f" and {percent(found['attacked']['miou'])}\u00a0% under {_short(found['attack'])} at {found['eps']:g}/255"
        )
    best = best_of(training.validations)
    if best and best["step"] != line["step"]:
        text += (
            f"; {_criterion(found['criterion'])} was best after {best['step']:,} steps, "
            f"{percent(best['validation']['value'])}\u00a0%"
        )
    return text + "."


def warnings(training: Training) -> list[str]:
    """What a reader should know before trusting the numbers."""
    found = []
    of = training.run["steps"]
    if training.done < of:
        found.append(f"The training is not finished: {training.done:,} of {of:,} steps are done.")
    if training.validations:
        last, best = training.validations[-1]["validation"], best_of(training.validations)
        if last["attacked"]:
            found.append(
                f"{_short(last['attack'])} is a short attack, for choosing a model; the model's robustness is what "
                "SEA leaves, see below."
            )
        if best and last["value"] is not None and best["validation"]["value"] - last["value"] > FALLEN:
            found.append(
                f"{_criterion(last['criterion'])} fell from {percent(best['validation']['value'])}\u00a0% after "
                f"{best['step']:,} steps to {percent(last['value'])}\u00a0%: the model in best/ is not the last one."
            )
    return found


def best_of(validations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The validation whose model is in best/; None where none had a value."""
    return next((line for line in reversed(validations) if line["validation"]["best"]), None)


def commands(training: Training) -> list[tuple[str, str]]:
    """(what for, command line) of what to run next."""
    folder, recipe = training.folder, training.recipe
    found: list[tuple[str, str]] = []
    if training.done < training.run["steps"]:
        found.append(("Go on with the training", _line("robseg", "train", "--resume", "--out", folder)))
    saved = [place for place in (folder / BEST, folder) if (place / DESCRIPTION).is_file()]
    if saved:
        model = model_words(saved[0], recipe["model"]["architecture"])
        data = _data(recipe["data"]["validation"] or GIVEN, recipe) or "YOUR_VALIDATION_DATA"
        train = _data(recipe["data"]["train"], recipe) or "YOUR_TRAINING_DATA"
        out = folder.with_name(f"{folder.name}-sea")
        window = recipe["validation"].get("window")
        if window is not None:
            model += ["--window", str(window)]
        evaluate = ("robseg", "evaluate", *model, "--data", data, "--train-data", train, "--eps", "4", "--eps", "8")
        look = _line(*evaluate, "--limit", "20", "--steps", "50", "--out", f"{out}-first")
        found.append(("A first look at its robustness", look))
        found.append(("Its robustness by the published protocol, SEA", _line(*evaluate, "--out", out)))
    return found


def _data(text: str, recipe: Mapping[str, Any]) -> str | None:
    """The data of a recipe as a command line takes them; None for objects that were given in Python."""
    root = recipe["data"].get("root")
    if text == GIVEN or ("{root}" in text and root is None):
        return None
    return text.replace("{root}", str(root).replace("%", "%25").replace("?", "%3F"))


def _line(*words: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)


def _facts(training: Training) -> list[tuple[str, str]]:
    """(name, value) of the training's settings that matter most."""
    recipe, run = training.recipe, training.run
    facts = [("Method", METHODS.get(recipe["method"], recipe["method"]))]
    if recipe["method"] != "clean":
        attack = recipe["attack"]
        alpha = f" of {attack['alpha']:g}/255" if attack["alpha"] is not None else ""
        start = "a random start" if attack["random_start"] else "the image"
        count = f"{attack['steps']} step" + ("s" if attack["steps"] > 1 else "")
        within = f"within {attack['eps']:g}/255 from {start}"
        grown = f", grown over the first {recipe['eps_warmup']:.0%} of the steps" if recipe.get("eps_warmup") else ""
        facts.append(("Attack", f"{attack['name'].upper()} on {attack['objective']}, {count}{alpha} {within}{grown}"))
    model = recipe["model"]
    weights = model["checkpoint"] or model["backbone"]
    facts.append(("Model", f"{model['architecture']}, {run['parameters']:,} parameters"))
    facts.append(("Start", f"weights of {weights}" if weights else "fresh weights"))
    optimiser = recipe["optimiser"]
    clip = f", gradient clipped to {optimiser['clip']:g}" if optimiser.get("clip") else ""
    text = f"{optimiser['name']}, rate {optimiser['lr']:g}, decay {optimiser['weight_decay']:g}{clip}"
    facts.append(("Optimiser", text))
    if recipe.get("ema"):
        facts.append(("Weights", f"averages (decay {recipe['ema']:g}) of those trained are validated and saved"))
    pieces = f", {recipe['micro_batch']} at a time" if recipe.get("micro_batch") else ""
    facts.append(
        ("Length", f"{run['steps']:,} steps of {recipe['batch_size']} images{pieces}, {run['epochs']:g} epochs")
    )
    facts.append(("Training data", f"{run['data']['images']:,} images of {run['data']['name']}"))
    if run["validation_data"]:
        judged = run["validation_data"]
        facts.append(("Validation data", f"{judged['images']:,} images of {judged['name']}"))
    speeds = [line["images_per_s"] for line in training.steps]
    processes = f"{run['processes']} processes" if run["processes"] > 1 else "one process"
    speed = f", {median(speeds):.3g} images/s" if speeds else ""
    facts.append(("Machine", f"{run['device']}, {processes}, {recipe['precision']}{speed}"))
    facts.append(("robseg", f"{run['robseg_version']}, torch {run['torch_version']}"))
    return facts


def _curves(training: Training) -> list[tuple[str, str]]:
    """(title, data URI)."""
    found = []
    if training.validations:
        last = max(training.done, training.validations[-1]["step"])
        for measure, title in (("miou", "mIoU in validation"), ("aacc", "aAcc in validation")):
            found.append((title, validation_curve(training.validations, measure, last)))
    if training.steps:
        found.append(("Loss", loss_curve(training.steps)))
        found.append(("Learning rate", rate_curve(training.steps)))
    return found


def _samples(training: Training) -> tuple[list[dict[str, str | None]], list[int]]:
    """The stored pictures as data URIs, and the classes that occur in them (255: ignored)."""
    if training.classes is None or not (training.folder / SAMPLES).is_dir():
        return [], []
    colours = [entry["colour"] for entry in training.classes]
    places = [place for place in (training.folder / SAMPLES).iterdir() if place.name.isdigit()]
    found: list[dict[str, str | None]] = []
    classes: set[int] = set()
    for place in sorted(places, key=lambda place: int(place.name))[:MOST_SAMPLES]:
        sample: dict[str, str | None] = {}
        for part in PARTS:
            if part in ("image", "adversarial"):
                sample[part] = photograph(place / f"{part}.png", PICTURES)
                continue
            painted = paint_map(place / f"{part}.png", colours, PICTURES.side)
            sample[part] = painted[0] if painted else None
            classes |= painted[1] if painted else set()
        if any(sample.values()):
            found.append(sample)
    return found, sorted(classes)


def _criterion(name: str) -> str:
    condition, _, measure = name.partition(".")
    where = "under attack" if condition == "attacked" else "on clean images"
    return f"{MEASURES[measure][0]} {where}"


def _short(attack: str) -> str:
    """An attack's name without its options, but with its steps."""
    name, _, options = attack.partition("[")
    steps = next((part[6:] for part in options.rstrip("]").split(",") if part.startswith("steps=")), None)
    return f"{name.upper()}-{steps}" if steps else name.upper()
