"""SIGTERM and Ctrl-C as a wish that the training grants at its next step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """asked: the signal that came, or None."""

    asked: int | None = None

    def leave(self) -> None:
        """End the process as the signal would have."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.asked or signal.SIGTERM))


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch SIGTERM and Ctrl-C inside the block; a second one acts at once. In other threads than the main: nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = number
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    # What whoever started the process wants ignored, such as nohup or a shell in the background, stays so.
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside the block never get these signals: SLURM and terminals send them to whole groups, and a
    loader that loses its workers would end the training in the midst of a step."""
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
