"""From a model's candidates to detections, by Detectron's rules: in pixels of the image's own file."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.detectron.config.naming import configuration_of
from ssd.detectors.detectron.config.testing import suppression_of
from ssd.detectors.detectron.rcnn.boxes import closed, scaled
from ssd.detectors.detectron.rcnn.model import Placement
from ssd.detectors.detectron.rcnn.rpn import suppressed_above
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.targets import placement_of
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.torchvision.postprocess import detections_of, without_empty
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps, boxes_of, keypoints_found
from ssd.detectors.tta.rules import Suppression
from ssd.detectors.tta.soft_suppression import refined
from ssd.detectors.tta.steps import Measures, TTASteps
from ssd.keypoints import mirrored

_ALL = 1.0
"""No IoU is above it."""


def thresholds_of(settings: DetectronSettings, thresholds: Thresholds) -> Thresholds:
    """A run's thresholds as torchvision's suppression takes them. Proposals alone are the detections that they are."""
    if settings.rpn_only:
        most = settings.rpn_after_nms[1]
        return Thresholds(thresholds.score_threshold, nms_iou=_ALL, max_per_class=most, max_per_image=most)
    return thresholds._replace(nms_iou=suppressed_above(thresholds.nms_iou, settings))


Suppress = Callable[[Candidates, Tensor, int], Detections]
"""(candidates in pixels, limits of these, how many passes they are of) -> detections without masks and keypoints."""


def suppress(settings: DetectronSettings, thresholds: Thresholds, suppression: Suppression) -> Suppress:
    """D = max_per_image. Of equal scores at the last place Detectron keeps all, here the first are kept.

    Where suppression changes scores, all candidates that the configuration lets in take part. A threshold above the
    configuration's is applied to the final scores.
    """
    plain = thresholds_of(settings, thresholds)

    def plainly(candidates: Candidates, limits: Tensor, passes: int) -> Detections:
        found = detections_of(candidates, limits, _for(plain, passes))
        # A box of Detectron's has a pixel always.
        return without_empty(found) if settings.rules == "detectron2" else found

    if settings.rpn_only or suppression.is_plain:
        return plainly
    asked = thresholds.score_threshold
    soft = thresholds._replace(score_threshold=_lets_in(settings, thresholds, suppression))
    least = asked if asked > soft.score_threshold else 0.0
    return lambda candidates, limits, passes: refined(
        candidates, limits, _for(soft, passes), suppression, hard_iou=plain.nms_iou, least_score=least
    )


def _for(thresholds: Thresholds, passes: int) -> Thresholds:
    return thresholds._replace(max_per_class=passes * thresholds.max_per_class)


def _lets_in(settings: DetectronSettings, thresholds: Thresholds, suppression: Suppression) -> float:
    """The score above which a box is a candidate."""
    if suppression.is_plain:
        return thresholds.score_threshold
    own: float = configuration_of(settings)["TEST.SCORE_THRESH"]
    return min(own, thresholds.score_threshold)


def detect(settings: DetectronSettings, thresholds: Thresholds) -> Detect:
    """In one pass, with the suppression of the configuration."""
    suppressed = suppress(settings, thresholds, suppression_of(settings))

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        placement = placement_of(batch, settings)
        said: Candidates | CandidatesOfMaps = forward(batch.images, placement)
        candidates = said if isinstance(said, Candidates) else said.candidates
        detections = suppressed(candidates, placement.stated_limits_px, 1)
        if isinstance(said, Candidates):
            return detections
        return _with_parts(detections, said.maps, placement, forward, settings)

    return detect_batch


def _with_parts(
    detections: Detections, maps: list[Tensor], placement: Placement, forward: Forward, settings: DetectronSettings
) -> Detections:
    """Looks at the boxes that were found once more, for their masks or keypoints."""
    limits = placement.stated_limits_px
    boxes_ltrb_px, real = detections.boxes_ltrb * limits, detections.labels > 0
    boxes = scaled(boxes_ltrb_px, placement.scales, settings.edge_px)
    masks, heatmaps = forward(maps, boxes_of(boxes, detections.labels, settings.skeleton))
    if masks is not None:
        masks = torch.where(real.unsqueeze(2).unsqueeze(3), masks.sigmoid(), 0)
    points = _points(settings)
    keypoints = None if heatmaps is None else points(heatmaps, boxes_ltrb_px, detections.labels, limits)
    return detections._replace(masks=masks, keypoints=keypoints)


def _points(settings: DetectronSettings) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def points(heatmaps: Tensor, boxes_ltrb_px: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
        found_in = boxes_of(closed(boxes_ltrb_px, settings.edge_px), labels, settings.skeleton)
        keypoints = keypoints_found(heatmaps, found_in.boxes_ltrb_px, found_in.have_points)
        keypoints[..., :2] /= limits[:, :, None, 2:]
        return keypoints

    return points


def tta_steps(settings: DetectronSettings, thresholds: Thresholds, suppression: Suppression) -> TTASteps:
    """As `detect` in each pass. Detectron mirrors an image before it resizes it, here it is the resized one that is
    mirrored, about the middle of what that shows of the file's."""
    skeleton = settings.skeleton

    def measures(batch: EvalBatch) -> Measures:
        placement = placement_of(batch, settings)
        resized_px = batch.placed_ltrb_px[:, 2].to(torch.float32).to(batch.images.device).view(-1, 1, 1)
        return Measures(placement.stated_limits_px, resized_px / placement.scales)

    def candidates(forward: Forward, batch: EvalBatch) -> Candidates:
        said: Candidates | CandidatesOfMaps = forward(batch.images, placement_of(batch, settings))
        return said.candidates if isinstance(said, CandidatesOfMaps) else said

    def parts(forward: Forward, batch: EvalBatch, boxes_ltrb_px: Tensor, labels: Tensor) -> PartMaps:
        boxes = scaled(boxes_ltrb_px, placement_of(batch, settings).scales, settings.edge_px)
        said: PartMaps = forward(batch.images, boxes_of(boxes, labels, skeleton))
        return said

    return TTASteps(
        measures,
        candidates,
        suppress(settings, thresholds, suppression),
        _lets_in(settings, thresholds, suppression),
        parts=parts if settings.mask_head or skeleton else None,
        finds_masks=bool(settings.mask_head),
        points=_points(settings) if skeleton else None,
        mirrored_points=tuple(mirrored(skeleton.names)) if skeleton else (),
        is_closed=settings.edge_px == 1,
    )
