"""What the processes of a training do together: add numbers up, and agree to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robseg.evaluation.processes import join_processes


@dataclass(frozen=True)
class Group:
    """rank: of this process; count: of all; device: this one's; wait: returns when every process has called it."""

    rank: int
    count: int
    device: torch.device
    wait: Callable[[], None]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes of a tensor of one shape, on the device it is given on."""
        if self.count == 1:
            return values
        # Not every backend adds numbers on the CPU, nor every device in float64.
        dtype = torch.float32 if self.device.type == "mps" else values.dtype
        total = values.to(self.device, dtype)
        total = total.clone() if total is values else total
        dist.all_reduce(total)
        return total.to(values.device, values.dtype)

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor([float(flag)]))[0] > 0)

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the sum of the gradients.

        One message after the backward pass, not a wrapper that sends while it runs: of a step's passes, most are the
        attack's, which send nothing.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view(gradient.shape))

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers: batch-norm statistics that are not synchronised differ."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def join_group(device: str) -> Group:
    """The processes that torchrun, `accelerate launch` or SLURM started; raises as `join_processes` does."""
    processes = join_processes(device)
    return Group(processes.rank, processes.count, processes.device, processes.wait)
