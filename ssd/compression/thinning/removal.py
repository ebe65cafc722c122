"""Filters that are 0 taken out of a model for good, with what they said as far as it mattered. A filter is all that
makes one channel: also a row of a linear layer.

A filter of zeros still says something: its batch norm makes a constant of 0. Where that constant dies in the ReLU, the
filter goes. Where it does not, the constants of a layer are left to one filter, and the weights that read the others
are added to those that read it: the same sums, also at the borders, where padding reads 0.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.detectors.channels import Plan, Stream, Writer, plan_between, thinned
from ssd.errors import InputError

Cut = Callable[[str, Tensor], Tensor]
"""(a name in the state dict, a tensor of the shape that it had) -> the part of it that stays."""


class Thinned(NamedTuple):
    """model: the smaller one, with its channel_plan. removed: how many filters went. left: how many filters of zeros
    stay, because they say a constant or to round. cut: of what belongs to the model's weights."""

    model: nn.Module
    removed: int
    left: int
    cut: Cut


@torch.no_grad()
def thin(model: nn.Module, fresh: nn.Module, streams: Iterable[Stream], *, round_to: int = 1) -> Thinned:
    """A copy of the model without its filters of zeros; its output in evaluation is the model's, but for rounding.

    fresh: a model as the detector builds it, which becomes the smaller one; the model may have been thinned before.
    streams: of the model. round_to: the number of channels stays a multiple of this, where it was one.
    Raises InputError where a whole layer is 0.
    """
    source = copy.deepcopy(model)
    decisions = [_decide([source], stream, round_to) for stream in streams]
    keeps_out, keeps_in = _indices(source, decisions)
    shapes = thinned(copy.deepcopy(model), _plan(keeps_out, keeps_in))
    smaller: nn.Module = thinned(fresh, plan_between(fresh, shapes))

    def cut(name: str, value: Tensor) -> Tensor:
        return _cut(name, value, keeps_out, keeps_in)

    for each in decisions:
        _join_constants(source, each)
    smaller.load_state_dict({name: cut(name, value) for name, value in source.state_dict().items()})
    removed = sum(int((~each.kept).sum()) * len(each.stream.writers) for each in decisions)
    zeros = sum(each.zeros * len(each.stream.writers) for each in decisions)
    return Thinned(smaller.train(model.training), removed, zeros - removed, cut)


@torch.no_grad()
def thin_in_place(models: Sequence[nn.Module], streams: Iterable[Stream], round_to: int = 1) -> Cut | None:
    """As `thin`, but the models themselves lose filters: those that are 0 in the first, in all of them. They keep their
    other layers as the objects that they are, and their `channel_plan` says what they have become.

    models: of one detector, with equal shapes. Returns how what belongs to their weights is to be cut; None where
    nothing goes.
    """
    decisions = [_decide(models, stream, round_to) for stream in streams]
    if all(bool(each.kept.all()) for each in decisions):
        return None
    keeps_out, keeps_in = _indices(models[0], decisions)
    plan = plan_between(models[0], thinned(copy.deepcopy(models[0]), _plan(keeps_out, keeps_in)))

    def cut(name: str, value: Tensor) -> Tensor:
        return _cut(name, value, keeps_out, keeps_in)

    for model in models:
        for each in decisions:
            _join_constants(model, each)
        state = {name: cut(name, value).clone() for name, value in model.state_dict().items()}
        before: Plan = getattr(model, "channel_plan", {})
        device = next(model.parameters()).device
        # As it lies in memory, so do sums come out to the last bit: a resumed run has it all in one way.
        is_channels_last = any(
            p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
            for p in model.parameters()
        )
        was_training = {name: module.training for name, module in model.named_modules()}
        thinned(model, plan).channel_plan = {
            name: {**before.get(name, {}), **plan.get(name, {})} for name in {**before, **plan}
        }
        model.load_state_dict(state)
        model.to(device)
        if is_channels_last:
            model.to(memory_format=torch.channels_last)
        for name, module in model.named_modules():
            module.training = was_training[name]
    return cut


class _Decision(NamedTuple):
    """kept: which channels of the stream stay (C bool). zeros: how many could go. speaks: those whose filters are 0 and
    say a constant that the first of them is to say for all; none where that cannot be."""

    stream: Stream
    kept: Tensor
    zeros: int
    speaks: Tensor


def _decide(models: Sequence[nn.Module], stream: Stream, round_to: int) -> _Decision:
    """Of the filters that are 0 in the first model; what they say is looked at in all of them."""
    is_zero = _all_zero(models[0], stream.writers)
    if is_zero.all():
        raise InputError(f"{stream.writers[0][0]}: all of its filters are 0; thinning would remove the whole layer")
    constants = torch.stack([torch.stack(_constants(each, stream)) for each in models])  # models x additions x C
    is_unread = torch.stack([_unread(each, stream) for each in models]).all(dim=0)
    is_silent = is_zero & (constants == 0).flatten(0, 1).all(dim=0)
    if stream.depthwise:
        is_silent = torch.stack([_silent_behind(each, stream, is_silent) for each in models]).all(dim=0)
    is_gone = _whole_units(is_silent, stream.unit) | _whole_units(is_unread, stream.unit)
    kept = ~is_gone
    speaks = (is_zero & kept).nonzero().flatten()
    # One that says something in all models can say it for the others, by shares of its own constant.
    is_heard = (constants != 0).flatten(0, 1).all(dim=0)[speaks]
    speaks = torch.cat([speaks[is_heard], speaks[~is_heard]])
    # After several additions the readers see different constants, which no one filter has in their proportions.
    can_join = stream.joins and len(stream.additions) == 1 and stream.unit == 1 and not stream.depthwise
    if not can_join or len(speaks) < 2 or not is_heard.any():
        speaks = speaks[:0]
    kept[speaks[1:]] = False
    gone = (~kept).nonzero().flatten()
    gone = gone[~torch.isin(gone, speaks)]  # what these say is said already
    kept[gone[: -int(kept.sum()) % step_of(stream, len(kept), round_to)]] = True
    return _Decision(stream, kept, int((is_zero | is_unread).sum()), speaks)


def step_of(stream: Stream, count: int, round_to: int) -> int:
    """What the number of channels is to be a multiple of; count: what it is."""
    own = math.lcm(stream.multiple, stream.unit)
    both = math.lcm(own, round_to)
    return both if count % both == 0 else own


def _whole_units(channels: Tensor, unit: int) -> Tensor:
    """Of the channels (C bool) those whose whole unit is among them."""
    return channels.view(-1, unit).all(dim=1).repeat_interleave(unit)


def _all_zero(model: nn.Module, writers: Iterable[Writer]) -> Tensor:
    layers: list[Any] = [model.get_submodule(name) for name, _ in writers]
    return torch.stack([(layer.weight == 0).flatten(1).all(dim=1) for layer in layers]).all(dim=0)


def _silent_behind(model: nn.Module, stream: Stream, is_silent: Tensor) -> Tensor:
    """C bool: the channels of which no reader sees anything but 0, also behind the depthwise convolutions.

    is_silent: as they are written.
    """
    found = []
    for writer in stream.depthwise:
        # 0 stays 0 in every activation that comes behind one.
        found.append((_all_zero(model, [writer]) | is_silent) & (_said_of_zeros(model, writer) == 0))
    if any(name not in stream.behind for name in stream.readers):
        found.append(is_silent)
    return torch.stack(found).all(dim=0)


def _unread(model: nn.Module, stream: Stream) -> Tensor:
    """C bool: the channels that all readers multiply by 0; none of them where that is so for all, as in a head that has
    not been trained."""
    if stream.vectors:
        return torch.zeros(len(_weight_of(model, stream.writers[0][0])), dtype=torch.bool)
    columns = [stream.columns(name, _weight_of(model, name)) for name in stream.readers]
    found = torch.stack([(each == 0).all(dim=1) for each in columns]).all(dim=0)
    return found & ~found.all()


def _weight_of(model: nn.Module, name: str) -> Tensor:
    layer: Any = model.get_submodule(name)
    weight: Tensor = layer.weight
    return weight


def _join_constants(model: nn.Module, decision: _Decision) -> None:
    """Adds the weights that read the constants of `speaks` to those that read the first of them."""
    stream, speaks = decision.stream, decision.speaks
    if len(speaks) < 2:
        return
    constants = _constants(model, stream)[0]
    speaker, others = speaks[0], speaks[1:]
    shares = constants[others] / constants[speaker]
    for name in stream.readers:
        weight = _weight_of(model, name)
        places = stream.places.get(name)
        if places is None:
            places = torch.arange(len(constants)).unsqueeze(1)
        for place in range(places.shape[1]):
            more = torch.einsum("ok...,k->o...", weight[:, places[others, place]], shares)
            weight[:, places[speaker, place]] += more


def _indices(model: nn.Module, decisions: Iterable[_Decision]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By the names of layers and vectors, which of their outputs and of their inputs stay."""
    keeps_out: dict[str, Tensor] = {}
    keeps_in: dict[str, Tensor] = {}
    for each in decisions:
        index = each.kept.nonzero().flatten()
        for writer, norm in each.stream.layers:
            keeps_out[writer] = index
            if norm:
                keeps_out[norm] = index
        keeps_out |= dict.fromkeys(each.stream.vectors, index)
        for reader in each.stream.readers:
            stays = keeps_in.setdefault(reader, torch.ones(_weight_of(model, reader).shape[1], dtype=torch.bool))
            gone = ~each.kept
            stays[each.stream.places[reader][gone] if reader in each.stream.places else gone] = False
    return keeps_out, {reader: stays.nonzero().flatten() for reader, stays in keeps_in.items()}


def _constants(model: nn.Module, stream: Stream) -> list[Tensor]:
    """After each addition, what a channel is everywhere if all that is written to it comes from zeros."""
    found: list[Tensor] = []
    for addition in stream.additions:
        total = found[-1].clone() if found else torch.zeros(())
        for writer in addition:
            total = total + _said_of_zeros(model, writer)
        found.append(stream.activation(total))
    return found


def _said_of_zeros(model: nn.Module, writer: Writer) -> Tensor:
    """What a layer's norm, or its bias, makes of zeros: C."""
    layer: Any = model.get_submodule(writer[0])
    said: Tensor = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    if not writer[1]:
        return said
    norm: Any = model.get_submodule(writer[1])
    if isinstance(norm, nn.GroupNorm):  # of groups that are all 0
        by_group = said.view(norm.num_groups, -1)
        mean, variance = by_group.mean(dim=1, keepdim=True), by_group.var(dim=1, keepdim=True, correction=0)
        return norm.bias + norm.weight * ((by_group - mean) / (variance + norm.eps).sqrt()).flatten()
    return norm.bias + norm.weight * (said - norm.running_mean) / (norm.running_var + norm.eps).sqrt()


def _plan(keeps_out: dict[str, Tensor], keeps_in: dict[str, Tensor]) -> Plan:
    plan: Plan = {}
    for key, keeps in (("out", keeps_out), ("in", keeps_in)):
        for name, index in keeps.items():
            plan.setdefault(name, {})[key] = len(index)
    return plan


def _cut(name: str, value: Tensor, keeps_out: dict[str, Tensor], keeps_in: dict[str, Tensor]) -> Tensor:
    layer = name.rpartition(".")[0]
    index = keeps_out.get(layer, keeps_out.get(name))
    if value.dim() and index is not None:
        value = value[index]
    return value[:, keeps_in[layer]] if value.dim() > 1 and layer in keeps_in else value
