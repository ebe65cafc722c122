"""Filters that are 0 taken out of a model for good, with what they said as far as it mattered. A filter is all that
makes one channel: also a row of a linear layer.

A filter of zeros still says something: its batch norm makes a constant of 0. Where that constant dies in the ReLU, the
filter goes. Where it does not, the constants of a layer are left to one filter, and the weights that read the others
are added to those that read it: the same sums, also at the borders, where padding reads 0.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.detectors.channels import Plan, Stream, plan_between, thinned
from ssd.errors import InputError


class Thinned(NamedTuple):
    """model: the smaller one, with its channel_plan. removed: how many filters went. left: how many filters of zeros
    stay, because they say a constant or to round. cut: (a name in the state dict, a tensor of the shape that it had) ->
    the part of it that stays."""

    model: nn.Module
    removed: int
    left: int
    cut: Callable[[str, Tensor], Tensor]


@torch.no_grad()
def thin(model: nn.Module, fresh: nn.Module, streams: Iterable[Stream], *, round_to: int = 1) -> Thinned:
    """A copy of the model without its filters of zeros; its output in evaluation is the model's, but for rounding.

    fresh: a model as the detector builds it, which becomes the smaller one; the model may have been thinned before.
    streams: of the model. round_to: the number of channels stays a multiple of this, where it was one.
    Raises InputError where a whole layer is 0.
    """
    source = copy.deepcopy(model)
    keeps_out: dict[str, Tensor] = {}
    keeps_in: dict[str, Tensor] = {}
    removed = left = 0
    for stream in streams:
        kept, zeros = _kept_channels(source, stream, round_to)
        gone = int((~kept).sum())
        removed, left = removed + gone * len(stream.writers), left + (zeros - gone) * len(stream.writers)
        index = kept.nonzero().flatten()
        for writer, norm in stream.writers:
            keeps_out[writer] = index
            if norm:
                keeps_out[norm] = index
        for reader in stream.readers:
            keeps_in[reader] = index
    shapes = thinned(copy.deepcopy(model), _plan(keeps_out, keeps_in))
    smaller: nn.Module = thinned(fresh, plan_between(fresh, shapes))

    def cut(name: str, value: Tensor) -> Tensor:
        return _cut(name, value, keeps_out, keeps_in)

    smaller.load_state_dict({name: cut(name, value) for name, value in source.state_dict().items()})
    return Thinned(smaller.train(model.training), removed, left, cut)


def _kept_channels(model: nn.Module, stream: Stream, round_to: int) -> tuple[Tensor, int]:
    """Which channels stay (C bool), and how many have only filters of zeros. Changes the weights of readers."""
    writers: list[Any] = [model.get_submodule(name) for name, _ in stream.writers]
    is_zero = torch.stack([(layer.weight == 0).flatten(1).all(dim=1) for layer in writers]).all(dim=0)
    if is_zero.all():
        raise InputError(f"{stream.writers[0][0]}: all of its filters are 0; thinning would remove the whole layer")
    constants = torch.stack(_constants(model, stream))  # additions x C
    says_nothing = is_zero & (constants == 0).all(dim=0)
    kept = ~says_nothing
    speaks = (is_zero & ~says_nothing).nonzero().flatten()
    # After several additions the readers see different constants, which no one filter has in their proportions.
    if len(stream.additions) == 1 and len(speaks) > 1:
        speaker, others = speaks[0], speaks[1:]
        shares = constants[0, others] / constants[0, speaker]
        for name in stream.readers:
            weight: Any = model.get_submodule(name).weight
            weight[:, speaker] += torch.einsum("ok...,k->o...", weight[:, others], shares)
        kept[others] = False
    missing = -int(kept.sum()) % round_to if len(kept) % round_to == 0 else 0
    gone = (~kept).nonzero().flatten()
    if len(stream.additions) == 1 and len(speaks) > 1:
        gone = gone[~torch.isin(gone, speaks)]  # what these say is said already
    kept[gone[:missing]] = True
    return kept, int(is_zero.sum())


def _constants(model: nn.Module, stream: Stream) -> list[Tensor]:
    """After each addition, what a channel is everywhere if all that is written to it comes from zeros."""
    found: list[Tensor] = []
    for addition in stream.additions:
        total = found[-1].clone() if found else torch.zeros(())
        for writer, norm_name in addition:
            layer: Any = model.get_submodule(writer)
            said = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
            if norm_name:
                norm: Any = model.get_submodule(norm_name)
                said = norm.bias + norm.weight * (said - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            total = total + said
        found.append(total.relu())
    return found


def _plan(keeps_out: dict[str, Tensor], keeps_in: dict[str, Tensor]) -> Plan:
    plan: Plan = {}
    for key, keeps in (("out", keeps_out), ("in", keeps_in)):
        for name, index in keeps.items():
            plan.setdefault(name, {})[key] = len(index)
    return plan


def _cut(name: str, value: Tensor, keeps_out: dict[str, Tensor], keeps_in: dict[str, Tensor]) -> Tensor:
    layer = name.rpartition(".")[0]
    if value.dim() and layer in keeps_out:
        value = value[keeps_out[layer]]
    return value[:, keeps_in[layer]] if value.dim() > 1 and layer in keeps_in else value
