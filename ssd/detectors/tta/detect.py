"""Detections out of several passes: boxes of all are joined before they suppress each other, and the boxes that are
left are looked at once more in each pass for masks and keypoints. As Detectron's im_detect_all does it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.boxes import area
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.tta.passes import TTA, Pass
from ssd.detectors.tta.steps import Measures, TTASteps

DetectSeveral = Callable[[Any, Sequence[EvalBatch]], Detections]
"""(the model as `contract.Detect` takes it, the batches of a `ShortSideView`'s looks at the same images: its own, then
the further ones in their order) -> what it finds."""


def detect_several(steps: TTASteps, tta: TTA) -> DetectSeveral:
    def detect(forward: Any, batches: Sequence[EvalBatch]) -> Detections:
        by_look = dict(zip((None, *tta.looks), batches, strict=True))
        first = steps.measures(batches[0])
        found: list[Candidates] = []
        for one in tta.boxes:
            batch = by_look[one.look]
            candidates = steps.candidates(forward, _seen(batch, one))
            boxes_ltrb_px = to_first(candidates.boxes_ltrb_px, one, steps.measures(batch), first, steps.is_closed)
            found.append(_above(candidates._replace(boxes_ltrb_px=boxes_ltrb_px), steps.score_threshold))
        joined = Candidates(*(torch.cat(part, dim=1) for part in zip(*found, strict=True)))
        detections = steps.detections(joined, first.limits_px, len(tta.boxes))
        return _with_parts(detections, first, forward, by_look, steps, tta)

    return detect


def _with_parts(
    detections: Detections, first: Measures, forward: Any, by_look: dict[Any, EvalBatch], steps: TTASteps, tta: TTA
) -> Detections:
    """The detections with their masks and keypoints, each joined from all of its passes. The network's body is run
    again in each pass: to keep the maps of all passes would take gigabytes."""
    boxes_ltrb_px, real = detections.boxes_ltrb * first.limits_px, detections.labels > 0
    is_any = bool(real.any())

    def said_in(passes: Sequence[Pass]) -> Iterator[tuple[Pass, PartMaps]]:
        assert steps.parts is not None
        for one in passes if is_any else passes[:1]:
            batch = by_look[one.look]
            boxes = from_first(boxes_ltrb_px, one, steps.measures(batch), first, steps.is_closed)
            yield one, steps.parts(forward, _seen(batch, one), boxes, detections.labels)

    masks: Tensor | None = None
    keypoints: Tensor | None = None
    if steps.finds_masks:
        of_passes = (_upright(said.masks, one.flip) for one, said in said_in(tta.masks))
        masks = torch.where(real.unsqueeze(2).unsqueeze(3), joined_masks(of_passes, tta.mask_rule), 0)
    if steps.points is not None:
        areas_px = area(boxes_ltrb_px)
        heatmaps = joined_heatmaps(
            (
                (_upright(said.keypoints, one.flip, steps.mirrored_points), is_taken(one, areas_px, tta))
                for one, said in said_in(tta.keypoints)
            ),
            tta.keypoint_rule,
        )
        keypoints = steps.points(heatmaps, boxes_ltrb_px, detections.labels, first.limits_px)
    return detections._replace(masks=masks, keypoints=keypoints)


def _seen(batch: EvalBatch, one: Pass) -> EvalBatch:
    return mirrored(batch) if one.flip else batch


def mirrored(batch: EvalBatch) -> EvalBatch:
    """Each image mirrored where it lies."""
    images = torch.zeros_like(batch.images)
    for place, image, (left, top, right, bottom) in zip(
        images, batch.images, batch.placed_ltrb_px.tolist(), strict=True
    ):
        place[:, top:bottom, left:right] = image[:, top:bottom, left:right].flip(2)
    return batch._replace(images=images)


def _about_the_middle(boxes_ltrb_px: Tensor, mirror_px: Tensor) -> Tensor:
    left, top, right, bottom = boxes_ltrb_px.split(1, dim=2)
    return torch.cat([mirror_px - right, top, mirror_px - left, bottom], dim=2)


def to_first(boxes_ltrb_px: Tensor, one: Pass, own: Measures, first: Measures, is_closed: bool) -> Tensor:
    """Boxes B x N x 4 that were found in a pass, as boxes of the first one. own: of its batch before it was
    mirrored."""
    if one.flip:
        boxes_ltrb_px = _about_the_middle(boxes_ltrb_px, own.mirror_px)
    return _stretched(boxes_ltrb_px, one, 1, first.limits_px / own.limits_px, is_closed)


def from_first(boxes_ltrb_px: Tensor, one: Pass, own: Measures, first: Measures, is_closed: bool) -> Tensor:
    """The way back of `to_first`."""
    boxes_ltrb_px = _stretched(boxes_ltrb_px, one, -1, own.limits_px / first.limits_px, is_closed)
    return _about_the_middle(boxes_ltrb_px, own.mirror_px) if one.flip else boxes_ltrb_px


def _stretched(boxes_ltrb_px: Tensor, one: Pass, power: int, factor: Tensor, is_closed: bool) -> Tensor:
    """To the pixels of another look, by the factor of their limits. Closed ranges are in pixels of the image's file,
    which only a stretched width changes: by what it was stretched by before it was rounded, as in Detectron."""
    if one.look is None:
        return boxes_ltrb_px
    if not is_closed:
        return boxes_ltrb_px * factor
    if one.look.width_factor == 1:
        return boxes_ltrb_px
    left, top, right, bottom = boxes_ltrb_px.split(1, dim=2)
    across = one.look.width_factor**-power
    return torch.cat([left * across, top, (right - 1) * across + 1, bottom], dim=2)


def _above(candidates: Candidates, score_threshold: float) -> Candidates:
    """Those of a score above it, best first, and what fills up images that have less of them."""
    is_one = (candidates.labels > 0) & ~candidates.boxes_ltrb_px.isnan().any(dim=2)
    scores = torch.where(is_one, candidates.scores, 0)
    most = max(1, int((scores > score_threshold).sum(dim=1).max()))
    scores, place = scores.sort(dim=1, descending=True, stable=True)
    place = place[:, :most]
    boxes_ltrb_px = candidates.boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
    return Candidates(boxes_ltrb_px, scores[:, :most], candidates.labels.gather(1, place))


def _upright(maps: Tensor | None, flip: bool, mirrored_points: Sequence[int] = ()) -> Tensor:
    """Maps of a mirrored pass as those of the image: ... x S x S, of keypoints B x D x P x S x S."""
    assert maps is not None
    if not flip:
        return maps
    return (maps[:, :, list(mirrored_points)] if mirrored_points else maps).flip(-1)


def joined_masks(logits: Iterable[Tensor], rule: str) -> Tensor:
    """Probabilities out of the passes' logits, all of one shape. rule: one of rules.MASK_RULES: the mean of
    probabilities, their maximum, or the mean of their logits."""
    total: Tensor | None = None
    count = 0
    for each in logits:
        own = each.sigmoid()
        if rule == "LOGIT_AVG":  # Detectron's, so that what is certain in float32 is infinite
            own = -((1 - own) / own.clamp(min=1e-20)).log()
        if total is None:
            total = own
        else:
            total = torch.maximum(total, own) if rule == "SOFT_MAX" else total + own
        count += 1
    assert total is not None
    if rule == "SOFT_MAX":
        return total
    mean = total / count
    return mean.sigmoid() if rule == "LOGIT_AVG" else mean


def joined_heatmaps(maps: Iterable[tuple[Tensor, Tensor]], rule: str) -> Tensor:
    """The mean or the maximum, by rule, one of rules.KEYPOINT_RULES, of the passes' maps B x D x P x S x S over
    those that are taken, B x D bool. The first is taken always."""
    total: Tensor | None = None
    count: Tensor | int = 0
    for logits, taken in maps:
        if total is None:
            total, count = logits, taken.to(logits.dtype)
            continue
        where = taken.view(*taken.shape, 1, 1, 1)
        total = torch.where(where, torch.maximum(total, logits) if rule == "HM_MAX" else total + logits, total)
        count = count + taken.to(logits.dtype)
    assert total is not None and isinstance(count, Tensor)
    return total if rule == "HM_MAX" else total / count.view(*count.shape, 1, 1, 1)


def is_taken(one: Pass, areas_px: Tensor, tta: TTA) -> Tensor:
    """Whether a box of that many pixels takes the points of a pass: B x D bool. Enlarged, a large object is larger than
    those that the network has learned; shrunk, a small one is smaller."""
    taken = torch.ones_like(areas_px, dtype=torch.bool)
    if tta.keypoint_area_px is None or one.look is None:
        return taken
    is_small = areas_px < tta.keypoint_area_px
    if one.look.sides_px[0] < tta.short_side_px:
        taken &= ~is_small
    if one.look.sides_px[0] > tta.short_side_px:
        taken &= is_small
    return taken
