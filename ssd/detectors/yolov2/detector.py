"""YOLOv2 to the rest of the house: one record for every network that a cfg file describes."""

from dataclasses import replace

import torch
from torch import Tensor

from ssd.batch import RaggedBatch
from ssd.detectors.contract import Detector, Forward, LossesOf
from ssd.detectors.yolov2.anchors import kmeans_anchors
from ssd.detectors.yolov2.darknet.cfg import parse
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.distillation import distillation_parts
from ssd.detectors.yolov2.export import exportable
from ssd.detectors.yolov2.files import FOREIGN_FILES, foreign, load_backbone
from ssd.detectors.yolov2.loss import region_losses
from ssd.detectors.yolov2.postprocess import detect, region_of
from ssd.detectors.yolov2.settings import (
    AUTO,
    YOLOv2Settings,
    input_size_px,
    is_letterboxed,
    network_of,
    train_sizes_px,
)
from ssd.detectors.yolov2.streams import streams_of
from ssd.detectors.yolov2.synthetic import synthetic_batch
from ssd.views import StretchView, fitted_ltrb_px

# Of a darknet run with random=1, in its largest size.
_FINAL_STEPS = 200


def _view(settings: YOLOv2Settings) -> StretchView:
    network = network_of(settings)
    return StretchView(
        size_px=input_size_px(settings),
        train_sizes_px=train_sizes_px(settings),
        jitter=network.region.jitter,
        hue=network.net.hue,
        saturation=network.net.saturation,
        exposure=network.net.exposure,
        fits=is_letterboxed(settings),
        final_steps=_FINAL_STEPS if network.region.random else 0,
    )


def _losses_of(settings: YOLOv2Settings, compiles: bool) -> LossesOf:
    def losses(forward: Forward, batch: RaggedBatch) -> dict[str, Tensor]:
        raw = forward(batch.images)
        return region_losses(raw, batch, region_of(settings, raw.values), settings.region_loss)

    return losses


def _fitted(settings: YOLOv2Settings, boxes_ltrb: Tensor, images_px: Tensor) -> tuple[YOLOv2Settings, str]:
    if settings.anchors != AUTO:
        return settings, ""
    network = network_of(settings)
    _, rows, columns = network.shapes[-1]
    if is_letterboxed(settings):
        boxes_ltrb = boxes_ltrb * _shares(input_size_px(settings), images_px).repeat(1, 2)
    anchors, iou = kmeans_anchors(boxes_ltrb, network.region.num, (columns, rows))
    text = f"anchors of {len(boxes_ltrb)} boxes, in cells of {columns} x {rows}: {' '.join(map(str, anchors))}"
    return replace(settings, anchors=anchors), f"{text}; a box's IoU with the best is {iou:.3f} on average"


def _shares(size_px: tuple[int, int], images_px: Tensor) -> Tensor:
    """Of the input's (width, height), how much images that are fitted in fill: N x 2."""
    shapes, which = images_px.unique(dim=0, return_inverse=True)
    places = [fitted_ltrb_px(size_px, (width, height)) for width, height in shapes.tolist()]
    sides = torch.tensor([(right - left, bottom - top) for left, top, right, bottom in places]).reshape(-1, 2)
    return (sides / torch.tensor(size_px))[which]


def _fresh_heads(settings: YOLOv2Settings) -> tuple[str, ...]:
    return (f"layers.{len(parse(settings.cfg, settings.network).layers) - 2}.",)


YOLOV2 = Detector(
    name="yolov2",
    settings=YOLOv2Settings,
    title=lambda settings: f"YOLOv2 {settings.network}",
    build=lambda settings, num_classes: Darknet(network_of(settings, num_classes - 1)),
    num_classes=lambda settings: network_of(settings).region.classes + 1,
    load_backbone=load_backbone,
    freeze_backbone=None,
    fresh_heads=_fresh_heads,
    view=_view,
    losses_of=_losses_of,
    detect=detect,
    input_size_px=input_size_px,
    synthetic=synthetic_batch,
    one_shape=lambda settings: False,  # batches have other numbers of objects, and often of pixels
    trace=lambda model, images: [model(images).values],
    foreign=foreign,
    exportable=exportable,
    streams=streams_of,
    coverage=None,
    fitted=_fitted,
    foreign_files=FOREIGN_FILES,
    distillation_parts=distillation_parts,
)
