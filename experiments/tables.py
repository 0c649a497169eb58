"""What the experiments print and keep: tables in Markdown, numbers in JSON, curves in SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


def percent(values: Sequence[float | None]) -> str:
    """The mean of fractions in % with one decimal, and of several values their standard deviation."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def keep(name: str, text: str, values: Any) -> None:
    """Print the table and write it as results/NAME.md, and what it was made of as NAME.json."""
    print(f"\n{text}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def draw(
    name: str,
    curves: Mapping[str, Sequence[tuple[float, Sequence[float | None]]]],
    *,
    x: str,
    y: str,
    log: bool = False,
) -> None:
    """Write results/NAME.svg: of each curve (x, fractions) the mean in %, with a bar from the least to the largest."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (label, points), marker in zip(curves.items(), "osD^vP", strict=False):
        known = [(at, [100 * value for value in values if value is not None]) for at, values in points]
        places, seen = zip(*((at, values) for at, values in known if values), strict=True)
        middle = [mean(values) for values in seen]
        spread = [[m - min(v) for m, v in zip(middle, seen, strict=True)],
                  [max(v) - m for m, v in zip(middle, seen, strict=True)]]  # fmt: skip
        axes.errorbar(places, middle, yerr=spread, marker=marker, capsize=3, label=label)
    ticks = sorted({at for points in curves.values() for at, _ in points})
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
