"""Settings of a small detector of each kind, for what holds for all of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from detectron_models import small

from ssd.detectors.names import settings_named
from ssd.detectors.ssd300.settings import SSD300Settings


def _on_small_images(name: str) -> Any:
    return replace(settings_named(name), short_sides_px=(64,), long_side_px=96)


SMALL_DETECTORS: dict[str, Callable[[], Any]] = {
    "SSD300": lambda: SSD300Settings("resnet18"),
    "RetinaNet": lambda: _on_small_images("retinanet_resnet18_fpn"),
    "FCOS": lambda: _on_small_images("fcos_resnet18_fpn"),
    "Faster R-CNN": lambda: _on_small_images("fasterrcnn_resnet18_fpn"),
    "Mask R-CNN": lambda: _on_small_images("maskrcnn_resnet18_fpn"),
    "SSDLite": lambda: settings_named("ssdlite320_mobilenet_v3_large"),
    "SSD300 on a VGG16": lambda: settings_named("ssd300_vgg16"),
    "YOLOv2": lambda: settings_named("yolov2-tiny"),
    "detectron2's RetinaNet": lambda: _on_small_images("retinanet_r18_fpn"),
    "Detectron's Mask R-CNN": lambda: replace(small("mask"), norm="affine"),
    "Detectron's C4": lambda: replace(small("C4"), norm="affine"),
}
