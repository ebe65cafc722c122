"""What a model consists of: its tensors, how many of their weights are 0, and what its layers compute."""

import csv
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.compression.structures import groups, misfit
from ssd.detectors.table import detector_of
from ssd.storage.files import written_whole

_Weighted = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class TensorSummary(NamedTuple):
    """A parameter, by the name that schedules call it.

    zeros, zero_filters, zero_channels: shares in [0, 1] of its weights, of the groups of `structures`; None where it
    has no such groups. flops: of its layer for one pass, two an addition with its product; 0 of what is no weight of a
    convolution or linear layer. nonzero_flops: of them, those with weights that are not 0.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    nonzeros: int
    zeros: float
    zero_filters: float | None
    zero_channels: float | None
    flops: int
    nonzero_flops: int


class Part(NamedTuple):
    """Sums over the tensors of a child of the model, or over all, as "total"."""

    name: str
    weights: int
    nonzeros: int
    flops: int
    nonzero_flops: int

    @property
    def zeros(self) -> float:
        return 1 - self.nonzeros / self.weights if self.weights else 0.0


def summarize(model: nn.Module, run: Callable[[], Any]) -> list[TensorSummary]:
    """Every parameter, in the model's order. run: one pass in which each layer is called as a module."""
    flops = flops_by_weight(model, run)
    return [_summary(name, p.detach(), flops.get(name, 0)) for name, p in model.named_parameters()]


def summarize_detector(model: nn.Module, settings: Any) -> list[TensorSummary]:
    """As `summarize`, of a detector and one image of its usual size. settings: its own."""
    return summarize(model, pass_of(model, settings))


def pass_of(model: nn.Module, settings: Any) -> Callable[[], Any]:
    """One pass of one image of the detector's usual size, in which each layer is called as a module."""
    detector = detector_of(settings)
    width, height = detector.input_size_px(settings)
    images = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    # Where a detector's own pass joins layers, it has one that does not.
    run: Any = getattr(model, "every_layer", partial(detector.trace, model))
    return lambda: run(images)


@torch.no_grad()
def flops_by_weight(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """What each convolution and linear layer computes in one pass, by the name of its weight."""
    found: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _Weighted):
            weight = f"{name}.weight".lstrip(".")

            def count(module: nn.Module, inputs: Any, output: Tensor, weight: str = weight) -> None:
                found[weight] = found.get(weight, 0) + _flops(module, inputs[0], output)

            handles.append(module.register_forward_hook(count))
    was_training = model.training
    model.eval()
    try:
        run()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _flops(module: nn.Module, given: Tensor, output: Tensor) -> int:
    weight: Any = module.weight
    if isinstance(module, nn.Linear):
        return 2 * output.numel() * weight.shape[1]
    # Each element meets in x h x w weights of its group: an output of a convolution, an input of a transposed one.
    elements = given if isinstance(module, nn.ConvTranspose2d) else output
    return 2 * elements.numel() * weight[0].numel()


def _summary(name: str, weight: Tensor, flops: int) -> TensorSummary:
    nonzeros, count = int(torch.count_nonzero(weight)), weight.numel()
    nonzero_flops = round(flops * nonzeros / count) if count else 0
    zeros = 1 - nonzeros / count if count else 0.0
    filters, channels = (_zero_groups(weight, kind) for kind in ("Filters", "Channels"))
    return TensorSummary(name, tuple(weight.shape), count, nonzeros, zeros, filters, channels, flops, nonzero_flops)


def _zero_groups(weight: Tensor, kind: str) -> float | None:
    if misfit(weight.shape, kind) is not None:
        return None
    return float((groups(weight, kind) == 0).all(dim=1).float().mean())


def parts_of(tensors: Iterable[TensorSummary]) -> list[Part]:
    """Sums by the model's children, and "total" over all."""
    sums: dict[str, Part] = {}
    for each in tensors:
        for name in (each.name.partition(".")[0], "total"):
            before = sums.get(name, Part(name, 0, 0, 0, 0))
            more = (each.weights, each.nonzeros, each.flops, each.nonzero_flops)
            sums[name] = Part(name, *(a + b for a, b in zip(before[1:], more, strict=True)))
    total = sums.pop("total", Part("total", 0, 0, 0, 0))
    return [*sums.values(), total]


def write_summary(file: Path, tensors: list[TensorSummary]) -> None:
    """As JSON or CSV, by the file's name; whole or not at all. Keys and columns are the fields of `TensorSummary`, and
    the JSON has the parts too."""
    with written_whole(file) as temporary, temporary.open("w", newline="") as stream:
        if file.suffix == ".csv":
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(TensorSummary._fields)
            writer.writerows((*each[:1], "x".join(map(str, each.shape)), *each[2:]) for each in tensors)
        else:
            parts = [{**part._asdict(), "zeros": part.zeros} for part in parts_of(tensors)]
            content = {"tensors": [each._asdict() for each in tensors], "parts": parts}
            stream.write(json.dumps(content, indent=1) + "\n")
