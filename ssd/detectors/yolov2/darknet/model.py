"""A network of a cfg, with fresh weights."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssd.detectors.yolov2.darknet.cfg import sources_of
from ssd.detectors.yolov2.darknet.layers import Convolution, DarknetMaxPool, DarknetReorg, SpaceToDepth
from ssd.detectors.yolov2.darknet.sections import Convolutional, Layer, MaxPool, Network, Reorg, Reorg3d, Route

VERSION = (0, 2, 0)
"""Of the files that darknet writes since June 2017."""


class Raw(NamedTuple):
    """What a network says before any activation.

    values: B x num (5 + C) x H x W; entry e of anchor n is channel n (5 + C) + e, and the entries are x, y, w, h,
    objectness and the C classes. seen: () int64, the images that it was trained with, those of this pass included.
    """

    values: Tensor
    seen: Tensor


class Darknet(nn.Module):
    """Takes B x 3 x H x W float32 RGB in [0, 1], sides in multiples of the network's downsampling.

    seen: the images of all ranks in training so far, which darknet's files hold too. version: of the file that the
    weights came from.
    """

    seen: Tensor
    version: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        layers: list[nn.Module] = []
        channels = network.net.channels
        for layer, shape in zip(network.layers, network.shapes, strict=True):
            layers.append(_module(layer, channels))
            channels = shape[0]
        self.layers = nn.ModuleList(layers)
        self._sources = {
            index: sources_of(layer, index) for index, layer in enumerate(network.layers) if isinstance(layer, Route)
        }
        self._kept = {source for sources in self._sources.values() for source in sources}
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("version", torch.tensor(VERSION))

    def forward(self, images: Tensor) -> Raw:
        if self.training:  # darknet counts a batch before it computes the loss
            self.seen += len(images) * _world_size()
        return Raw(self._output(images, len(self.layers)), self.seen)

    def features(self, images: Tensor) -> Tensor:
        """What the last convolution reads."""
        return self._output(images, len(self.layers) - 2)

    def _output(self, images: Tensor, layers: int) -> Tensor:
        """Of so many layers."""
        outputs: dict[int, Tensor] = {}
        for index, module in zip(range(layers), self.layers, strict=False):
            sources = self._sources.get(index)
            if sources is None:
                images = module(images)
            else:
                images = torch.cat([outputs[source] for source in sources], dim=1)
            if index in self._kept:
                outputs[index] = images
        return images

    def convolutions(self) -> list[tuple[int, Convolution]]:
        """With their indices among the layers."""
        return [(index, module) for index, module in enumerate(self.layers) if isinstance(module, Convolution)]


def _module(layer: Layer, channels: int) -> nn.Module:
    if isinstance(layer, Convolutional):
        return Convolution(layer, channels)
    if isinstance(layer, MaxPool):
        return DarknetMaxPool(layer)
    if isinstance(layer, Reorg):
        return DarknetReorg()
    if isinstance(layer, Reorg3d):
        return SpaceToDepth()
    return nn.Identity()  # [route] is part of the network's own pass, [region] of the loss


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
