"""A detector with its post-processing as one graph of fixed shapes, for any number of images."""

import torch
from torch import Tensor, nn

from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.postprocess.graph_nms import detections_in_graph
from ssd.detectors.torchvision.square.anchors import SQUARES, default_boxes_ltrb
from ssd.detectors.torchvision.square.model import SSD
from ssd.detectors.torchvision.square.postprocess import best_of_classes
from ssd.detectors.torchvision.square.settings import SquareSettings
from ssd.images import normalise


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x S x S RGB, each the whole image as the view resizes it, to a dict of
    `batch.Detections`. Where scores are equal, another one may come first than in `detect`."""

    defaults_ltrb: Tensor

    def __init__(self, model: SSD, builder: str, thresholds: Thresholds) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("defaults_ltrb", default_boxes_ltrb(builder))
        self.mean, self.std = SQUARES[builder].mean, SQUARES[builder].std
        self.thresholds = thresholds

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        predictions = self.model(normalise(images, self.mean, self.std))
        boxes_ltrb, scores = best_of_classes(predictions, self.defaults_ltrb, self.thresholds.max_per_class)
        return detections_in_graph(boxes_ltrb, scores, self.thresholds)


def exportable(model: SSD, settings: SquareSettings, thresholds: Thresholds) -> Exportable:
    """Of any number of images."""
    side = SQUARES[settings.builder].size_px
    return Exportable(
        DetectsInGraph(model, settings.builder, thresholds).eval(),
        {"images": torch.zeros(2, 3, side, side, dtype=torch.uint8)},
        {"images": {0: torch.export.Dim("batch", min=1)}},
        f"images: uint8 B x 3 x {side} x {side} RGB; each the whole image, resized to {side} x {side} whatever its "
        "aspect ratio, bilinear without antialiasing",
    )
