"""Batch normalisation over the batches of all ranks, on CPU too, where torch's own refuses."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """all_reduce(sum) that gradients flow through: the backward pass of a sum over ranks is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sum over ranks."""
        del ctx
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients over ranks."""
        del ctx
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks. Parameters and buffers are those of nn.BatchNorm2d."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise (B, C, H, W) by the mean and variance over every rank's B, H and W."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count])
        total, square, counted = _SumOverRanks.apply(sums).split([self.num_features, self.num_features, 1])  # pyright: ignore
        mean = total / counted
        variance = square / counted - mean.square()
        self._track(mean.detach(), variance.detach(), counted.detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as nn.BatchNorm2d does (the variance unbiased)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm2d in place by one over all ranks: torch's on CUDA, ours elsewhere."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # the same parameters, buffers and settings; another forward
    return network
