"""Running statistics, batch norm's and others: what a training step changes beside the weights.

Only these are taken back after a bad step, kept for each rank and averaged over the ranks. Other buffers (frozen
statistics, anchors) are constants: their mean over ranks would differ from them in the last bit.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssd.distributed import Ranks


class RunningMean(nn.Module):
    """The exponential moving average of a number that training sees, such as how many anchors learn a box."""

    mean: Tensor

    def __init__(self, start: float, decay: float) -> None:
        """decay: in [0, 1), the share that stays."""
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.tensor(start))

    @torch.no_grad()
    def forward(self, value: Tensor) -> Tensor:
        """Takes in value, (); returns the new mean, () float32, which later steps do not change."""
        mean = self.decay * self.mean + (1 - self.decay) * value
        self.mean.copy_(mean)
        return mean


def running_statistics(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, buffer name) of each, in the model's order."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, RunningMean):
            found.append((module, "mean"))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            found += [(module, "running_mean"), (module, "running_var")]
    return found


def join_statistics(model: nn.Module) -> Tensor:
    """One tensor that the running statistics become views of, so that a step can take all of them back at once."""
    buffers: list[Tensor] = [getattr(module, name) for module, name in running_statistics(model)]
    joined = torch.cat([buffer.flatten() for buffer in buffers]) if buffers else torch.zeros(0)
    for buffer, part in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.data = part.view_as(buffer)
    return joined


def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Averages the running statistics over the ranks, which each rank gathers from its own images only."""
    if ranks.world_size == 1:
        return
    for module, name in running_statistics(model):
        buffer: Tensor = getattr(module, name)
        dist.all_reduce(buffer)
        buffer.div_(ranks.world_size)
