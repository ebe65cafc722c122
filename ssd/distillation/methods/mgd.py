"""MGD (Yang et al. 2022): out of a part of the student's map, a generator has to make the teacher's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssd.constants import on_device
from ssd.distillation.methods.maps import Adapted, Channels, Projections, pairs


class Generators(nn.Module):
    """For each map a 1x1 convolution where channels differ, then two of 3x3 that see only some of its places.

    generator: what the places are drawn by, on the CPU; its state belongs to a checkpoint.
    """

    def __init__(self, channels: Channels, dropped: float, seed: int) -> None:
        super().__init__()
        self.dropped = dropped
        self.projections = Projections(channels, has_bias=True)
        self.convs = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(count, count, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(count, count, 3, padding=1)
                )
                for name, (_, count) in channels.items()
            }
        )
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, maps: Mapping[str, Tensor]) -> Adapted:
        made = {}
        for name, features in self.projections(maps).items():
            batch, _, height, width = features.shape
            kept = torch.rand(batch, 1, height, width, generator=self.generator) >= self.dropped
            made[name] = self.convs[name](features * on_device(kept, features.device))
        return made


def mgd(made: Adapted, of_teacher: Sequence[Tensor]) -> Tensor:
    """The squared differences of all maps, summed, of an image: () float32."""
    terms = [(own.float() - other.float()).square().sum() / len(own) for own, other in pairs(made, of_teacher)]
    return torch.stack(terms).sum()
