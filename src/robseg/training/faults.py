"""What fails in the midst of a training without being a fault of robseg, as one sentence: memory, processes that decode
images, and networks that do not take the images they get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robseg.errors import UserError

ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory")
"""In messages of the allocators that raise a plain RuntimeError, that of the CPU among them."""

LONE_VALUE = "Expected more than 1 value per channel"
"""What torch's batch norm says of a batch with a single value."""


@contextmanager
def step_faults(count: int, side: int) -> Iterator[None]:
    """Around the passes of a training step on `count` crops of side x side at a time."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if _is_out_of_memory(error):
            raise UserError(
                f"The memory does not suffice for {count} crops of {side} x {side} at a time; set micro_batch below "
                f"{count}, or choose a smaller batch_size or augmentation.crop."
                if count > 1
                else f"The memory does not suffice for one crop of {side} x {side}; choose a smaller augmentation.crop."
            ) from error
        if LONE_VALUE in str(error):
            raise UserError(
                f"A batch norm of the network gets a single value per channel, from {count} crops of {side} x {side} "
                "at a time; choose batch_size and micro_batch of 2 or more, or a larger augmentation.crop."
            ) from error
        raise


@contextmanager
def network_faults(what: str, height: int, width: int) -> Iterator[None]:
    """Around a network's answer to images, named by `what`, whose size it may not take."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise UserError(
                f"The memory does not suffice for {what} of {height} x {width}, even without gradients; choose a "
                "smaller augmentation.crop, validation.batch_size or validation.window."
            ) from error
        # Whatever a stranger's network raises is the user's to mend; the chain keeps its traceback for Python callers.
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(
            f"The network fails on {what} of {height} x {width}: {type(error).__name__}: {reason}."
        ) from error


@contextmanager
def loader_faults() -> Iterator[None]:
    """Around all that is done while other processes decode images."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "A process that decodes images was killed, perhaps for want of memory; give the same command again, with "
            "fewer workers: it goes on where it stopped."
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in ALLOCATION)
