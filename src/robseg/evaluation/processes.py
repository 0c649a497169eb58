"""One process or many: who this process is, where it computes, and where all wait for each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from robseg.errors import UserError


@dataclass(frozen=True)
class Processes:
    """rank: of this process; count: of all; wait: returns when every process has called it."""

    rank: int
    count: int
    device: torch.device
    wait: Callable[[], None]


def join_processes(device: str) -> Processes:
    """This process among those that `accelerate launch`, torchrun or SLURM started; alone where none did.

    device: "auto" (this process's GPU, else the CPU) or a torch device such as "cpu" and "cuda:1".
    Raises UserError for a device that is none or not there, and where the processes do not find each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        from accelerate import PartialState

        # Told to look for devices, it takes each process for the only one where there are none.
        state = PartialState(cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()))
        if state.num_processes != started:
            raise UserError(
                f"{started} processes were started, but this one found {state.num_processes}; on a machine without "
                "GPUs give --device cpu."
            )
        # Left to the end of the interpreter, its threads would abort a process that ends with an error.
        atexit.register(state.destroy_process_group)
        chosen = state.device if device in ("auto", "cpu") else find_device(device)
        return Processes(state.process_index, state.num_processes, chosen, state.wait_for_everyone)
    return Processes(0, 1, find_device(device), lambda: None)


def first_does(rank: int, count: int, device: torch.device, action: Callable[[], None]) -> None:
    """Let the first process do something for all; what it says is wrong, all say, and none waits for it in vain."""
    said: list[str | None] = [None]
    try:
        if rank == 0:
            action()
    except UserError as error:
        if count == 1:
            raise
        said = [str(error)]
    if count > 1:
        torch.distributed.broadcast_object_list(said, 0, device=device)
    if said[0] is not None:
        raise UserError(said[0])


def find_device(name: str) -> torch.device:
    """A device by name, "auto" for the GPU where there is one and else the CPU; UserError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"'{name}' is no device; use auto, cpu, cuda or cuda:1.") from None
    try:
        torch.empty(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        raise UserError(f"The device {name} cannot be used: {reason}; use auto or cpu.") from None
    return device
