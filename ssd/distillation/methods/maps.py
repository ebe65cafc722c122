"""Feature maps of two detectors made comparable."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

Adapted = dict[str, Tensor]
"""By the name of the student's map."""
Channels = Mapping[str, tuple[int, int]]
"""By the name of the student's map, the channels of the student and of the teacher."""


class Projections(nn.Module):
    """A 1x1 convolution for each map whose channels are not the teacher's; others pass as they are.

    has_bias: not for what looks at differences within a channel only, to which a bias says nothing.
    """

    def __init__(self, channels: Channels, *, has_bias: bool) -> None:
        super().__init__()
        self.levels = list(channels)
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(own, other, 1, bias=has_bias) for name, (own, other) in channels.items() if own != other}
        )

    def forward(self, maps: Mapping[str, Tensor]) -> Adapted:
        return {name: self.convs[name](maps[name]) if name in self.convs else maps[name] for name in self.levels}


def pairs(adapted: Adapted, of_teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each map of the student, as large as the teacher's, and that. A map of another size is resized bilinearly."""
    found = []
    for own, other in zip(adapted.values(), of_teacher, strict=True):
        if own.shape[2:] != other.shape[2:]:
            own = F.interpolate(own, size=other.shape[2:], mode="bilinear", align_corners=False)
        found.append((own, other))
    return found
