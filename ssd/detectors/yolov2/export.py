"""YOLOv2 with its post-processing as one graph of fixed shapes, for any number of images."""

import torch
from torch import Tensor, nn

from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.graph_nms import detections_in_graph
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.postprocess import region_of, scored
from ssd.detectors.yolov2.settings import YOLOv2Settings, input_size_px


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x H x W RGB, each the whole image stretched to the network's input, to a dict
    of `batch.Detections` by the thresholds. D is max_per_image, or all candidates if those are fewer.

    Where scores are equal, another one may come first than in `detect`.
    """

    def __init__(self, model: Darknet, settings: YOLOv2Settings, thresholds: Thresholds) -> None:
        super().__init__()
        self.model, self.settings, self.thresholds = model, settings, thresholds

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = self.model(images.to(torch.float32) / 255).values
        boxes_ltrb, scores = scored(values, region_of(self.settings, values))
        per_class = min(self.thresholds.max_per_class, boxes_ltrb.shape[1])
        scores, box = scores.transpose(1, 2).topk(per_class, dim=2)
        of_class = boxes_ltrb.unsqueeze(1).expand(-1, scores.shape[1], -1, -1)
        boxes_ltrb = of_class.gather(2, box.unsqueeze(3).expand(-1, -1, -1, 4))
        return detections_in_graph(boxes_ltrb, scores, self.thresholds)


def exportable(model: Darknet, settings: YOLOv2Settings, thresholds: Thresholds) -> Exportable:
    """Of any number of images."""
    width, height = input_size_px(settings)
    return Exportable(
        DetectsInGraph(model, settings, thresholds).eval(),
        {"images": torch.zeros(2, 3, height, width, dtype=torch.uint8)},
        {"images": {0: torch.export.Dim("batch", min=1)}},
        f"images: uint8 B x 3 x {height} x {width} RGB; each the whole image, resized to {width} x {height} (width x "
        "height) whatever its aspect ratio, bilinear without antialiasing",
    )
