"""SSD300 with its post-processing as one graph.

`postprocess.detect` works on as many candidates as there are, which no graph of fixed shapes can. `DetectsInGraph`
always takes as many of each class and does the same arithmetic on them; a test holds its detections against `detect`'s.
"""

import torch
from torch import Tensor, nn

from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.postprocess.graph_nms import detections_in_graph
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX, NUM_BOXES, default_boxes_cxcywh
from ssd.detectors.ssd300.model import SSD300
from ssd.images import normalise
from ssd.matching import decode


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x 300 x 300 RGB, each the whole image resized as `images.resize` does it, to
    a dict of `batch.Detections` by the thresholds. D is max_per_image, or all candidates if those are fewer.

    Where scores are equal, another one may come first than in `detect`.
    """

    defaults_cxcywh: Tensor

    def __init__(self, model: SSD300, thresholds: Thresholds) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("defaults_cxcywh", default_boxes_cxcywh())
        self.thresholds = thresholds
        self.per_class = min(thresholds.max_per_class, NUM_BOXES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        offsets, logits = self.model(normalise(images))
        probabilities = logits.float().softmax(dim=2)[..., 1:].transpose(1, 2)
        scores, box = probabilities.topk(self.per_class, dim=2)
        of_image = decode(offsets.float(), self.defaults_cxcywh).unsqueeze(1).expand(-1, scores.shape[1], -1, -1)
        boxes_ltrb = of_image.gather(2, box.unsqueeze(3).expand(-1, -1, -1, 4))
        return detections_in_graph(boxes_ltrb, scores, self.thresholds)


def exportable(model: SSD300, settings: object, thresholds: Thresholds) -> Exportable:
    """Of any number of images."""
    size = f"{IMAGE_SIZE_PX} x {IMAGE_SIZE_PX}"
    return Exportable(
        DetectsInGraph(model, thresholds).eval(),
        {"images": torch.zeros(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.uint8)},
        {"images": {0: torch.export.Dim("batch", min=1)}},
        f"images: uint8 B x 3 x {size} RGB; each the whole image, resized to {size} whatever its aspect ratio, "
        "bilinear with antialiasing",
    )
