"""What is shown while an evaluation runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Listener = Callable[[str, float, float, str], None]
"""Told (stage, units done, units in all, note) whenever something moved."""

LINE_SECONDS = 30.0
"""How often a line is printed where there is no terminal to draw a bar on (a SLURM log, a pipe)."""


class Stages:
    """Keeps count of the stage that runs and tells a listener."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._label, self._done, self._total, self._note = "", 0.0, 1.0, ""

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""
        self._label, self._total, self._note = label, max(total, 1), ""
        self.show(0)

    def show(self, done: float, note: str = "") -> None:
        """`done` units of the stage are done; a note stays until there is another."""
        self._done, self._note = done, note or self._note
        self._listener(self._label, done, self._total, self._note)

    def advance(self) -> None:
        """One more unit is done."""
        self.show(self._done + 1)


@contextmanager
def stages(progress: bool | Listener) -> Iterator[Stages]:
    """True: a bar on stderr, or now and then a line where that is no terminal. A function is told instead."""
    if callable(progress):
        yield Stages(progress)
        return
    console = Console(stderr=True, emoji=False)
    if not progress:
        yield Stages(lambda *_: None)
    elif console.is_terminal:
        with _bar(console) as bar:
            yield Stages(bar)
    else:
        yield Stages(_Lines(console))


@contextmanager
def _bar(console: Console) -> Iterator[Listener]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1, note="")
        current = ""

        def show(label: str, done: float, total: float, note: str) -> None:
            nonlocal current
            if label != current:
                current = label
                bar.reset(task, description=label, total=total)
            bar.update(task, completed=done, note=note)

        yield show


class _Lines:
    """Prints a line every LINE_SECONDS, with the time left at the pace of the stage so far."""

    def __init__(self, console: Console) -> None:
        self._console, self._label = console, ""
        self._begun = self._printed = time.monotonic()

    def __call__(self, label: str, done: float, total: float, note: str) -> None:
        now = time.monotonic()
        if label != self._label:
            self._label, self._begun, self._printed, self._first = label, now, now, done
        if now - self._printed < LINE_SECONDS or done <= self._first:
            return
        self._printed = now
        minutes = (now - self._begun) * (total - done) / (done - self._first) / 60
        self._console.print(
            f"{label}: {done / total:.0%}, {minutes:.0f} min left, {note}", highlight=False, soft_wrap=True
        )
