"""Figures of the report, as SVG in data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from robseg.records.result import Result

ACCENT = "#0f766e"
RUN_COLOURS = ("#c2410c", ACCENT, "#4f46e5", "#a16207", "#be185d", "#475569")
"""Of the runs of a comparison, again from the start where there are more; report.css has them as --run-N."""

LABEL_WIDTH = 0.07
"""The room that a radius needs on the axis, as a share of its length."""

_MARKERS = "osD^vP"
INK, FAINT, GRID = "#334155", "#94a3b8", "#e2e8f0"
STYLE: Any = {
    # A matplotlibrc of the user's must not turn the figures into something else.
    "svg.hashsalt": "robseg", "svg.fonttype": "path", "text.usetex": False,
    "font.size": 10.5, "font.family": "DejaVu Sans", "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip

Measure = Literal["aacc", "miou"]


def curve(runs: Mapping[str, Result], measure: Measure) -> str:
    """The worst case of a measure against the radius, clean at 0, as a data URI of an SVG.

    One run: its single attacks are drawn too, as thin lines. Several: one line each, in RUN_COLOURS. There is no text
    of the user's in the figure, as the fonts at hand may lack its letters; the page says which line is which.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.3), layout="constrained")
        axes = figure.add_subplot()
        place = _places(sorted({0.0, *(radius.eps for result in runs.values() for radius in result.radii)}))
        values: list[tuple[float, float, str]] = []
        for number, result in enumerate(runs.values()):
            if len(runs) == 1:
                _single_attacks(axes, result, measure, place)
            colour = ACCENT if len(runs) == 1 else RUN_COLOURS[number % len(RUN_COLOURS)]
            points = _percent([(0.0, getattr(result.clean, measure)), *_worst(result, measure)], place)
            axes.plot(
                *zip(*points, strict=True) if points else ([], []),
                color=colour, linewidth=2.2, marker=_MARKERS[number % len(_MARKERS)], markersize=6,
                markeredgecolor="white", markeredgewidth=0.8, zorder=3, clip_on=False,
            )  # fmt: skip
            # The clean value stands at 0; that of a radius of 0 would stand on it.
            values += [(x, y, colour) for number, (x, y) in enumerate(points) if x or not number]
        _dress(axes, place, next(iter(runs.values())).settings.get("norm", "linf"))
        if len(runs) <= 2:
            _write_values(axes, values)
        return data_uri(figure)


def data_uri(figure: Figure) -> str:
    """The figure as an SVG in a data URI, the same bytes for the same figure; call within STYLE."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()


def _single_attacks(axes: Axes, result: Result, measure: Measure, place: Mapping[float, float]) -> None:
    names = dict.fromkeys(attack.name for radius in result.radii for attack in radius.attacks)
    for name in names:
        values = [(r.eps, getattr(a.scores, measure)) for r in result.radii for a in r.attacks if a.name == name]
        points = _percent([(0.0, getattr(result.clean, measure)), *values], place)
        if points:
            axes.plot(*zip(*points, strict=True), color=FAINT, linewidth=1, marker=".", markersize=4, zorder=2)


def _worst(result: Result, measure: Measure) -> list[tuple[float, float | None]]:
    return [(radius.eps, getattr(radius.worst_case, measure)) for radius in result.radii]


def _percent(points: list[tuple[float, float | None]], place: Mapping[float, float]) -> list[tuple[float, float]]:
    return [(place[eps], 100 * value) for eps, value in points if value is not None]


def _places(radii: list[float]) -> dict[float, float]:
    """Where each radius stands on the axis: to scale, or in equal steps where else most could not be labelled."""
    to_scale = _spread(radii, LABEL_WIDTH * radii[-1])
    in_steps = _spread([*map(float, range(len(radii)))], LABEL_WIDTH * (len(radii) - 1))
    if 3 * len(to_scale) >= 2 * len(in_steps):
        return {eps: eps for eps in radii}
    return {eps: float(step) for step, eps in enumerate(radii)}


def _dress(axes: Axes, place: Mapping[float, float], norm: str) -> None:
    largest = max(place.values()) or 1.0
    radius = {x: eps for eps, x in place.items()}
    ticks = _spread(list(radius), LABEL_WIDTH * largest)
    axes.set_xticks(ticks, [f"{radius[x]:g}" if radius[x] else "clean" for x in ticks])
    axes.set_xlim(-0.1 * largest, 1.06 * largest)
    axes.set_ylim(0, 106)
    axes.set_yticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
    scale = "" if all(eps == x for eps, x in place.items()) else ", not to scale"
    axes.set_xlabel("radius of the perturbation (n/255" + (")" if norm == "linf" else ", L2)") + scale)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _spread(values: list[float], distance: float) -> list[float]:
    """Of the values those whose numbers can stand beside each other: 0 and the largest first, then what has room."""
    kept: list[float] = []
    for value in sorted(set(values), key=lambda value: (value != 0, -value)):
        if all(abs(value - other) >= distance for other in kept):
            kept.append(value)
    return sorted(kept)


def _write_values(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write the values (x, y, colour) at the points: the highest of a radius above it, another one below it."""
    largest = max((x for x, _, _ in points), default=0.0)
    # Curves fall: there is room to the upper right of a point and to its lower left.
    for x in _spread([x for x, _, _ in points], 0.12 * (largest or 1.0)):
        column: dict[str, tuple[float, str]] = {}
        for other, y, colour in points:
            if other == x:
                column.setdefault(f"{y:.1f}", (y, colour))
        (top, (top_y, top_colour)), *rest = sorted(column.items(), key=lambda item: -item[1][0])
        above, align = ((4, 6), "left") if x < largest else ((0, 7), "center")
        _write(axes, top, (x, top_y), above, align, top_colour)
        for text, (y, colour) in rest[:1]:
            if y > 9:
                _write(axes, text, (x, y), (-3, -14), "right", colour)
            elif top_y - y > 12:
                _write(axes, text, (x, y), above, align, colour)


def _write(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], align: str, colour: str
) -> None:
    written = axes.annotate(
        text, point, xytext=offset, textcoords="offset points", ha=align, color=colour, fontsize=9.5, fontweight="bold",
        zorder=4,
    )  # fmt: skip
    written.set_path_effects([withStroke(linewidth=3, foreground="white")])
