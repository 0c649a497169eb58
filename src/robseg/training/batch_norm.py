"""Batch norm whose statistics are those of the whole batch, however many processes share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over all processes on any device: nn.SyncBatchNorm, which is faster, runs on GPUs alone."""

    def forward(self, features: Tensor) -> Tensor:
        self._check_input_dim(features)
        if not self.training:
            return super().forward(features)
        pixels = torch.tensor([features.numel() / features.shape[1]], device=features.device, dtype=torch.float32)
        wide = features.float()
        count = _sum(pixels)
        mean = _sum(wide.sum((0, 2, 3))) / count
        # In a second pass: E[x^2] - E[x]^2 would lose its digits where the mean is large.
        variance = _sum((wide - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), share)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale + (self.bias if self.affine else 0)
        normalised: Tensor = wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normalised.to(features.dtype)


def share_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with all its batch norms shared between the processes, its parameters and their names the same."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, nn.BatchNorm2d):
        return _shared(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _shared(child))
    return network


def _shared(norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
    shared = SharedBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(shared, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(shared, name, buffer)
    return shared.train(norm.training)


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total
