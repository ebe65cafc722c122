"""CWD (Shu et al. 2021): each channel of a map looks at the same places as the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd.distillation.methods.maps import Adapted, pairs


def cwd(adapted: Adapted, of_teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """The sum over the maps of `channel_divergence`: () float32."""
    found = [channel_divergence(own, other, temperature) for own, other in pairs(adapted, of_teacher)]
    return torch.stack(found).sum()


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softmax over the places of each channel, times the temperature squared, averaged
    over images and channels. student, teacher: B x C x H x W of one shape."""
    own, other = (each.flatten(2).to(_at_least_float32(each)) / temperature for each in (student, teacher))
    log_targets = other.log_softmax(dim=2)
    divergence = (log_targets.exp() * (log_targets - own.log_softmax(dim=2))).sum(dim=2)
    return divergence.mean() * temperature**2


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
