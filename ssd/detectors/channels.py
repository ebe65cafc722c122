"""Which layers share channels, the channels of a thinned model as plain data, and how a fresh model gets them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

Plan = dict[str, dict[str, int]]
"""By the name of a convolution, linear layer or norm, how many channels it has where they are not the detector's own:
"out" and "in". Of a norm and of a depthwise convolution "out"."""
Writer = tuple[str, str]
"""The names of a layer and of the norm behind it, "" where there is none."""


class Stream(NamedTuple):
    """Channels that layers write and read. Layers are convolutions or linear.

    additions: one after the other, each with the activation after it; of each, what writes it. With several, each adds
    to what the ones before have made (a ResNet's stage); with one, there is only that.
    readers: the layers that the channels go into, directly or behind `depthwise`. behind: those of them that read only
    what `depthwise` says.
    activation: a function of single values.
    places: by reader, which of its inputs are a channel (C x R int64); a reader that is not in it has C inputs, in the
    channels' order.
    depthwise: convolutions that read each channel alone and say one for it. followers: layers that scale each channel.
    vectors: parameters that do, behind a norm over all channels, which sees also what no reader does.
    unit: so many channels, next to each other, go together or stay. multiple: their number stays a multiple of this.
    joins: whether readers see a constant as one and the same number everywhere, but for their own padding.
    """

    additions: list[list[Writer]]
    readers: list[str]
    activation: Callable[[Tensor], Tensor] = torch.relu
    places: Mapping[str, Tensor] = {}
    depthwise: tuple[Writer, ...] = ()
    behind: tuple[str, ...] = ()
    followers: tuple[Writer, ...] = ()
    vectors: tuple[str, ...] = ()
    unit: int = 1
    multiple: int = 1
    joins: bool = True

    @property
    def writers(self) -> list[Writer]:
        return [writer for addition in self.additions for writer in addition]

    @property
    def layers(self) -> list[Writer]:
        """All that have an output for each channel."""
        return [*self.writers, *self.depthwise, *self.followers]

    def columns(self, reader: str, weight: Tensor) -> Tensor:
        """What a reader multiplies each channel by: C x n. weight: the reader's."""
        by_input = weight.transpose(0, 1)
        if reader in self.places:
            by_input = by_input[self.places[reader]]
        return by_input.flatten(1)


def thinned(model: Any, plan: Plan) -> Any:
    """The same model, with fresh layers that have the plan's channels. Raises ValueError as `apply_plan`."""
    apply_plan(model, plan)
    model.channel_plan = plan
    return model


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Puts fresh layers with the plan's channels in the place of the model's.

    Raises ValueError for a plan that names no layer of the model, or no number of channels.
    """
    for name, channels in plan.items():
        try:
            parent = model.get_submodule(name.rpartition(".")[0])
            layer = getattr(parent, name.rpartition(".")[2])
        except AttributeError as error:
            raise ValueError(f"no layer {name}") from error
        counts = list(channels.values()) if isinstance(channels, dict) else []
        if not counts or not channels.keys() <= {"in", "out"} or any(type(n) is not int or n < 1 for n in counts):
            raise ValueError(f"{name} has no channels")
        setattr(parent, name.rpartition(".")[2], _resized(layer, channels, name))


def _resized(layer: Any, channels: dict[str, int], name: str) -> nn.Module | nn.Parameter:
    """A fresh layer, which trains where the layer did."""
    own = _own_channels(layer)
    if not channels.keys() <= own.keys() or any(n > own[key] for key, n in channels.items()):
        raise ValueError(f"{name} has not so many channels")
    counts = {**own, **channels}
    if isinstance(layer, nn.Parameter):
        return nn.Parameter(layer.detach()[: counts["out"]].clone(), layer.requires_grad)
    resized = _fresh(layer, counts.get("in", 0), counts["out"])
    for parameter, before in zip(resized.parameters(), layer.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return resized


def _fresh(layer: nn.Module, ins: int, outs: int) -> nn.Module:
    if isinstance(layer, nn.GroupNorm):
        size = layer.num_channels // layer.num_groups
        if outs % size:
            raise ValueError(f"{outs} channels are not whole groups of {size}")
        return nn.GroupNorm(outs // size, outs, layer.eps)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(outs, layer.eps, layer.momentum)
    if isinstance(layer, FrozenBatchNorm2d):
        return FrozenBatchNorm2d(outs, layer.eps)
    if isinstance(layer, nn.Linear):
        return nn.Linear(ins, outs, bias=layer.bias is not None)
    assert isinstance(layer, nn.Conv2d)
    given: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    is_depthwise = layer.groups > 1
    groups = outs if is_depthwise else 1
    resized = nn.Conv2d(outs if is_depthwise else ins, outs, groups=groups, bias=layer.bias is not None, **given)
    nn.init.xavier_uniform_(resized.weight)  # what class heads begin with, which a fine-tuned model may keep
    return resized


def _own_channels(layer: Any) -> dict[str, int]:
    """Those that a plan may change: none of layers of other kinds."""
    if isinstance(layer, nn.Parameter):
        return {"out": len(layer)} if layer.dim() == 1 else {}
    if isinstance(layer, nn.BatchNorm2d):
        return {"out": layer.num_features}
    if isinstance(layer, nn.GroupNorm):
        return {"out": layer.num_channels}
    if isinstance(layer, FrozenBatchNorm2d):
        return {"out": len(layer.running_mean)}
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return {"in": layer.in_channels, "out": layer.out_channels}
    if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels:
        return {"out": layer.out_channels}
    return {}


def plan_between(before: nn.Module, after: nn.Module) -> Plan:
    """What `apply_plan` needs to make a model like `after` of one like `before`."""
    plan: Plan = {}
    pairs = [(name, layer, after.get_submodule(name)) for name, layer in before.named_modules()]
    for name, parameter in before.named_parameters():
        parent = name.rpartition(".")[0]
        if not _own_channels(before.get_submodule(parent)):
            pairs.append((name, parameter, after.get_parameter(name)))  # type: ignore[arg-type]
    for name, layer, other in pairs:
        own, others = _own_channels(layer), _own_channels(other)
        if changed := {key: others[key] for key in own if others[key] != own[key]}:
            plan[name] = changed
    return plan
