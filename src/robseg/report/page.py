"""The report as one HTML file: it needs no network, and everything in it comes from the run folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from robseg.errors import UserError
from robseg.records.files import write_text
from robseg.records.result import Radius, Result, ScoreTable, WorstCase, read_result
from robseg.report.figures import curve
from robseg.report.pictures import Gallery, gallery

MEASURES = {
    "aacc": ("aAcc", "the share of pixels that are right in each image, averaged over the images"),
    "aacc_pooled": ("aAcc pooled", "the share of pixels that are right, of all images together"),
    "macc": ("mAcc", "the share of each class's pixels that are right, averaged over the classes"),
    "miou": ("mIoU", "intersection over union of each class with all images pooled, averaged over the classes"),
    "nmiou": ("NmIoU", "mIoU within each image, averaged over the images"),
}
"""The measures of the headline table: how they are called, and what they are."""

COMPARED = ("aacc", "miou")
"""The measures of the headline table of a comparison."""

MOST_BARS = 40
FEWER_BARS = 30
"""With more than MOST_BARS classes the FEWER_BARS with most pixels are drawn; the table in the page has them all."""

DOUBTS: dict[str, Callable[[Result], Any]] = {
    "the same attacks": lambda result: result.settings.get("attacks"),
    "the same precision": lambda result: result.settings.get("precision"),
    "the same sliding window": lambda result: [result.settings.get(key) for key in ("window", "long_side")],
    "the same rounding of adversarial images to 8 bits": lambda result: result.settings.get("save_images") == "8bit",
}
"""What makes a comparison of runs doubtful where it is not the same in all."""

EN_DASH = "–"


@dataclass(frozen=True)
class Row:
    """A row of the headline table: per run its scores, None where the run did not evaluate this."""

    name: str
    worst: bool
    scores: list[ScoreTable | WorstCase | None]


def write_report(runs: Sequence[tuple[str, Path]], file: Path) -> None:
    """Write the report of finished run folders, each with a title, to one self-contained HTML file.

    One run is reported, several are compared. Reads result.json, predictions and previews; pictures that are missing
    are left out. Raises UserError where a folder holds no finished evaluation, the runs are not of the same data or
    norm, two have one title, or the file cannot be written.
    """
    if not runs:
        raise UserError("No run is given; name the folder of at least one finished evaluation.")
    results: dict[str, Result] = {}
    for title, folder in runs:
        if title in results:
            raise UserError(f"Two runs are called '{title}'; give each its own title.")
        results[title] = read_result(folder)
    _check_comparable(results)
    write_text(file, render(results))


def render(runs: Mapping[str, Result]) -> str:
    """The page of results by title; each result must know its folder."""
    environment = Environment(
        loader=PackageLoader("robseg.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "yaml": _yaml, "duration": _duration}
    first = next(iter(runs.values()))
    radii = sorted({radius.eps for result in runs.values() for radius in result.radii})
    pictures = gallery(runs)
    return environment.get_template("report.html.j2").render(
        heading=_heading(list(runs)),
        verdict=verdict(runs),
        warnings=_warnings(runs),
        runs=runs,
        first=first,
        norm=first.settings.get("norm", "linf"),
        measures={key: MEASURES[key] for key in (MEASURES if len(runs) == 1 else COMPARED)},
        clean=[result.clean for result in runs.values()],
        groups=[(f"{eps:g}", _rows(runs, eps)) for eps in radii],
        largest={title: _largest(runs, result) for title, result in runs.items()},
        curves=[(MEASURES[key][0], curve(runs, key)) for key in ("aacc", "miou")],
        radii=[f"{eps:g}" for eps in radii],
        start=f"{max(_common(runs) or radii):g}",
        at=lambda result, eps: _at(result, float(eps)),
        bars=_drawn_classes(first),
        gallery=pictures,
        data=_data(runs, pictures),
    )


def percent(value: float | None) -> str:
    """A fraction in % with one decimal; an en dash where nothing was counted."""
    return EN_DASH if value is None else f"{100 * value:.1f}"


def verdict(runs: Mapping[str, Result]) -> str:
    """One sentence with the numbers: what the largest radius (of a comparison: that all have) does to each model."""
    parts: list[str] = []
    before = ""
    for title, result in runs.items():
        radius = _largest(runs, result)
        attack = f"Under {_attack_phrase(result)} at {_radius_phrase(radius, result)}"
        changes = [
            _change(MEASURES[key][0], getattr(result.clean, key), getattr(radius.worst_case, key)) for key in COMPARED
        ]
        (first, verb, how), (second, other_verb, other_how) = changes
        also = "" if verb == other_verb else f"{other_verb} "
        sentence = f"{first} {verb} {how} and {second} {also}{other_how}"
        if len(runs) == 1:
            return f"{attack}, {sentence}."
        where = "" if attack == before else f"{attack}, " if not parts else f"u{attack[1:]}, "
        parts.append(f"{where}with “{title}” {sentence}")
        before = attack
    return "; ".join(parts) + "."


def _change(measure: str, clean: float | None, worst: float | None) -> tuple[str, str, str]:
    if clean is None or worst is None:
        return measure, "is", "undefined, as no pixel was counted,"
    before, after = percent(clean), percent(worst)
    if before == after:
        return measure, "stays", f"at {before}\u00a0%"
    return measure, "falls" if worst < clean else "rises", f"from {before}\u00a0% to {after}\u00a0%"


def _attack_phrase(result: Result) -> str:
    if result.protocol.name != "custom":
        return result.protocol.name + (" with deviations" if result.protocol.deviations else "")
    names = list(dict.fromkeys(attack.name for radius in result.radii for attack in radius.attacks))
    if len(names) == 1:
        return names[0]
    if len(names) <= 3:
        return f"the worst of {', '.join(names[:-1])} and {names[-1]}"
    return f"the worst of {len(names)} attacks"


def _radius_phrase(radius: Radius, result: Result) -> str:
    return f"{radius.eps:g}/255" + (" (L2)" if result.settings.get("norm") == "l2" else "")


def _heading(titles: list[str]) -> str:
    if len(titles) == 1:
        return titles[0]
    return f"{titles[0]} against {titles[1]}" if len(titles) == 2 else f"{len(titles)} models compared"


def _largest(runs: Mapping[str, Result], result: Result) -> Radius:
    """The largest radius that all runs have, or where they have none in common the largest of this one."""
    common = _common(runs)
    return max((r for r in result.radii if not common or r.eps in common), key=lambda radius: radius.eps)


def _common(runs: Mapping[str, Result]) -> set[float]:
    return set.intersection(*({radius.eps for radius in result.radii} for result in runs.values()))


def _at(result: Result, eps: float) -> Radius | None:
    return next((radius for radius in result.radii if f"{radius.eps:g}" == f"{eps:g}"), None)


def _rows(runs: Mapping[str, Result], eps: float) -> list[Row]:
    """The attacks of any run at a radius in order of appearance, then the worst case."""
    found = [_at(result, eps) for result in runs.values()]
    names = dict.fromkeys(attack.name for radius in found if radius for attack in radius.attacks)
    rows = [
        Row(name, False, [next((a.scores for a in r.attacks if a.name == name), None) if r else None for r in found])
        for name in names
    ]
    return [*rows, Row("worst case", True, [radius.worst_case if radius else None for radius in found])]


def _warnings(runs: Mapping[str, Result]) -> list[tuple[str, str]]:
    """(title or "", warning) of all runs, and what makes their comparison doubtful."""
    found = [(title if len(runs) > 1 else "", text) for title, result in runs.items() for text in result.warnings]
    if not _common(runs):
        each = ", ".join(f"{_radius_phrase(_largest(runs, result), result)} of “{t}”" for t, result in runs.items())
        found.append(("", f"The runs have no radius in common, so what is at the top cannot be compared: {each}."))
    for what, of in DOUBTS.items():
        if len({_yaml(of(result)) for result in runs.values()}) > 1:
            doubt = f"The runs were not made with {what}, so that the models may differ less, or more, than it seems."
            found.append(("", doubt))
    return found


def _check_comparable(runs: Mapping[str, Result]) -> None:
    (first_title, first), *others = runs.items()
    for title, other in others:
        difference = _data_difference(first, other)
        if difference:
            raise UserError(
                f"The runs '{first_title}' and '{title}' are of different data: the {difference}; compare runs of the "
                "same data."
            )
        norms = first.settings.get("norm"), other.settings.get("norm")
        if norms[0] != norms[1]:
            raise UserError(
                f"The runs '{first_title}' and '{title}' have different norms, {norms[0]} and {norms[1]}, so that "
                "their radii cannot be compared; compare runs of one norm."
            )


def _data_difference(first: Result, other: Result) -> str | None:
    """What differs between the data of two runs in words. The same pixels may go by two names."""
    facts: list[tuple[str, Any, Any]] = [("number of classes", len(first.data.classes), len(other.data.classes))]
    if first.data.sha256 != other.data.sha256:
        facts += [
            ("number of images", first.data.images, other.data.images),
            ("data set", first.data.name, other.data.name),
            ("rule for ignored pixels", first.data.void, other.data.void),
            ("checksum of ids, images and labels", first.data.sha256, other.data.sha256),
        ]
    for what, own, its in facts:
        if own != its:
            short = 12 if what.startswith("checksum") else None
            return f"{what} is {str(own)[:short]} in the first and {str(its)[:short]} in the second"
    return None


def _drawn_classes(first: Result) -> list[int]:
    classes = range(len(first.data.classes))
    if len(classes) <= MOST_BARS:
        return list(classes)
    return sorted(sorted(classes, key=lambda c: (-first.data.classes[c].pixels, c))[:FEWER_BARS])


def _data(runs: Mapping[str, Result], pictures: Gallery) -> dict[str, Any]:
    """What the page's script works with, beside the page itself."""
    return {
        "runs": [
            {
                "title": title,
                "clean_iou": result.clean.class_iou,
                "worst_iou": {f"{radius.eps:g}": radius.worst_case.class_iou for radius in result.radii},
            }
            for title, result in runs.items()
        ],
        "norm": next(iter(runs.values())).settings.get("norm", "linf"),
        "all_attacks": pictures.level.all_attacks,
        "images": pictures.images,
    }


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
