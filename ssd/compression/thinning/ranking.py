"""The filters that matter least, chosen until the rest computes a stated share of the FLOPs."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssd.compression.thinning.removal import step_of
from ssd.detectors.channels import Stream
from ssd.errors import InputError

_LEAST_SHARE = 1 / 8
"""Of a stream's channels that stay in any case: a layer that is as good as gone cannot be made up for."""


@torch.no_grad()
def without_lowest(
    model: nn.Module, streams: Sequence[Stream], flops: Mapping[str, int], share: float, *, round_to: int = 1
) -> nn.Module:
    """A copy of the model in which the filters of the lowest rank are 0 and say nothing, so that `removal.thin` takes
    them out, and that computes at most `share` of the FLOPs then.

    flops: by the name of a weight, as of `summary.flops_by_weight`. round_to: numbers of channels stay multiples of it.
    Raises InputError where as many as may go do not suffice.
    """
    scores = [importance(model, stream) for stream in streams]
    total = sum(flops.values())
    thresholds = torch.cat(scores).unique()
    low, high = 0, len(thresholds)  # how many of the thresholds are passed; `high` is the first that suffices
    least = _flops_with(model, streams, flops, _kept(scores, streams, float(thresholds[-1]) + 1, round_to))
    if least > share * total:
        raise InputError(
            f"--flops {share:g}: what may go leaves {least / total:.2f} of the FLOPs at least; pass that or more"
        )
    while low < high:
        middle = (low + high) // 2
        kept = _kept(scores, streams, float(thresholds[middle]), round_to)
        if _flops_with(model, streams, flops, kept) <= share * total:
            high = middle
        else:
            low = middle + 1
    limit = float(thresholds[high]) if high < len(thresholds) else float(thresholds[-1]) + 1
    zeroed = copy.deepcopy(model)
    for stream, stay in zip(streams, _kept(scores, streams, limit, round_to), strict=True):
        _silence(zeroed, stream, ~stay)
    return zeroed


def importance(model: nn.Module, stream: Stream) -> Tensor:
    """Of each channel (C float32): the L2 norm of the filters that write it, as batch norm scales them, over the
    layer's mean, so that layers can be held against each other; the mean over the stream's layers, and over channels
    that only go together."""
    sizes = []
    for name, norm_name in (*stream.writers, *stream.depthwise):
        layer: Any = model.get_submodule(name)
        size = layer.weight.detach().float().flatten(1).norm(dim=1)
        if norm_name:
            norm: Any = model.get_submodule(norm_name)
            size = size * norm.weight.detach().float().abs()
            if hasattr(norm, "running_var"):  # what a group norm divides by is the image's
                size = size / (norm.running_var + norm.eps).sqrt()
        sizes.append(size / size.mean().clamp(min=1e-12))
    by_unit = torch.stack(sizes).mean(dim=0).view(-1, stream.unit)
    return by_unit.mean(dim=1).repeat_interleave(stream.unit)


def _kept(scores: Sequence[Tensor], streams: Sequence[Stream], threshold: float, round_to: int) -> list[Tensor]:
    """Of each stream (C bool): the channels from the threshold on, and of the highest ones as many as must stay."""
    found = []
    for score, stream in zip(scores, streams, strict=True):
        count = int((score >= threshold).sum())
        count = max(count, 1, int(_LEAST_SHARE * len(score)))
        step = step_of(stream, len(score), round_to)
        count = min(-(-count // step) * step, len(score))
        kept = torch.zeros(len(score), dtype=torch.bool)
        kept[score.sort(descending=True, stable=True).indices[:count]] = True  # units have one score, and lie together
        found.append(kept)
    return found


def _flops_with(model: nn.Module, streams: Sequence[Stream], flops: Mapping[str, int], kept: Sequence[Tensor]) -> float:
    shares: dict[str, float] = {}
    inputs: dict[str, float] = {}
    for stream, stay in zip(streams, kept, strict=True):
        share = float(stay.float().mean())
        for name, _ in stream.layers:
            shares[name] = shares.get(name, 1.0) * share
        for name in stream.readers:
            reader: Any = model.get_submodule(name)
            read = stream.places[name].numel() if name in stream.places else len(stay)
            inputs[name] = inputs.get(name, 1.0) - (1 - share) * read / reader.weight.shape[1]
    for name, share in inputs.items():
        shares[name] = shares.get(name, 1.0) * share
    return sum(count * shares.get(name.removesuffix(".weight"), 1.0) for name, count in flops.items())


def _silence(model: nn.Module, stream: Stream, gone: Tensor) -> None:
    for name, norm_name in (*stream.writers, *stream.depthwise):
        layer: Any = model.get_submodule(name)
        values = [layer.weight, layer.bias]
        if norm_name:
            norm: Any = model.get_submodule(norm_name)
            values += [norm.weight, norm.bias]
        for value in values:
            if value is not None:
                value.data[gone] = 0
