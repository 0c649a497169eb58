"""The result of an evaluation: the schema of result.json, and the object that `robseg.evaluate` returns.

docs/result.md describes the fields in prose. SCHEMA_VERSION rises when a field changes its meaning or goes away; new
fields may come without.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robseg.errors import UserError
from robseg.metrics.scores import Scores
from robseg.records.files import read_errors

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreTable(_Part):
    """Scores of one set of predictions, as fractions; null where nothing was counted.

    aacc: mean over images of each image's share of correct pixels (the published aAcc).
    aacc_pooled: share of correct pixels of all images together. macc: mean accuracy over classes.
    miou: classes pooled over all images, then the mean. nmiou: each image's mIoU, then the mean.
    class_iou, class_accuracy: in the order of the classes.
    """

    aacc: float | None
    aacc_pooled: float | None
    macc: float | None
    miou: float | None
    nmiou: float | None
    class_iou: list[float | None]
    class_accuracy: list[float | None]

    @classmethod
    def of(cls, scores: Scores) -> ScoreTable:
        """The table of `robseg.metrics.scores.Scores`."""
        return cls(
            aacc=_number(scores.aacc_image_mean), aacc_pooled=_number(scores.aacc_pooled), macc=_number(scores.macc),
            miou=_number(scores.miou), nmiou=_number(scores.nmiou),
            class_iou=[_number(v) for v in scores.iou], class_accuracy=[_number(v) for v in scores.accuracy],
        )  # fmt: skip


class AttackScores(_Part):
    """One attack at one radius. Passes are summed over images (an image in a batch of 8 counts once)."""

    name: str
    scores: ScoreTable
    forward_passes: int
    backward_passes: int
    invalid_points: int


class WorstCase(ScoreTable):
    """The worst case over the attacks of a radius and the clean image.

    aacc, aacc_pooled: each image under the attack that leaves the fewest pixels right.
    miou, macc, class_iou, class_accuracy: each image under the attack chosen so that the pooled mIoU of the whole
        set is lowest. nmiou: each image under the attack with its own lowest mIoU.
    """


class Radius(_Part):
    """All that was found at one radius. eps: in n/255."""

    eps: float
    attacks: list[AttackScores]
    worst_case: WorstCase

    def attack(self, name: str) -> AttackScores:
        """The attack of that name; KeyError lists the names."""
        for found in self.attacks:
            if found.name == name:
                return found
        raise KeyError(f"{name}; attacks: {', '.join(attack.name for attack in self.attacks)}")


class ImageRadius(_Part):
    """One image at one radius: accuracy under each attack, and which attack each worst case chose ("clean": none)."""

    eps: float
    accuracy: dict[str, float | None]
    chosen_for_aacc: str
    chosen_for_miou: str


class ImageEntry(_Part):
    """One evaluated image; index is its place in the data set and the stem of its files in the run folder."""

    index: int
    id: str
    height: int
    width: int
    counted_pixels: int
    clean_accuracy: float | None
    radii: list[ImageRadius]


class ClassEntry(_Part):
    """A class: its name, the RGB colour in which it is drawn, and its counted label pixels."""

    name: str
    colour: tuple[int, int, int]
    pixels: int


class DataEntry(_Part):
    """The evaluated data. sha256: over ids, images and labels as decoded."""

    name: str
    images: int
    images_without_counted_pixels: list[str]
    void: str
    void_share: float
    classes: list[ClassEntry]
    sha256: str


class ModelEntry(_Part):
    """The evaluated model. sha256: over the names, shapes and values of its state, and its normalisation."""

    name: str
    parameters: int
    mean: list[float] | None
    std: list[float] | None
    precision: str
    sha256: str


class Protocol(_Part):
    """The published protocol that was followed and every deviation from it; "custom" where there is none."""

    name: str
    deviations: list[str]


class ClassWeights(_Part):
    """The class weights of mce-bal and where the pixels were counted: "training labels" or "evaluated labels"."""

    source: str
    values: list[float]


class Timings(_Part):
    """The only part of a result that differs when the same run is made again. seconds: of all processes together."""

    finished: str
    attack_seconds: float
    seconds_per_condition: dict[str, float]


class Result(_Part):
    """What result.json holds."""

    schema_version: int = SCHEMA_VERSION
    robseg_version: str
    settings: dict[str, Any]
    model: ModelEntry
    data: DataEntry
    protocol: Protocol
    class_weights: ClassWeights | None
    clean: ScoreTable
    radii: list[Radius]
    images: list[ImageEntry]
    warnings: list[str]
    forward_passes: int
    backward_passes: int
    environment: dict[str, str]
    timings: Timings
    folder: Path | None = Field(default=None, exclude=True)

    def at(self, eps: float) -> Radius:
        """The radius eps (n/255); KeyError lists those that were evaluated."""
        for radius in self.radii:
            if math.isclose(radius.eps, eps):
                return radius
        raise KeyError(f"{eps:g}; radii: {', '.join(f'{radius.eps:g}' for radius in self.radii)}")


def read_result(folder: str | Path) -> Result:
    """The result in a run folder; UserError where there is none, it is damaged, or of another schema version."""
    folder = Path(folder)
    file = folder / "result.json"
    try:
        with read_errors(file):
            if not file.exists():
                raise UserError(
                    f"{folder} holds no finished evaluation (result.json is missing); `robseg evaluate` makes one."
                )
            text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        # A later version may have other fields, whose names would tell the user nothing.
        if (version := content.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema version {str(version)[:20]}, but this robseg reads version {SCHEMA_VERSION}; use "
                "the robseg that made it, or evaluate again."
            )
        result = Result.model_validate_json(text)
        _check_whole(result)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ").lower()
        raise UserError(f"{file} is damaged: {'.'.join(map(str, first['loc']))}: {reason}.") from None
    except ValueError as error:
        # What is no JSON, or no text.
        raise UserError(f"{file} is damaged: {str(error).rstrip('.')}.") from None
    return result.model_copy(update={"folder": folder})


def _check_whole(result: Result) -> None:
    """Raise ValueError without radii or attacks, for a colour that is none, and tables without a value per class."""
    count = len(result.data.classes)
    if not result.radii:
        raise ValueError("radii is empty")
    for i, entry in enumerate(result.data.classes):
        if not all(0 <= level <= 255 for level in entry.colour):
            raise ValueError(f"data.classes.{i}.colour is {entry.colour}, not three levels of 0 to 255")
    tables = [("clean", result.clean)]
    for i, radius in enumerate(result.radii):
        if not radius.attacks or not 0 <= radius.eps < math.inf:
            raise ValueError(f"radii.{i} has no attacks, or an eps that is none ({radius.eps})")
        tables.append((f"radii.{i}.worst_case", radius.worst_case))
        tables += [(f"radii.{i}.attacks.{j}.scores", attack.scores) for j, attack in enumerate(radius.attacks)]
    for where, table in tables:
        for name in ("class_iou", "class_accuracy"):
            if len(getattr(table, name)) != count:
                raise ValueError(f"{where}.{name} has {len(getattr(table, name))} values for {count} classes")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
