"""From a model's candidates to detections, by Detectron's rules: in pixels of the image's own file."""

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.detectron.rcnn.boxes import closed, scaled
from ssd.detectors.detectron.rcnn.model import Placement
from ssd.detectors.detectron.rcnn.rpn import suppressed_above
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.targets import placement_of
from ssd.detectors.retinanet.postprocess import without_empty
from ssd.detectors.torchvision.candidates import Candidates
from ssd.detectors.torchvision.postprocess import detections_of
from ssd.detectors.torchvision.rcnn.parts import Boxes, CandidatesOfMaps, keypoints_found

_ALL = 1.0
"""No IoU is above it."""


def thresholds_of(settings: DetectronSettings, thresholds: Thresholds) -> Thresholds:
    """A run's thresholds as torchvision's suppression takes them. Proposals alone are the detections that they are."""
    if settings.rpn_only:
        most = settings.rpn_after_nms[1]
        return Thresholds(thresholds.score_threshold, nms_iou=_ALL, max_per_class=most, max_per_image=most)
    return thresholds._replace(nms_iou=suppressed_above(thresholds.nms_iou, settings))


def detect(settings: DetectronSettings, thresholds: Thresholds) -> Detect:
    """D = max_per_image. Of equal scores at the last place Detectron keeps all, here the first are kept."""
    of_suppression = thresholds_of(settings, thresholds)

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        placement = placement_of(batch, settings)
        said: Candidates | CandidatesOfMaps = forward(batch.images, placement)
        candidates = said if isinstance(said, Candidates) else said.candidates
        detections = detections_of(candidates, placement.stated_limits_px, of_suppression)
        if settings.rules == "detectron2":  # Detectron's have a pixel always
            detections = without_empty(detections)
        if isinstance(said, Candidates):
            return detections
        return _with_parts(detections, said.maps, placement, forward, settings.edge_px)

    return detect_batch


def _with_parts(
    detections: Detections, maps: list[Tensor], placement: Placement, forward: Forward, edge_px: int
) -> Detections:
    """Looks at the boxes that were found once more, for their masks or keypoints."""
    limits = placement.stated_limits_px
    boxes_ltrb_px, real = detections.boxes_ltrb * limits, detections.labels > 0
    masks, heatmaps = forward(maps, Boxes(scaled(boxes_ltrb_px, placement.scales, edge_px), detections.labels))
    if masks is not None:
        masks = torch.where(real.unsqueeze(2).unsqueeze(3), masks.sigmoid(), 0)
    keypoints = None
    if heatmaps is not None:
        keypoints = keypoints_found(heatmaps, closed(boxes_ltrb_px, edge_px), real)
        keypoints[..., :2] /= limits[:, :, None, 2:]
    return detections._replace(masks=masks, keypoints=keypoints)
