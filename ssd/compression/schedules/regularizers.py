"""What regularizers add to the loss, and what they zero: pure functions of a weight."""

import torch
from torch import Tensor

from ssd.compression.structures import criterion, groups, spread

# Keeps the slope of a norm finite where all of a group is 0; Distiller's.
_EPSILON = 1e-8


def l1(weight: Tensor, strength: float) -> Tensor:
    return strength * weight.float().abs().sum()


def group_lasso(weight: Tensor, strength: float, group_type: str) -> Tensor:
    """strength x the sum of the groups' L2 norms, whatever their sizes. "Rows+Cols" is the sum of both."""
    total = weight.new_zeros((), dtype=torch.float32)
    for part in group_type.split("+"):
        total = total + (groups(weight.float(), part).square().sum(dim=1) + _EPSILON).sqrt().sum()
    return strength * total


def group_variance(weight: Tensor, strength: float, group_type: str) -> Tensor:
    """strength / the variance of the groups' L2 norms: less, the more the groups differ."""
    norms = (groups(weight.float(), group_type).square().sum(dim=1) + _EPSILON).sqrt()
    return strength / norms.var()


def kept_elements(weight: Tensor, strength: float) -> Tensor:
    """The mask of an L1 regularizer with a threshold: its strength is the threshold."""
    return (weight.abs() > strength).float()


def kept_groups(weight: Tensor, threshold: float, group_type: str, kind: str) -> Tensor:
    """The mask of groups whose `structures.criterion` is above the threshold."""
    kept = (criterion(groups(weight, group_type), kind) > threshold).float()
    return spread(kept, weight.shape, group_type)
