"""What YOLOv2 shows to the methods of distillation: the map that its last convolution reads."""

from typing import Any

from torch import Tensor, nn

from ssd.detectors.distillation import DistillationParts, Seen
from ssd.detectors.yolov2.darknet.sections import Route
from ssd.detectors.yolov2.settings import YOLOv2Settings, network_of


def distillation_parts(settings: YOLOv2Settings) -> DistillationParts | None:
    """None for a network whose last convolution reads no single layer."""
    network = network_of(settings)
    place = len(network.layers) - 3  # before the last convolution and [region]
    if isinstance(network.layers[place], Route):
        return None

    def watched(model: Any) -> dict[str, nn.Module]:
        return {"last": model.layers[place]}

    def forward(model: Any, images: Tensor, with_heads: bool) -> Seen:
        return {"last": [model.features(images)]}

    return DistillationParts(
        strides_px={"last": float(network.downsampling)},
        watched=watched,
        maps=lambda seen: {"last": seen["last"][0]},
        forward=forward,
    )
