"""How much accuracy each tensor's pruning costs, one tensor and one level at a time, without training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd.compression.structures import groups, mean_norm, misfit, number_to_prune, spread

GROUPS = {"element": None, "filter": "Filters", "channel": "Channels"}
"""What is pruned -> its group type of `structures`; None: single weights."""
DENSE = ""
"""In the place of a tensor's name, for the model as it is."""


class Judged(NamedTuple):
    """ap: in [0, 1], -1 where the images have no objects. loss: the sum of the detector's losses, the mean over the
    batches."""

    ap: float
    loss: float


class Point(NamedTuple):
    """A tensor's smallest share `level` is 0, and all else as it was. sparsity: the share of its weights that are 0."""

    tensor: str
    level: float
    sparsity: float
    ap: float
    loss: float


def prunable(model: nn.Module, group: str) -> list[str]:
    """The tensors that have such groups, in the model's order. group: of GROUPS."""
    kind = GROUPS[group]
    return [
        name
        for name, weight in model.named_parameters()
        if (weight.dim() in (2, 4) if kind is None else misfit(weight.shape, kind) is None)
    ]


def pruned(weight: Tensor, level: float, group: str) -> Tensor:
    """The weight with int(level * n) of its n elements or groups 0: of the least magnitude, or the least L1 norm."""
    kind = GROUPS[group]
    scores = weight.abs().flatten() if kind is None else mean_norm(groups(weight, kind), 1)
    count = int(level * len(scores)) if kind is None else number_to_prune(len(scores), level)
    kept = torch.ones_like(scores, dtype=weight.dtype)
    kept[scores.sort(stable=True).indices[:count]] = 0
    return weight * (kept.view_as(weight) if kind is None else spread(kept, weight.shape, kind))


@torch.no_grad()
def measure(
    model: nn.Module,
    tensors: Sequence[str],
    levels: Sequence[float],
    group: str,
    judge: Callable[[], Judged],
    done: Mapping[tuple[str, float], Point],
) -> Iterable[Point]:
    """The dense model's point, and one for each tensor and level, as they are measured.

    judge: of the model as it is now. done: what has been measured before by (tensor, level), and is given as it is.
    The model has its own weights again whenever a point is given.
    """
    weights = dict(model.named_parameters())
    yield done.get((DENSE, 0.0)) or Point(DENSE, 0.0, 0.0, *judge())
    for name in tensors:
        weight = weights[name]
        for level in levels:
            point = done.get((name, level))
            if point is None:
                before = weight.clone()
                weight.copy_(pruned(before, level, group))
                sparsity = 1 - int(torch.count_nonzero(weight)) / weight.numel()
                try:
                    judged = judge()
                finally:
                    weight.copy_(before)
                point = Point(name, level, sparsity, *judged)
            yield point


def bearable(points: Sequence[Point], max_drop: float) -> dict[str, float]:
    """The highest level of each tensor up to which no level costs more AP than max_drop; none of others."""
    dense = next(point for point in points if point.tensor == DENSE)
    found: dict[str, float] = {}
    stopped: set[str] = set()
    for point in sorted(points, key=lambda point: point.level):
        if point.tensor == DENSE or point.tensor in stopped:
            continue
        if point.ap < dense.ap - max_drop:
            stopped.add(point.tensor)
        else:
            found[point.tensor] = point.level
    return {point.tensor: found[point.tensor] for point in points if point.tensor in found}


def schedule_text(levels: Mapping[str, float], group: str, epochs: int) -> str:
    """A schedule in Distiller's language that takes each tensor to its level over so many epochs.

    levels: of `bearable`, with one tensor at least."""
    kind = GROUPS[group]
    by_level: dict[float, list[str]] = {}
    for name, level in levels.items():
        by_level.setdefault(level, []).append(name)
    class_name = "AutomatedGradualPruner" if kind is None else "L1RankedStructureParameterPruner_AGP"
    lines, policies = ["pruners:"], ["policies:"]
    for level, names in sorted(by_level.items()):
        instance = f"to_{level:g}"
        lines += [f"  {instance}:", f"    class: {class_name}"]
        lines += [] if kind is None else [f"    group_type: {kind}"]
        lines += ["    initial_sparsity: 0.0", f"    final_sparsity: {level:g}", "    weights:"]
        lines += [f"      - {name}" for name in names]
        policies.append(f"  - pruner: {{instance_name: {instance}}}")
        policies += ["    starting_epoch: 0", f"    ending_epoch: {epochs}", "    frequency: 1"]
    return "\n".join(["version: 1", *lines, *policies]) + "\n"
