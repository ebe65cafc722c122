"""From a model's candidates to detections: threshold, suppression in each class, the best of an image."""

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.postprocess import suppression
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.torchvision.names import parts_of
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps, boxes_of, keypoints_found
from ssd.detectors.torchvision.settings import Settings
from ssd.detectors.torchvision.targets import limits_px
from ssd.detectors.tta.steps import Measures, TTASteps
from ssd.keypoints import Skeleton, mirrored

# Where choosing costs no wait, candidates that are out are dropped at once; elsewhere they are carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)
# More than there are labels.
_GROUPS_AN_IMAGE = 2**16


def detect(settings: Settings, thresholds: Thresholds) -> Detect:
    """As torchvision's models, D = max_per_image: boxes are cut to the image before they suppress each other."""

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        limits = limits_px(batch.placed_ltrb_px[:, 2:], batch.images.device)
        said: Candidates | CandidatesOfMaps = forward(batch.images, limits)
        if isinstance(said, Candidates):
            return detections_of(said, limits, thresholds)
        found = detections_of(said.candidates, limits, thresholds)
        return _with_parts(found, said.maps, limits, forward, settings.skeleton)

    return detect_batch


def _with_parts(
    detections: Detections, maps: list[Tensor], limits: Tensor, forward: Forward, skeleton: Skeleton | None
) -> Detections:
    """Looks at the boxes that were found once more, for their masks or keypoints."""
    boxes_ltrb_px, real = detections.boxes_ltrb * limits, detections.labels > 0
    looked_at = boxes_of(boxes_ltrb_px, detections.labels, skeleton)
    masks, heatmaps = forward(maps, looked_at)
    if masks is not None:
        masks = torch.where(real.unsqueeze(2).unsqueeze(3), masks.sigmoid(), 0)
    keypoints = None
    if heatmaps is not None:
        keypoints = keypoints_found(heatmaps, boxes_ltrb_px, looked_at.have_points)
        keypoints[..., :2] /= limits[:, :, None, 2:]
    return detections._replace(masks=masks, keypoints=keypoints)


def tta_steps(settings: Settings, thresholds: Thresholds) -> TTASteps:
    """Boxes are cut to the image in each pass, and suppress each other when all are joined."""
    skeleton = settings.skeleton

    def parts(forward: Forward, batch: EvalBatch, boxes_ltrb_px: Tensor, labels: Tensor) -> PartMaps:
        said: PartMaps = forward(batch.images, boxes_of(boxes_ltrb_px, labels, skeleton))
        return said

    def points(heatmaps: Tensor, boxes_ltrb_px: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
        found = keypoints_found(heatmaps, boxes_ltrb_px, boxes_of(boxes_ltrb_px, labels, skeleton).have_points)
        found[..., :2] /= limits[:, :, None, 2:]
        return found

    finds_masks = parts_of(settings.builder).family == "maskrcnn"
    plain = tta_steps_for_boxes(thresholds)
    return plain._replace(
        parts=parts if finds_masks or skeleton else None,
        finds_masks=finds_masks,
        points=points if skeleton else None,
        mirrored_points=tuple(mirrored(skeleton.names)) if skeleton else (),
    )


def tta_steps_for_boxes(thresholds: Thresholds) -> TTASteps:
    """Of a detector whose model says `Candidates` of images and the limits of their boxes."""

    def measures(batch: EvalBatch) -> Measures:
        limits = limits_px(batch.placed_ltrb_px[:, 2:], batch.images.device)
        return Measures(limits, limits[..., 2:3])

    def candidates(forward: Forward, batch: EvalBatch) -> Candidates:
        said: Candidates | CandidatesOfMaps = forward(batch.images, measures(batch).limits_px)
        return said.candidates if isinstance(said, CandidatesOfMaps) else said

    def detections(joined: Candidates, limits: Tensor, passes: int) -> Detections:
        return detections_of(joined, limits, thresholds._replace(max_per_class=passes * thresholds.max_per_class))

    return TTASteps(measures, candidates, detections, thresholds.score_threshold)


def detections_of(candidates: Candidates, limits: Tensor, thresholds: Thresholds) -> Detections:
    """limits: as `limits_px` makes them of the images' sizes. On a GPU the host waits twice."""
    # No metric may see a box of NaN.
    found = (candidates.scores > thresholds.score_threshold) & ~candidates.boxes_ltrb_px.isnan().any(dim=2)
    found &= candidates.labels > 0  # dense heads have a place for the background, which nothing ever trains
    image, place = found.nonzero(as_tuple=True)
    scores = candidates.scores[image, place]
    group, order, rank = suppression.rank_in_groups(image * _GROUPS_AN_IMAGE + candidates.labels[image, place], scores)
    if scores.device.type in _DROPS_AT_ONCE_ON:
        kept = (rank < thresholds.max_per_class).nonzero().squeeze(1)
        group, order = group[kept], order[kept]
    else:
        group = group.masked_fill(rank >= thresholds.max_per_class, -1)
    image, place = image[order], place[order]
    sorted_candidates = suppression.Candidates(
        boxes_ltrb=candidates.boxes_ltrb_px[image, place] / limits[image, 0],
        scores=scores[order],
        group=group,
        batch_size=len(found),
        num_classes=_GROUPS_AN_IMAGE,
        max_per_class=thresholds.max_per_class,
    )
    return suppression.suppress(sorted_candidates, nms_iou=thresholds.nms_iou, max_per_image=thresholds.max_per_image)


def without_empty(detections: Detections) -> Detections:
    """As detectron2: but for boxes that lay beside the image, of which nothing is left. They take the places of others
    first."""
    sides = detections.boxes_ltrb[..., 2:] - detections.boxes_ltrb[..., :2]
    scores = torch.where((sides > 0).all(dim=2), detections.scores, 0)
    scores, order = scores.topk(scores.shape[1], dim=1)  # a sort that ONNX knows, too
    real = scores > 0
    boxes_ltrb = detections.boxes_ltrb.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
    return Detections(
        boxes_ltrb=torch.where(real.unsqueeze(2), boxes_ltrb, 0),
        scores=scores,
        labels=torch.where(real, detections.labels.gather(1, order), 0),
        counts=real.sum(dim=1),
    )
