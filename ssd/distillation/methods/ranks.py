"""Sums over ranks, so that a term is what one rank with all images would compute.

DistributedDataParallel takes the mean of the ranks' gradients. A term whose value is the same on all ranks, and whose
gradient goes to a rank's own images only, is therefore `scaled_gradient` by the number of ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def summed(values: Tensor) -> Tensor:
    """The sum of all ranks' values, without a gradient."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def summed_with_gradient(values: Tensor) -> Tensor:
    """The sum of all ranks' values. All ranks go backward through it together."""
    return values if world_size() == 1 else _Sum.apply(values)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return summed(gradient.contiguous())


def joined(rows: Tensor) -> Tensor:
    """All ranks' rows, n x ..., in the order of the ranks; n is the same on all. Only the own ones have a gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """The value, with a gradient that is this many times as large."""
    return value if factor == 1 else factor * value - (factor - 1) * value.detach()


def share(count: Tensor) -> Tensor:
    """All ranks' count divided by the number of ranks: what a rank divides its own sum by."""
    return summed(count.float()) / world_size()
