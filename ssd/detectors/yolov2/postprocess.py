"""From a network's output to detections: objectness x class above a threshold, suppression in each class, the best."""

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.boxes import cxcywh_to_ltrb
from ssd.config import Thresholds
from ssd.constants import constant
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.postprocess import suppression
from ssd.detectors.yolov2.boxes import cells_of
from ssd.detectors.yolov2.darknet.model import Raw
from ssd.detectors.yolov2.darknet.sections import Region
from ssd.detectors.yolov2.settings import YOLOv2Settings, network_of

# Where choosing costs no wait, candidates that are out are dropped at once; elsewhere they are carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)


def detect(settings: YOLOv2Settings, thresholds: Thresholds) -> Detect:
    """As darknet's `valid`, D = max_per_image: boxes are compared uncut, and fall to a better one of their class."""

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        raw: Raw = forward(batch.images)
        return detections_of(raw.values, region_of(settings, raw.values), batch, thresholds)

    return detect_batch


def region_of(settings: YOLOv2Settings, values: Tensor) -> Region:
    """The region of a network with so many channels, which tell the classes. values: as `Raw.values`."""
    region = network_of(settings).region
    return region._replace(classes=values.shape[1] // region.num - 5)


def scored(values: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Boxes B x P x 4 ltrb in [0, 1] of the input, uncut, and scores B x P x C."""
    cells = cells_of(values, region)
    return cxcywh_to_ltrb(cells.boxes_cxcywh), cells.objectness.sigmoid().unsqueeze(2) * cells.classes.softmax(dim=2)


def detections_of(values: Tensor, region: Region, batch: EvalBatch, thresholds: Thresholds) -> Detections:
    """On a GPU the host waits twice."""
    boxes_ltrb, scores = scored(values, region)
    boxes_ltrb = _of_image(boxes_ltrb, batch)
    # No metric may see a box of NaN.
    found = (scores > thresholds.score_threshold) & ~boxes_ltrb.isnan().any(dim=2, keepdim=True)
    image, place, label = found.nonzero(as_tuple=True)
    scores = scores[image, place, label]
    num_classes = region.classes + 1
    group, order, rank = suppression.rank_in_groups(image * num_classes + label + 1, scores)
    if scores.device.type in _DROPS_AT_ONCE_ON:
        kept = (rank < thresholds.max_per_class).nonzero().squeeze(1)
        group, order = group[kept], order[kept]
    else:
        group = group.masked_fill(rank >= thresholds.max_per_class, -1)
    candidates = suppression.Candidates(
        boxes_ltrb=boxes_ltrb[image[order], place[order]],
        scores=scores[order],
        group=group,
        batch_size=len(values),
        num_classes=num_classes,
        max_per_class=thresholds.max_per_class,
    )
    return suppression.suppress(candidates, nms_iou=thresholds.nms_iou, max_per_image=thresholds.max_per_image)


def _of_image(boxes_ltrb: Tensor, batch: EvalBatch) -> Tensor:
    """Boxes in [0, 1] of the input as boxes in [0, 1] of the images, which may lie in a part of it."""
    height, width = batch.images.shape[2:]
    placed = batch.placed_ltrb_px  # on the host
    if bool((placed == torch.tensor([0, 0, width, height])).all()):
        return boxes_ltrb
    start, extent = placed[:, None, :2].repeat(1, 1, 2), (placed[:, None, 2:] - placed[:, None, :2]).repeat(1, 1, 2)
    where = torch.stack([start, extent]).to(torch.float32)
    if boxes_ltrb.device.type == "cuda":
        where = where.pin_memory().to(boxes_ltrb.device, non_blocking=True)
    return (boxes_ltrb * constant((width, height, width, height), boxes_ltrb.device) - where[0]) / where[1]
