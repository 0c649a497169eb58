"""Figures of the training report, as SVG in data URIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robseg.report.figures import ACCENT, FAINT, GRID, RUN_COLOURS, STYLE, data_uri

CLEAN, ATTACKED = RUN_COLOURS[2], ACCENT
"""The colours of validation scores."""

MOST_POINTS = 250
"""A longer record is drawn as the means of so many equal stretches."""

Line = Mapping[str, Any]
"""A line of metrics.jsonl."""


def loss_curve(steps: Sequence[Line]) -> str:
    """The loss against the step, with the range within each stretch where steps were put together."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(last=steps[-1]["step"])
        x, stretches = _stretches(steps, "loss")
        if stretches.shape[1] > 1:
            low, high = np.percentile(stretches, [10, 90], axis=1)
            axes.fill_between(x, low, high, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(x, stretches.mean(1), color=ACCENT, linewidth=1.8)
        axes.set_ylim(bottom=0)
        return data_uri(figure)


def rate_curve(steps: Sequence[Line]) -> str:
    """The learning rate against the step."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(last=steps[-1]["step"])
        x, stretches = _stretches(steps, "rate")
        axes.plot(x, stretches[:, 0], color=RUN_COLOURS[3], linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        return data_uri(figure)


def validation_curve(validations: Sequence[Line], measure: str, last: int) -> str:
    """A measure, clean and under attack, against the step; a ring marks the best validation. last: step of the axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(last)
        best = max((line["step"] for line in validations if line["validation"]["best"]), default=None)
        for condition, colour, marker in (("clean", CLEAN, "s"), ("attacked", ATTACKED, "o")):
            points = [
                (line["step"], 100 * line["validation"][condition][measure])
                for line in validations
                if line["validation"][condition] and line["validation"][condition][measure] is not None
            ]
            if not points:
                continue
            axes.plot(
                *zip(*points, strict=True), color=colour, linewidth=2, marker=marker, markersize=5,
                markeredgecolor="white", markeredgewidth=0.7, clip_on=False, zorder=3,
            )  # fmt: skip
            rings = [point for point in points if point[0] == best]
            if rings:
                axes.plot(
                    *zip(*rings, strict=True), linestyle="", marker="o", markersize=12, markerfacecolor="none",
                    markeredgecolor=colour, clip_on=False,
                )  # fmt: skip
        axes.set_ylim(0, 103)
        axes.set_yticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
        return data_uri(figure)


def _axes(last: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _stretches(steps: Sequence[Line], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle steps (n,) and values (n, k) of n stretches of k steps each; a last one that is not full is left out."""
    size = -(-len(steps) // MOST_POINTS)
    count = len(steps) // size
    number = np.array([line["step"] for line in steps[: count * size]], dtype=np.float64)
    values = np.array([line[key] for line in steps[: count * size]], dtype=np.float64)
    return number.reshape(count, size).mean(1), values.reshape(count, size)
