"""Which layers share channels, the channels of a thinned model as plain data, and how a fresh model gets them."""

from typing import Any, NamedTuple

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

Plan = dict[str, dict[str, int]]
"""By the name of a convolution, linear layer or batch norm, how many channels it has where they are not the detector's
own: "out" and "in". Of a batch norm "out"."""


class Stream(NamedTuple):
    """Channels that layers write and read.

    additions: one after the other, each with a ReLU after it; of each the (layer, its batch norm) that write it, with
    "" where there is no norm. With several, each adds to what the ones before have made (a ResNet's stage); with one,
    there is only that. readers: the layers that the channels go into. Layers are convolutions or linear.
    """

    additions: list[list[tuple[str, str]]]
    readers: list[str]

    @property
    def writers(self) -> list[tuple[str, str]]:
        return [writer for addition in self.additions for writer in addition]


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
            parent, layer = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"no layer {name}") from error
        counts = list(channels.values()) if isinstance(channels, dict) else []
        if not counts or not channels.keys() <= {"in", "out"} or any(type(n) is not int or n < 1 for n in counts):
            raise ValueError(f"{name} has no channels")
        setattr(parent, name.rpartition(".")[2], _resized(layer, channels, name))


def _resized(layer: nn.Module, channels: dict[str, int], name: str) -> nn.Module:
    """A fresh layer, which trains where the layer did."""
    own = _own_channels(layer)
    if not channels.keys() <= own.keys() or any(n > own[key] for key, n in channels.items()):
        raise ValueError(f"{name} has not so many channels")
    counts = {**own, **channels}
    resized = _fresh(layer, counts.get("in", 0), counts["out"])
    for parameter, before in zip(resized.parameters(), layer.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return resized


def _fresh(layer: nn.Module, ins: int, outs: int) -> nn.Module:
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(outs, layer.eps, layer.momentum)
    if isinstance(layer, FrozenBatchNorm2d):
        return FrozenBatchNorm2d(outs, layer.eps)
    if isinstance(layer, nn.Linear):
        return nn.Linear(ins, outs, bias=layer.bias is not None)
    assert isinstance(layer, nn.Conv2d)
    given: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    resized = nn.Conv2d(ins, outs, bias=layer.bias is not None, **given)
    nn.init.xavier_uniform_(resized.weight)  # what class heads begin with, which a fine-tuned model may keep
    return resized


def _own_channels(layer: nn.Module) -> dict[str, int]:
    """Those that a plan may change: none of layers of other kinds."""
    if isinstance(layer, nn.BatchNorm2d):
        return {"out": layer.num_features}
    if isinstance(layer, FrozenBatchNorm2d):
        return {"out": len(layer.running_mean)}
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return {"in": layer.in_channels, "out": layer.out_channels}
    return {}


def plan_between(before: nn.Module, after: nn.Module) -> Plan:
    """What `apply_plan` needs to make a model like `after` of one like `before`."""
    plan: Plan = {}
    for name, layer in before.named_modules():
        own, others = _own_channels(layer), _own_channels(after.get_submodule(name))
        if changed := {key: others[key] for key in own if others[key] != own[key]}:
            plan[name] = changed
    return plan
