"""The formulas by which single elements of a weight are pruned, as pure functions of tensors.

A mask is float32 of its weight's shape: 0 where the weight is pruned, 1 elsewhere. Weights that are exactly 0 are
pruned by every rule: a masked weight stays masked, also where a later level is lower.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """When a policy acts: from epoch `start` to before `end`, every `frequency` epochs, and now in `epoch`."""

    epoch: int
    start: int
    end: int
    frequency: int


def above(weight: Tensor, threshold: float) -> Tensor:
    """Keeps what is greater than the threshold in magnitude."""
    return (weight.abs() > threshold).float()


def level_mask(weight: Tensor, sparsity: float) -> Tensor | None:
    """Prunes the int(sparsity * n) weights of least magnitude, of equal ones the first; None if that is none.

    Distiller prunes all that equal the last of them, and so more than it says.
    """
    magnitudes = weight.detach().abs().flatten()
    count = int(sparsity * len(magnitudes))
    if count == 0:
        return None
    last = magnitudes.kthvalue(count).values
    kept = magnitudes > last
    # Most weights have a magnitude of their own, so there is little to look through.
    equal = (magnitudes == last).nonzero().squeeze(1)
    kept[equal[count - int((magnitudes < last).sum()) :]] = True
    return (kept & (magnitudes != 0)).view_as(weight).float()


def gradual_sparsity(initial: float, final: float, span: Span) -> float:
    """Of automated gradual pruning (Zhu and Gupta 2017): from `initial` in the first epoch to `final` in the last that
    the frequency reaches, fast at first."""
    steps = ((span.end - span.start - 1) // span.frequency) * span.frequency
    return final + (initial - final) * (1 - (span.epoch - span.start) / steps) ** 3


def splicing_mask(
    weight: Tensor, mask: Tensor | None, *, mean: float, std: float, sensitivity: float, low: float, high: float
) -> Tensor:
    """Dynamic network surgery (Guo et al. 2016): prunes below low * b and brings back from high * b on, with b =
    mean + sensitivity * std, of the magnitudes as they were at first. In between, all is as it was."""
    base, magnitudes = mean + std * sensitivity, weight.abs()
    before = torch.ones_like(weight, dtype=torch.float32) if mask is None else mask
    pruned = torch.where(magnitudes < low * base, 0.0, before)
    return torch.where(magnitudes >= high * base, 1.0, pruned)


def growing_sensitivity(sensitivity: float, multiplier: float, span: Span) -> float:
    """A splicing pruner's, which may grow from epoch to epoch."""
    return sensitivity * (1 + (span.epoch - span.start) * multiplier)


def baidu_threshold(q: float, ramp_epoch_offset: int, ramp_slope_mult: float, span: Span) -> float:
    """The magnitude up to which weights are pruned (Narang et al. 2017, "Exploring sparsity in RNNs"): it rises by one
    slope until the ramp's epoch, and from then on by another."""
    ramp = span.start + ramp_epoch_offset
    slope = 2 * q * span.frequency / (2 * (ramp - span.start) + 3 * (span.end - ramp))
    if span.epoch < ramp:
        return slope * (span.epoch - span.start + 1) / span.frequency
    steep = slope * ramp_slope_mult
    return (slope * (ramp - span.start + 1) + steep * (span.epoch - ramp + 1)) / span.frequency
