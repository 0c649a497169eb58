"""What is shown while an evaluation runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""How often a line is printed where there is no terminal to draw a bar on (a SLURM log, a pipe)."""


class Display:
    """A bar over images x attacks with the running worst-case aAcc; lines of text where stderr is no terminal."""

    def __init__(self, bar: Progress, task: TaskID, console: Console) -> None:
        self._bar, self._task, self._console = bar, task, console
        self._done, self._total, self._start = 0.0, 1.0, time.monotonic()
        self._note, self._label = "", ""
        self._printed = self._start

    def stage(self, label: str, total: int) -> None:
        """Begin a stage of `total` units."""
        self._label, self._total, self._done, self._note = label, max(total, 1), 0.0, ""
        self._start = self._printed = time.monotonic()
        self._bar.reset(self._task, description=label, total=self._total, note="")

    def show(self, done: float, note: str = "") -> None:
        """Say that `done` units are done; `note` stands beside the bar."""
        self._done, self._note = done, note or self._note
        self._bar.update(self._task, completed=done, note=self._note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed >= LINE_SECONDS:
            self._printed = now
            left = (now - self._start) * (self._total - done) / max(done, 1e-9)
            self._console.print(
                f"{self._label}: {done / self._total:.0%}, {left / 60:.0f} min left {self._note}", highlight=False
            )

    def advance(self) -> None:
        """One more unit is done."""
        self.show(self._done + 1)


@contextmanager
def display(visible: bool) -> Iterator[Display]:
    """A display on stderr for the time of the block, or one that shows nothing."""
    console = Console(stderr=True, quiet=not visible)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal)) as bar:
        yield Display(bar, bar.add_task("", total=1, note=""), console)
