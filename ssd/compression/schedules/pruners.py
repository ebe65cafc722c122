"""The masks that a schedule's pruner sets: one function a class of Distiller's, and the table of them. What a class may
be given in a schedule is in `arguments.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd.compression import structures
from ssd.compression.schedules import element_masks
from ssd.compression.schedules.activations import Statistics
from ssd.compression.schedules.element_masks import Span


@dataclass
class Memory:
    """What pruners remember from call to call; part of a run's checkpoints.

    measured: by tensor, statistics of its weights at the first call. leaders: by pruner, which groups its leader keeps,
    and the sparsity that they were chosen for. generator: of all random draws, on the CPU. activations: of the epoch
    before this one.
    """

    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    leaders: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)
    activations: Statistics = field(default_factory=dict)

    def once(self, tensor: str, statistic: str, value: Callable[[], Tensor]) -> float:
        found = self.measured.setdefault(tensor, {})
        if statistic not in found:
            found[statistic] = float(value())
        return found[statistic]

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return float(torch.rand((), generator=self.generator))


class Call(NamedTuple):
    """A pruner is asked for masks.

    name, arguments: of its instance, with the model's own names of tensors. weights, masks, gradients: of the tensors
    that it acts on, in its order; masks and gradients None where there is none.
    """

    name: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    gradients: dict[str, Tensor | None]
    span: Span
    memory: Memory

    def value_of(self, argument: str, tensor: str) -> Any:
        """Of an argument {name: value}, in which "*" stands for the tensors that it does not name."""
        table = self.arguments[argument]
        return table[tensor] if tensor in table else table["*"]


Masks = dict[str, Tensor]


def new_masks(class_name: str, call: Call) -> Masks:
    """The masks to set; those of other tensors stay as they are."""
    name = class_name.removesuffix("_AGP")
    if name != class_name:
        call = call._replace(arguments={**call.arguments, "desired_sparsity": _gradual(call)})
    return RULES[name](call)


def _gradual(call: Call) -> float:
    given = call.arguments
    return element_masks.gradual_sparsity(given["initial_sparsity"], given["final_sparsity"], call.span)


def _magnitude(call: Call) -> Masks:
    return {
        name: element_masks.above(weight, call.value_of("thresholds", name)) for name, weight in call.weights.items()
    }


def _level(call: Call) -> Masks:
    return _levels({name: (weight, call.value_of("levels", name)) for name, weight in call.weights.items()})


def _automated_gradual(call: Call) -> Masks:
    sparsity = _gradual(call)
    return _levels({name: (weight, sparsity) for name, weight in call.weights.items()})


def _levels(wanted: dict[str, tuple[Tensor, float]]) -> Masks:
    masks = {name: element_masks.level_mask(weight, sparsity) for name, (weight, sparsity) in wanted.items()}
    return {name: mask for name, mask in masks.items() if mask is not None}


def _over_all(call: Call) -> Masks:
    """The weights of least magnitude among those of all tensors."""
    magnitudes = torch.cat([weight.flatten() for weight in call.weights.values()])
    mask = element_masks.level_mask(magnitudes, call.arguments["desired_sparsity"])
    if mask is None:
        return {}
    parts = mask.split([weight.numel() for weight in call.weights.values()])
    return {name: part.view_as(call.weights[name]) for name, part in zip(call.weights, parts, strict=True)}


def _filters_over_all(call: Call) -> Masks:
    """The filters of least score among those of all tensors; no tensor loses its best one. The score is the mean square
    of a filter's weights over the largest of its tensor's."""
    scores = []
    for weight in call.weights.values():
        squares = weight.float().square().flatten(1).mean(dim=1)
        scores.append(squares / squares.max().clamp(min=torch.finfo(torch.float32).tiny))
    joined = torch.cat(scores)
    num_pruned = int(call.arguments["desired_sparsity"] * len(joined))
    if num_pruned == 0:
        return {}
    kept = structures.keep_highest(joined, num_pruned) * (joined != 0)
    masks = {}
    for name, score, stays in zip(call.weights, scores, kept.split([len(each) for each in scores]), strict=True):
        stays[score.argmax()] = 1
        masks[name] = structures.spread(stays, call.weights[name].shape, "Filters")
    return masks


def _sensitivity(call: Call) -> Masks:
    masks = {}
    for name, weight in call.weights.items():
        std = call.memory.once(name, "std", weight.std)
        masks[name] = element_masks.above(weight, call.value_of("sensitivities", name) * std)
    return masks


def _splicing(call: Call) -> Masks:
    masks, given = {}, call.arguments
    for name, weight in call.weights.items():
        mean = call.memory.once(name, "mean_magnitude", lambda w=weight: w.abs().mean())  # type: ignore[misc]
        std = call.memory.once(name, "std_of_magnitudes", lambda w=weight: w.abs().std())  # type: ignore[misc]
        multiplier = given.get("sensitivity_multiplier", 0.0)
        sensitivity = element_masks.growing_sensitivity(call.value_of("sensitivities", name), multiplier, call.span)
        masks[name] = element_masks.splicing_mask(
            weight, call.masks[name], mean=mean, std=std, sensitivity=sensitivity,
            low=given["low_thresh_mult"], high=given["hi_thresh_mult"],
        )  # fmt: skip
    return masks


def _baidu(call: Call) -> Masks:
    given = call.arguments
    threshold = element_masks.baidu_threshold(
        given["q"], given["ramp_epoch_offset"], given["ramp_slope_mult"], call.span
    )
    return {name: element_masks.above(weight, threshold) for name, weight in call.weights.items()}


def _structure(call: Call) -> Masks:
    masks = {}
    for name, weight in call.weights.items():
        threshold, group_type = call.value_of("reg_regims", name)
        sizes = structures.criterion(structures.groups(weight, group_type), call.arguments["threshold_criteria"])
        masks[name] = structures.spread((sizes > threshold).float(), weight.shape, group_type)
    return masks


# Ranked structures: which groups of a weight stay. Takes (call, name, sparsity); G float, or None for no change.
_Kept = Callable[[Call, str, float], Tensor | None]


def _ranked(kept_of: _Kept) -> Callable[[Call], Masks]:
    def rule(call: Call) -> Masks:
        group_type, block_shape, has_leader = _groups_of(call)
        masks, leader = {}, next(iter(call.weights))
        # A random sparsity is one for all where the first tensor decides, and else each tensor's own.
        of_all = _sparsity_now(call) if has_leader else None
        for name, weight in call.weights.items():
            if of_all is not None:
                kept = _leaders_choice(call, leader, of_all, kept_of)
            else:
                sparsity = _sparsity_now(call)
                kept = kept_of(call, name, sparsity) if sparsity > 0 else None
            if kept is not None:
                masks[name] = structures.spread(kept.to(weight.device), weight.shape, group_type, block_shape)
        return masks

    return rule


def _sparsity_now(call: Call) -> float:
    if "sparsity_range" not in call.arguments:
        return float(call.arguments["desired_sparsity"])
    low, high = call.arguments["sparsity_range"]
    return float(low + (high - low) * call.memory.draw())


def _leaders_choice(call: Call, leader: str, sparsity: float, kept_of: _Kept) -> Tensor | None:
    """What the first tensor keeps, which all of them then do. It is chosen anew only when the sparsity changes."""
    chosen_for, kept = call.memory.leaders.get(call.name, (None, None))
    if chosen_for == sparsity or sparsity == 0:
        return kept
    found = kept_of(call, leader, sparsity)
    if found is not None:
        call.memory.leaders[call.name] = (sparsity, found)
        kept = found
    return kept


def _groups_of(call: Call) -> tuple[str, list[int] | None, bool]:
    """(group type of `structures`, block shape, whether the first tensor decides for all)."""
    given = call.arguments
    # What Distiller ranks as the rows of a linear layer are its inputs: torch holds the matrix transposed.
    group_type = "Cols" if given["group_type"] == "Rows" else given["group_type"]
    return group_type, given.get("kwargs", {}).get("block_shape"), given.get("group_dependency") == "Leader"


def _by_norm(p: int) -> _Kept:
    def kept(call: Call, name: str, sparsity: float) -> Tensor | None:
        group_type, block_shape, _ = _groups_of(call)
        norms = structures.mean_norm(structures.groups(call.weights[name], group_type, block_shape), p)
        noise = call.arguments.get("noise", 0.0)
        if noise and call.memory.draw() <= noise:
            drawn = torch.randn(len(norms), generator=call.memory.generator)
            norms = norms * drawn.abs().to(norms.device)
        return structures.ranked_groups(norms, sparsity)

    return kept


def _at_random(call: Call, name: str, sparsity: float) -> Tensor | None:
    """int(sparsity * F) filters, whichever."""
    count = len(call.weights[name])
    num_pruned = int(sparsity * count)
    if num_pruned == 0:
        return None
    kept = torch.ones(count)
    kept[torch.randperm(count, generator=call.memory.generator)[:num_pruned]] = 0
    return kept


def _bernoulli(call: Call, name: str, sparsity: float) -> Tensor | None:
    """Each filter with probability `sparsity`; what is kept is scaled by the inverse of its share."""
    probabilities = torch.full((len(call.weights[name]),), 1 - sparsity)
    kept = torch.bernoulli(probabilities, generator=call.memory.generator)
    share = kept.mean()
    return kept / share if share > 0 else torch.ones_like(kept)


def _by_gradient(call: Call, name: str, sparsity: float) -> Tensor | None:
    """The filters with the least sum of weight x gradient, signs and all (Molchanov et al. 2017)."""
    gradient, weight = call.gradients[name], call.weights[name]
    num_pruned = int(sparsity * len(weight))
    if gradient is None or num_pruned == 0:
        return None
    scores = (weight * gradient).flatten(1).sum(dim=1).float()
    # A step that was left out has left gradients that say nothing.
    return structures.keep_highest(scores, num_pruned) if bool(scores.isfinite().all()) else None


def _by_activation(statistic: str) -> _Kept:
    """The filters of the least statistic of `activations.Statistics`. Distiller takes those of the greatest mean."""

    def kept(call: Call, name: str, sparsity: float) -> Tensor | None:
        weight, found = call.weights[name], call.memory.activations.get(name)
        num_pruned = int(sparsity * len(weight))
        if found is None or num_pruned == 0:
            return None
        is_zero = (weight == 0).flatten(1).all(dim=1)  # what its batch norm says does not bring it back
        return structures.keep_highest(torch.where(is_zero, -1.0, found[statistic]), num_pruned)

    return kept


RULES: dict[str, Callable[[Call], Masks]] = {
    "MagnitudeParameterPruner": _magnitude,
    "SparsityLevelParameterPruner": _level,
    "AutomatedGradualPruner": _automated_gradual,
    "SensitivityPruner": _sensitivity,
    "SplicingPruner": _splicing,
    "BaiduRNNPruner": _baidu,
    "StructureParameterPruner": _structure,
    "L1RankedStructureParameterPruner": _ranked(_by_norm(1)),
    "L2RankedStructureParameterPruner": _ranked(_by_norm(2)),
    "RandomLevelStructureParameterPruner": _ranked(_by_norm(1)),
    "RandomRankedFilterPruner": _ranked(_at_random),
    "BernoulliFilterPruner": _ranked(_bernoulli),
    "GlobalMagnitudePruner": _over_all,
    "GlobalFilterPruner": _filters_over_all,
    "GradientRankedFilterPruner": _ranked(_by_gradient),
    "ActivationAPoZRankedFilterPruner": _ranked(_by_activation("active")),
    "ActivationMeanRankedFilterPruner": _ranked(_by_activation("mean")),
}
NEEDS_ACTIVATIONS = tuple(
    f"Activation{kind}RankedFilterPruner{form}" for kind in ("APoZ", "Mean") for form in ("", "_AGP")
)
NEEDS_GRADIENTS = ("GradientRankedFilterPruner", "GradientRankedFilterPruner_AGP")
