"""Figures of the report, as SVG in data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from robseg.records.result import Result

ACCENT = "#0f766e"
RUN_COLOURS = ("#c2410c", ACCENT, "#4f46e5", "#a16207", "#be185d", "#475569")
"""Of the runs of a comparison, again from the start where there are more; report.css has them as --run-N."""

_MARKERS = "osD^vP"
_INK, _FAINT, _GRID = "#334155", "#94a3b8", "#e2e8f0"
_STYLE = {
    "svg.hashsalt": "robseg", "font.size": 10.5, "font.family": "DejaVu Sans", "text.color": _INK,
    "axes.labelcolor": _INK, "axes.edgecolor": _FAINT, "xtick.color": _INK, "ytick.color": _INK,
}  # fmt: skip

Measure = Literal["aacc", "miou"]


def curve(runs: Mapping[str, Result], measure: Measure) -> str:
    """The worst case of a measure against the radius, clean at 0, as a data URI of an SVG.

    One run: its single attacks are drawn too, as thin lines. Several: one line each, in RUN_COLOURS. There is no text
    of the user's in the figure, as the fonts at hand may lack its letters; the page says which line is which.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        labels: list[tuple[float, float, str]] = []
        for number, result in enumerate(runs.values()):
            if len(runs) == 1:
                _single_attacks(axes, result, measure)
            colour = ACCENT if len(runs) == 1 else RUN_COLOURS[number % len(RUN_COLOURS)]
            points = _percent([(0.0, getattr(result.clean, measure))] + _worst(result, measure))
            axes.plot(
                *zip(*points, strict=True) if points else ([], []),
                color=colour, linewidth=2.2, marker=_MARKERS[number % len(_MARKERS)], markersize=6,
                markeredgecolor="white", markeredgewidth=0.8, zorder=3, clip_on=False,
            )  # fmt: skip
            labels += [(x, y, colour) for x, y in points]
        radii = sorted({radius.eps for result in runs.values() for radius in result.radii})
        _dress(axes, radii, next(iter(runs.values())).settings.get("norm", "linf"))
        if len(runs) <= 2:
            _write_values(axes, labels)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()


def _single_attacks(axes: Axes, result: Result, measure: Measure) -> None:
    names = dict.fromkeys(attack.name for radius in result.radii for attack in radius.attacks)
    for name in names:
        values = [(r.eps, getattr(a.scores, measure)) for r in result.radii for a in r.attacks if a.name == name]
        points = _percent([(0.0, getattr(result.clean, measure)), *values])
        if points:
            axes.plot(*zip(*points, strict=True), color=_FAINT, linewidth=1, marker=".", markersize=4, zorder=2)


def _worst(result: Result, measure: Measure) -> list[tuple[float, float | None]]:
    return [(radius.eps, getattr(radius.worst_case, measure)) for radius in result.radii]


def _percent(points: list[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(eps, 100 * value) for eps, value in points if value is not None]


def _dress(axes: Axes, radii: list[float], norm: str) -> None:
    largest = max([*radii, 0.0]) or 1.0
    # Radii such as 0.25, 0.5, 1, ..., 16 would write their numbers over each other.
    ticks = [0.0]
    for eps in radii:
        if eps - ticks[-1] >= 0.07 * largest:
            ticks.append(eps)
    axes.set_xticks(ticks, ["clean", *(f"{eps:g}" for eps in ticks[1:])])
    axes.set_xlim(-0.04 * largest, 1.06 * largest)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
    axes.set_xlabel("radius of the perturbation (n/255" + (")" if norm == "linf" else ", L2)"))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _write_values(axes: Axes, labels: list[tuple[float, float, str]]) -> None:
    """Each point's value above it, or below it where another point is close above."""
    last = max((x for x, _, _ in labels), default=0)
    for number, (x, y, colour) in enumerate(labels):
        if any(x == other_x and f"{y:.1f}" == f"{other_y:.1f}" for other_x, other_y, _ in labels[:number]):
            continue
        crowded = any(other_x == x and 0 < other_y - y < 12 for other_x, other_y, _ in labels)
        below = (crowded and y > 8) or y > 93
        # Curves fall: beside the point there is room to the upper right and to the lower left.
        right, left = ("center", "center") if x == last and x else ("left", "right")
        text = axes.annotate(
            f"{y:.1f}", (x, y), xytext=(-4 if below and x else 4 * (x != last), -14 if below else 7),
            textcoords="offset points", ha=left if below and x else right, color=colour, fontsize=9.5, fontweight="bold",
            zorder=4,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
