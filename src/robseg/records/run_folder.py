"""The folder of an evaluation: its settings, and what was found for each image under each attack, as it comes.

    settings.yaml                   what was asked, and fingerprints of the model and the data
    records/CONDITION[.rankR].jsonl one line per image: counts per class, passes, seconds
    predictions/CONDITION/INDEX.png predicted classes as an index PNG
    adversarial/CONDITION/INDEX.*   the adversarial images, where asked for
    previews/INDEX/...              pictures of the worst images, for the report
    result.json, report.html

A CONDITION is "clean" or "eps-4_apgd-mce". A record is written after all files of its image, so what has a record
is complete; files without one are written again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from robseg.errors import UserError
from robseg.metrics.counts import Counts
from robseg.records.files import LOCK, disk_errors, read_errors, whole_file, write_text
from robseg.records.settings import first_difference

FORMAT = 1
CLEAN = "clean"
MAY_CHANGE = ("batch_size",)
"""Settings in which a run may differ when it goes on: they change how long it takes, not what it finds."""


SHORT = 60
"""How many characters of a value an error shows."""


def condition_name(eps: float, attack: str) -> str:
    """The name under which an attack at a radius (n/255) is filed."""
    return f"eps-{eps:g}_{re.sub(r'[^A-Za-z0-9.=-]+', '_', attack).strip('_')}"


@dataclass(frozen=True)
class Record:
    """What is known of one image under one condition. Counts are (C,) each; seconds are the image's share."""

    index: int
    id: str
    counts: Counts
    forward_passes: int
    backward_passes: int
    invalid_points: int
    seconds: float


class RunFolder:
    """Reads and appends to the folder of one evaluation."""

    def __init__(self, path: Path, num_classes: int, rank: int = 0) -> None:
        self.path = path
        self.num_classes = num_classes
        self.rank = rank
        self._labels: dict[int, tuple[str, NDArray[np.int64]]] = {}

    def begin(self, description: dict[str, Any]) -> bool:
        """Start a run here, or make sure that the one here is the same; True if it goes on.

        description: {"settings": ..., "identity": ...}, plain values only. Raises UserError where the folder holds
        another run (naming the first key that differs), something else, or cannot be written.
        """
        file = self.path / "settings.yaml"
        if file.is_file():
            stored = read_description(self.path)
            for part in ("settings", "identity"):
                old, new = ({k: v for k, v in d[part].items() if k not in MAY_CHANGE} for d in (stored, description))
                found = first_difference(old, new)
                if found:
                    key, before, now = _apart(*found)
                    raise UserError(
                        f"{self.path} holds another run: {key} is {before} there and {now} now; choose another --out, "
                        "or the same settings to go on with that run."
                    )
            self._mend_torn_lines()
            return True
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if any(path.name != LOCK for path in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and holds no robseg run; choose another --out.")
        write_text(file, yaml.safe_dump({"format": FORMAT, **description}, sort_keys=False))
        return False

    def records(self, condition: str) -> dict[int, Record]:
        """All records of a condition by image index, from all processes.

        Raises UserError, with the line, for one that is damaged: in itself, or in that it counts other label pixels
        than one of the same image that was read before, as the label does not depend on the attack.
        """
        found: dict[int, Record] = {}
        for file in self._files(condition):
            with read_errors(file):
                lines = file.read_bytes().split(b"\n")[:-1]
            for number, line in enumerate(lines, 1):
                where = f"{file}, line {number}"
                record = self._parse(line, where)
                other, target = self._labels.setdefault(record.index, (where, record.counts.target))
                if not np.array_equal(target, record.counts.target):
                    raise UserError(
                        f"{where}, and {other}, count different label pixels of image {record.index}, so one of them "
                        "is damaged; delete both lines and run again to make them anew."
                    )
                found[record.index] = record
        return found

    def append(self, condition: str, record: Record) -> None:
        """Write one line; if the disk is full the file is left as it was."""
        suffix = f".rank{self.rank}" if self.rank else ""
        file = self.path / "records" / f"{condition}{suffix}.jsonl"
        present = record.counts.union.nonzero()[0]
        line = {
            "index": record.index, "id": record.id, "classes": present.tolist(),
            "intersection": record.counts.intersection[present].tolist(),
            "union": record.counts.union[present].tolist(), "target": record.counts.target[present].tolist(),
            "forward_passes": record.forward_passes, "backward_passes": record.backward_passes,
            "invalid_points": record.invalid_points, "seconds": round(record.seconds, 4),
        }  # fmt: skip
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab", buffering=0) as stream:
                length = stream.tell()
                data = json.dumps(line).encode() + b"\n"
                try:
                    # A nearly full disk takes part of a line without an error; only the next write is refused.
                    written = 0
                    while written < len(data):
                        written += stream.write(data[written:])
                except OSError:
                    stream.truncate(length)
                    raise

    def prediction_file(self, condition: str, index: int) -> Path:
        return self.path / "predictions" / condition / f"{index:06d}.png"

    def write_prediction(self, condition: str, index: int, prediction: Tensor) -> None:
        """Store predicted classes (H, W) as an index PNG."""
        save_png(self.prediction_file(condition, index), prediction.to("cpu").numpy().astype(np.uint8))

    def write_adversarial(self, condition: str, index: int, image: Tensor, form: str) -> None:
        """Store an adversarial image (3, H, W), as safetensors ("float": exactly) or as PNG ("8bit": values k/255)."""
        folder = self.path / "adversarial" / condition
        if form == "8bit":
            save_png(folder / f"{index:06d}.png", as_8bit(image))
            return
        with whole_file(folder / f"{index:06d}.safetensors") as temporary:
            save_file({"image": image.detach().to("cpu").contiguous()}, temporary)

    def preview_folder(self, index: int) -> Path:
        return self.path / "previews" / f"{index:06d}"

    def _files(self, condition: str) -> Iterator[Path]:
        folder = self.path / "records"
        candidates = [folder / f"{condition}.jsonl", *sorted(folder.glob(f"{_escape(condition)}.rank*.jsonl"))]
        return (file for file in candidates if file.is_file())

    def _mend_torn_lines(self) -> None:
        """Cut the last line off where a process died while writing it."""
        for file in (self.path / "records").glob("*.jsonl"):
            with read_errors(file):
                data = file.read_bytes()
            if data and not data.endswith(b"\n"):
                with disk_errors(file), file.open("r+b") as stream:
                    stream.truncate(data.rfind(b"\n") + 1)

    def _parse(self, line: bytes, where: str) -> Record:
        try:
            entry = json.loads(line)
            classes = _whole_numbers(entry, "classes", self.num_classes - 1)
            arrays = []
            for name in ("intersection", "union", "target"):
                values = _whole_numbers(entry, name)
                if not len(values) == len(classes) == len(set(classes)):
                    raise ValueError(f"{name} and classes do not go together")
                array = np.zeros(self.num_classes, dtype=np.int64)
                array[classes] = values
                arrays.append(array)
            forward, backward, invalid = (
                _whole(entry[name], name) for name in ("forward_passes", "backward_passes", "invalid_points")
            )
            seconds = entry["seconds"]
            if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
                raise ValueError(f"seconds is {_short(seconds)}")
            index = _whole(entry["index"], "index")
            return Record(index, str(entry["id"]), Counts(*arrays), forward, backward, invalid, float(seconds))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{where}, is damaged ({error}); delete the line and run again to make it anew.") from error


def read_description(path: Path) -> dict[str, Any]:
    """The settings.yaml of a run; UserError where it is missing, damaged or of a newer format.

    Has "settings" and "identity", a mapping each.
    """
    file = path / "settings.yaml"
    try:
        with read_errors(file):
            if not file.exists():
                raise UserError(f"{path} holds no robseg evaluation (settings.yaml is missing).")
            stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}.") from None
    if not isinstance(stored, dict) or "settings" not in stored:
        raise UserError(f"{file} does not describe a robseg evaluation.")
    if stored.get("format") != FORMAT:
        raise UserError(f"{file} has format {_short(stored.get('format'))}; this robseg reads format {FORMAT}.")
    for part in ("settings", "identity"):
        if not isinstance(stored.get(part), dict):
            raise UserError(
                f"{file} is damaged: {part} must be a mapping, not {_short(stored.get(part))}; choose another --out, "
                "or delete the folder."
            )
    return stored


def as_8bit(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8, rounded to the nearest level."""
    levels = (255 * image.detach()).round().clamp(0, 255)
    return levels.permute(1, 2, 0).to("cpu").numpy().astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write (H, W) or (H, W, 3) uint8 as a whole PNG file."""
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _escape(text: str) -> str:
    return re.sub(r"([*?\[\]])", r"[\1]", text)


def _whole(value: Any, name: str, largest: int = 2**62) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise ValueError(f"{name} holds {_short(value)}")
    return value


def _whole_numbers(entry: Any, name: str, largest: int = 2**62) -> list[int]:
    values = entry[name]
    if not isinstance(values, list):
        raise ValueError(f"{name} is no list")
    return [_whole(value, name, largest) for value in values]


def _apart(key: str, before: Any, now: Any) -> tuple[str, str, str]:
    """What differs as (key, text, text), short, and so that the texts do differ: of long lists the entry that does."""
    texts = str(before), str(now)
    if max(map(len, texts)) <= SHORT:
        return (key, *texts)
    if isinstance(before, list) and isinstance(now, list):
        # Attacks are known by their names; only of those that have one name the rest is of interest.
        names = [[one.get("name") if isinstance(one, dict) else one for one in part] for part in (before, now)]
        place = next((i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old != new), 0)
        found = first_difference(before[place], now[place], f"{key}.{place}") if names[0] == names[1] else None
        if found:
            return _apart(*found)
        texts = ", ".join(map(str, names[0])), ", ".join(map(str, names[1]))
        if max(map(len, texts)) <= SHORT:
            return (key, *texts)
    same = next((i for i, (old, new) in enumerate(zip(*texts, strict=False)) if old != new), min(map(len, texts)))
    start = max(0, same - SHORT // 3)
    old, new = (("..." if start else "") + _short(text[start:]) for text in texts)
    return key, old, new


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."
