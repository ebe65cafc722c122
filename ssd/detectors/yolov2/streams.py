"""Which layers of a darknet network share channels: what has to change together when a filter goes."""

import itertools

import torch
from torch import Tensor, nn

from ssd.detectors.channels import Plan, Stream
from ssd.detectors.yolov2.darknet.cfg import checked, sources_of
from ssd.detectors.yolov2.darknet.layers import Convolution
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Convolutional, Network, Reorg, Reorg3d, Route

# [reorg] of darknet takes half of a channel's rows from the next one, so that channels go through it in pairs; and it
# counts its channels by fours.
_PAIR, _FOURS = 2, 4


def streams_of(model: Darknet) -> list[Stream]:
    """One for each convolution but the last, whose filters the anchors and classes fix; none of those that are read in
    groups, or of which half a pair would go through [reorg]."""
    read = _Reading(model)
    found = []
    for index, convolution in model.convolutions()[:-1]:
        if index in read.fixed:
            continue
        name = f"layers.{index}"
        own = {reader: places for reader, places in read.places.items() if index in places}
        is_paired = index in read.paired
        found.append(
            Stream(
                [[(f"{name}.conv", f"{name}.norm" if convolution.norm is not None else "")]],
                list(own),
                activation=convolution.activation,
                places={reader: torch.stack(places[index], dim=1) for reader, places in own.items()},
                unit=_PAIR if is_paired else 1,
                multiple=_FOURS if is_paired else 1,
            )
        )
    return found


class _Reading:
    """Which channels of which convolution are the inputs of each.

    places: by reader, by the layer that writes, for each time that its channels are read the inputs (C int64) that they
    are. paired: layers whose channels go through [reorg]. fixed: those whose filters cannot go.
    """

    def __init__(self, model: Darknet) -> None:
        self.places: dict[str, dict[int, list[Tensor]]] = {}
        self.paired: set[int] = set()
        self.fixed: set[int] = set()
        # Of each layer's output, the (layer that writes, number of channels) that follow each other.
        outputs: list[list[tuple[int, int]]] = []
        parts: list[tuple[int, int]] = []  # of the image, which no layer writes
        for index, (layer, module) in enumerate(zip(model.network.layers, model.layers, strict=True)):
            if isinstance(layer, Route):
                parts = list(itertools.chain(*(outputs[source] for source in sources_of(layer, index))))
            elif isinstance(layer, Reorg | Reorg3d):
                if isinstance(layer, Reorg):
                    self.paired |= {writer for writer, _ in parts}
                    if any(count % _FOURS for _, count in parts):
                        self.fixed |= {writer for writer, _ in parts}
                parts = 4 * parts
            elif isinstance(module, Convolution):
                self._read(f"layers.{index}.conv", module.conv, parts)
                parts = [(index, module.conv.out_channels)]
                if module.conv.groups > 1:
                    self.fixed.add(index)
            outputs.append(parts)

    def _read(self, name: str, conv: nn.Conv2d, parts: list[tuple[int, int]]) -> None:
        places: dict[int, list[Tensor]] = {}
        start = 0
        for writer, count in parts:
            places.setdefault(writer, []).append(torch.arange(start, start + count))
            start += count
        self.places[name] = places
        if conv.groups > 1:
            self.fixed |= places.keys()


def without_filters(network: Network, plan: Plan) -> Network:
    """The network with as many filters as a thinned model's plan leaves, as a cfg can say it."""
    layers = []
    for index, layer in enumerate(network.layers):
        filters = plan.get(f"layers.{index}.conv", {}).get("out")
        if isinstance(layer, Convolutional) and filters is not None:
            layer = layer._replace(filters=filters, numload=min(layer.numload, filters))
        layers.append(layer)
    return checked(network.name, network.net, tuple(layers))
