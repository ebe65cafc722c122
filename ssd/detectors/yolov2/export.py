"""YOLOv2 with its post-processing as one graph of fixed shapes, for any number of images."""

import torch
from torch import Tensor, nn

from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.postprocess.graph_nms import detections_in_graph
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.postprocess import region_of, scored
from ssd.detectors.yolov2.settings import YOLOv2Settings, input_size_px, is_letterboxed
from ssd.views import GRAY


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x H x W RGB, each the whole image stretched to the network's input, to a dict
    of `batch.Detections` by the thresholds. D is max_per_image, or all candidates if those are fewer.

    placed_ltrb_px: where in its input each image lies, if not in all of it: B x 4 int64.

    Where scores are equal, another one may come first than in `detect`.
    """

    def __init__(self, model: Darknet, settings: YOLOv2Settings, thresholds: Thresholds) -> None:
        super().__init__()
        self.model, self.settings, self.thresholds = model, settings, thresholds

    def forward(self, images: Tensor, placed_ltrb_px: Tensor | None = None) -> dict[str, Tensor]:
        values = self.model(images.to(torch.float32) / 255).values
        boxes_ltrb, scores = scored(values, region_of(self.settings, values))
        if placed_ltrb_px is not None:
            width, height = input_size_px(self.settings)
            place = placed_ltrb_px.to(torch.float32).unsqueeze(1)
            start, extent = place[..., :2].repeat(1, 1, 2), (place[..., 2:] - place[..., :2]).repeat(1, 1, 2)
            boxes_ltrb = (boxes_ltrb * torch.tensor([width, height, width, height]) - start) / extent
        per_class = min(self.thresholds.max_per_class, boxes_ltrb.shape[1])
        scores, box = scores.transpose(1, 2).topk(per_class, dim=2)
        of_class = boxes_ltrb.unsqueeze(1).expand(-1, scores.shape[1], -1, -1)
        boxes_ltrb = of_class.gather(2, box.unsqueeze(3).expand(-1, -1, -1, 4))
        return detections_in_graph(boxes_ltrb, scores, self.thresholds)


def exportable(model: Darknet, settings: YOLOv2Settings, thresholds: Thresholds) -> Exportable:
    """Of any number of images."""
    width, height = input_size_px(settings)
    size = f"{width} x {height} (width x height)"
    if is_letterboxed(settings):
        return Exportable(
            DetectsInGraph(model, settings, thresholds).eval(),
            {
                "images": torch.zeros(2, 3, height, width, dtype=torch.uint8),
                "placed_ltrb_px": torch.tensor([[0, 0, width, height]] * 2),
            },
            {name: {0: torch.export.Dim("batch", min=1)} for name in ("images", "placed_ltrb_px")},
            f"images: uint8 B x 3 x {height} x {width} RGB; each the whole image, as large as {size} lets it be "
            f"with its aspect ratio, bilinear without antialiasing, in the middle of gray {GRAY}; placed_ltrb_px: "
            "int64 B x 4, the left, top, right and bottom of where it lies there",
        )
    return Exportable(
        DetectsInGraph(model, settings, thresholds).eval(),
        {"images": torch.zeros(2, 3, height, width, dtype=torch.uint8)},
        {"images": {0: torch.export.Dim("batch", min=1)}},
        f"images: uint8 B x 3 x {height} x {width} RGB; each the whole image, resized to {size} whatever its aspect "
        "ratio, bilinear without antialiasing",
    )
