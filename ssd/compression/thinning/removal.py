"""Filters that are 0 taken out of a model for good, with what they said as far as it mattered. A filter is all that
makes one channel: also a row of a linear layer.

A filter of zeros still says something: its batch norm makes a constant of 0. Where that constant dies in the ReLU, the
filter goes. Where it does not, the constants of a layer are left to one filter, and the weights that read the others
are added to those that read it: the same sums, also at the borders, where padding reads 0.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.detectors.channels import Plan, Stream, plan_between, thinned
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
    keeps_out, keeps_in = _indices(decisions)
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
    keeps_out, keeps_in = _indices(decisions)
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
    model = models[0]
    writers: list[Any] = [model.get_submodule(name) for name, _ in stream.writers]
    is_zero = torch.stack([(layer.weight == 0).flatten(1).all(dim=1) for layer in writers]).all(dim=0)
    if is_zero.all():
        raise InputError(f"{stream.writers[0][0]}: all of its filters are 0; thinning would remove the whole layer")
    constants = torch.stack([torch.stack(_constants(each, stream)) for each in models])  # models x additions x C
    is_unread = torch.stack([_unread(each, stream) for each in models]).all(dim=0)
    says_nothing = (is_zero & (constants == 0).flatten(0, 1).all(dim=0)) | is_unread
    kept = ~says_nothing
    speaks = (is_zero & ~says_nothing).nonzero().flatten()
    # One that says something in all models can say it for the others, by shares of its own constant.
    is_heard = (constants != 0).flatten(0, 1).all(dim=0)[speaks]
    speaks = torch.cat([speaks[is_heard], speaks[~is_heard]])
    # After several additions the readers see different constants, which no one filter has in their proportions.
    if len(stream.additions) > 1 or len(speaks) < 2 or not is_heard.any():
        speaks = speaks[:0]
    kept[speaks[1:]] = False
    missing = -int(kept.sum()) % round_to if len(kept) % round_to == 0 else 0
    gone = (~kept).nonzero().flatten()
    gone = gone[~torch.isin(gone, speaks)]  # what these say is said already
    kept[gone[:missing]] = True
    return _Decision(stream, kept, int((is_zero | is_unread).sum()), speaks)


def _unread(model: nn.Module, stream: Stream) -> Tensor:
    """C bool: the channels that all readers multiply by 0; none of them where that is so for all, as in a head that has
    not been trained."""
    readers: list[Any] = [model.get_submodule(name) for name in stream.readers]
    found = torch.stack([(layer.weight == 0).transpose(0, 1).flatten(1).all(dim=1) for layer in readers]).all(dim=0)
    return found & ~found.all()


def _join_constants(model: nn.Module, decision: _Decision) -> None:
    """Adds the weights that read the constants of `speaks` to those that read the first of them."""
    stream, speaks = decision.stream, decision.speaks
    if len(speaks) < 2:
        return
    constants = _constants(model, stream)[0]
    speaker, others = speaks[0], speaks[1:]
    shares = constants[others] / constants[speaker]
    for name in stream.readers:
        weight: Any = model.get_submodule(name).weight
        weight[:, speaker] += torch.einsum("ok...,k->o...", weight[:, others], shares)


def _indices(decisions: Iterable[_Decision]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By the names of layers, which of their outputs and of their inputs stay."""
    keeps_out: dict[str, Tensor] = {}
    keeps_in: dict[str, Tensor] = {}
    for each in decisions:
        index = each.kept.nonzero().flatten()
        for writer, norm in each.stream.writers:
            keeps_out[writer] = index
            if norm:
                keeps_out[norm] = index
        for reader in each.stream.readers:
            keeps_in[reader] = index
    return keeps_out, keeps_in


def _constants(model: nn.Module, stream: Stream) -> list[Tensor]:
    """After each addition, what a channel is everywhere if all that is written to it comes from zeros."""
    found: list[Tensor] = []
    for addition in stream.additions:
        total = found[-1].clone() if found else torch.zeros(())
        for writer, norm_name in addition:
            layer: Any = model.get_submodule(writer)
            said = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
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
