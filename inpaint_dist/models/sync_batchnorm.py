"""Batch normalisation over the batches of all ranks, on CPU too, where torch's own refuses."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over every rank's batch; one collective forward, one backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise (B, C, H, W); also the mean (C), the biased variance (C) and the count (1) over all ranks.

        Each rank's own mean and sum of squares around it are joined (Chan et al., Algorithms for Computing the Sample
        Variance, 1983, eq. 2.1), for the difference of large sums would lose small variances.
        """
        count = values.new_tensor([values.numel() / values.shape[1]])
        mean = values.sum((0, 2, 3)) / count.clamp_min(1.0)
        squares = (values - _spread(mean)).square().sum((0, 2, 3))
        means, squares, counts = _gather(torch.cat([mean, squares, count])).split([len(mean), len(mean), 1], dim=1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        scale = torch.rsqrt(variance + eps)
        normal = (values - _spread(mean)) * _spread(scale)
        ctx.save_for_backward(normal, scale, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return normal, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Batch norm's own backward pass (Ioffe and Szegedy, Batch Normalization, 2015), its sums over all ranks."""
        normal, scale, total = ctx.saved_tensors
        gradient = gradients[0]
        sums = torch.cat([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        dist.all_reduce(sums)
        shift, slope = (sums / total).chunk(2)
        return (gradient - _spread(shift) - normal * _spread(slope)) * _spread(scale), None


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def _gather(values: Tensor) -> Tensor:
    """(N) of each rank → (ranks, N)."""
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks. Parameters and buffers are those of nn.BatchNorm2d."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise (B, C, H, W) by the mean and variance over every rank's B, H and W."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        normal, mean, variance, count = _Normalise.apply(wide, self.eps)  # pyright: ignore
        self._track(mean, variance, count)
        if self.affine:
            normal = normal * _spread(self.weight) + _spread(self.bias)
        return normal.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as nn.BatchNorm2d does (the variance unbiased)."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked or 1)
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
