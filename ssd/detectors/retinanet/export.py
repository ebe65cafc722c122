"""A RetinaNet with its post-processing as one graph."""

from torch import Tensor, nn

from ssd.batch import Detections, of_boxes
from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.torchvision.export import DetectsInGraph, exportable_of
from ssd.detectors.torchvision.postprocess import without_empty
from ssd.views import ShortSideView


class RetinaNetInGraph(DetectsInGraph):
    def forward(self, images: Tensor, sizes_px: Tensor) -> dict[str, Tensor]:
        return of_boxes(without_empty(Detections(**super().forward(images, sizes_px))))


def exportable(model: nn.Module, view: ShortSideView, thresholds: Thresholds) -> Exportable:
    num_classes: int = model.head.classification_head.num_classes + 1  # type: ignore[union-attr, operator, assignment]
    return exportable_of(RetinaNetInGraph(model, num_classes, thresholds).eval(), view)
