"""Which anchors the region proposal network learns from, and which boxes it proposes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.detectors.detectron.rcnn.boxes import cut
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.rcnn.proposals import Proposals, best_of_levels, suppressed, suppressed_in_graph
from ssd.detectors.torchvision.targets import Targets, of_images, overlaps


class AnchorSamples(NamedTuple):
    """Those that have a loss, B x S each. anchor: int64, places among all. counted: bool, false of what fills up.
    is_object: bool. matched: int64, the row of the box that each overlaps most."""

    anchor: Tensor
    counted: Tensor
    is_object: Tensor
    matched: Tensor


def sample_anchors(targets: Targets, anchors_ltrb_px: Tensor, settings: DetectronSettings) -> AnchorSamples:
    """Draws the anchors of each image.

    Those inside of the image are positive that a box overlaps most, however little, ties too, or by rpn_positive_iou;
    a share of them stays. Background is drawn, with replacement where there is more than is wanted, from all with less
    than rpn_negative_iou, so that it may take a positive that has less.
    """
    samples = settings.rpn_samples
    of_batch = []
    for image, rows in enumerate(of_images(targets)):
        inside = _inside(anchors_ltrb_px, targets.sizes_px[image], settings.straddle_px)
        best = torch.zeros_like(anchors_ltrb_px[:, 0])
        matched = torch.zeros_like(best, dtype=torch.int64)
        positive = torch.zeros_like(inside)
        if rows.stop > rows.start:
            best, matched, of_a_box = overlaps(targets.boxes_ltrb_px[rows], anchors_ltrb_px, inside)
            positive = (of_a_box | (best >= settings.rpn_positive_iou)) & inside
        chosen = _some(positive, int(settings.rpn_positive_share * samples))
        background = (best < settings.rpn_negative_iou) & inside
        drawn = _drawn(background, samples - chosen.sum(), samples)
        counted, place = (chosen | drawn).to(torch.uint8).topk(min(samples, len(drawn)))
        of_batch.append((place, counted > 0, (chosen & ~drawn)[place], matched[place] + rows.start))
    return AnchorSamples(*(torch.stack(part) for part in zip(*of_batch, strict=True)))


def _inside(anchors_ltrb_px: Tensor, size_px: tuple[int, int], straddle_px: float) -> Tensor:
    if straddle_px < 0:
        return torch.ones_like(anchors_ltrb_px[:, 0], dtype=torch.bool)
    left, top, right, bottom = anchors_ltrb_px.unbind(1)
    inside = (left >= -straddle_px) & (top >= -straddle_px)
    # The last pixel, which Detectron compares with the side, is one less.
    return inside & (right < size_px[0] + 1 + straddle_px) & (bottom < size_px[1] + 1 + straddle_px)


def _some(candidates: Tensor, most: int) -> Tensor:
    """At most so many of A candidates, each set of them equally likely: A bool."""
    draws = torch.where(candidates, torch.rand(candidates.shape, device=candidates.device), -1)
    values, place = draws.topk(min(most, len(candidates)))
    return torch.zeros_like(candidates).scatter_(0, place, values >= 0)


def _drawn(candidates: Tensor, count: Tensor, most: int) -> Tensor:
    """All of A candidates where there are no more than count, else those of count draws with replacement: A bool.
    count: () int64, no more than most."""
    order = candidates.cumsum(0)
    number = order[-1]
    which = (torch.rand(most, device=candidates.device) * number).to(torch.int64)
    place = torch.searchsorted(order, torch.minimum(which, number - 1) + 1).clamp(max=len(order) - 1)
    is_drawn = torch.arange(most, device=candidates.device) < count
    drawn = torch.zeros(len(order) + 1, dtype=torch.bool, device=candidates.device)
    drawn[torch.where(is_drawn, place, len(order))] = True
    return torch.where(number > count, drawn[:-1], True) & candidates


def joins_images(settings: DetectronSettings) -> bool:
    """Whether a training batch's proposals are chosen of all of its images at once."""
    return settings.rules == "detectron" and not settings.has_one_rpn_level


def most_kept(settings: DetectronSettings, *, training: bool) -> int:
    """How many proposals: of each image, but in training on a pyramid, whose levels Detectron joins then for all images
    of a GPU at once, of the batch."""
    if training and joins_images(settings):
        return int(settings.rpn_after_nms[0] * settings.rpn_collect_scale + 0.5)
    return settings.rpn_after_nms[0 if training else 1]


def propose(
    objectness: list[Tensor],
    offsets: list[Tensor],
    anchors_ltrb_px: Tensor,
    limits_px: Tensor,
    least_px: Tensor | float,
    settings: DetectronSettings,
    *,
    training: bool,
) -> Proposals:
    """The `most_kept` best of each image, best first, after suppression within each map.

    objectness: of each map B x A, before sigmoid. offsets: of each map B x A x 4. limits: of the window that boxes are
    cut to. least_px: B x 1, of a side.
    """
    is_test = 0 if training else 1
    before_nms, after_nms = settings.rpn_before_nms[is_test], settings.rpn_after_nms[is_test]
    most, nms_iou = most_kept(settings, training=training), suppressed_above(settings.rpn_nms_iou[is_test], settings)
    logit, boxes_ltrb_px, level = best_of_levels(objectness, offsets, anchors_ltrb_px, before_nms)
    boxes_ltrb_px = cut(boxes_ltrb_px, limits_px, settings.edge_px)
    is_box = is_worth_a_look(boxes_ltrb_px, limits_px, least_px) & (logit > -torch.inf)
    scores = torch.where(is_box, logit.sigmoid(), -1)
    if torch.compiler.is_compiling():
        return suppressed_in_graph(boxes_ltrb_px, scores, len(objectness), most, nms_iou)
    if most <= after_nms or before_nms <= after_nms:  # so that no map has more of them than it may keep
        return suppressed(boxes_ltrb_px, scores, level, limits_px, before_nms, most, nms_iou)
    of_maps = []
    for place in range(len(objectness)):
        own = torch.where(level == place, scores, -1)
        of_maps.append(suppressed(boxes_ltrb_px, own, level, limits_px, before_nms, after_nms, nms_iou))
    return _best(Proposals(*(torch.cat(part, dim=1) for part in zip(*of_maps, strict=True))), most)


def is_worth_a_look(boxes_ltrb_px: Tensor, limits_px: Tensor, least_px: Tensor | float) -> Tensor:
    """Whether half-open boxes B x N x 4 are large enough, not empty, and have their centre in the image: B x N bool,
    false of NaN."""
    sides = boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]
    centre = boxes_ltrb_px[..., :2] + sides / 2
    shorter = sides.amin(dim=2)
    return (shorter > 0) & (shorter >= least_px) & (centre < limits_px[..., 2:]).all(dim=2)


def suppressed_above(iou: float, settings: DetectronSettings) -> float:
    """The IoU above which torchvision has to suppress what the rules do at a threshold."""
    return reached(iou) if settings.rules == "detectron" else iou


def reached(iou: float) -> float:
    """The IoU that Detectron suppresses from, as one above which torchvision does."""
    return float(torch.nextafter(torch.tensor(iou), torch.tensor(0.0)))


def _best(proposals: Proposals, most: int) -> Proposals:
    scores = torch.where(proposals.real, proposals.scores, -1)
    scores, place = scores.topk(min(most, scores.shape[1]), dim=1)
    boxes_ltrb_px = proposals.boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
    return Proposals(boxes_ltrb_px, scores >= 0, scores)


def join(proposals: Proposals, most: int) -> Proposals:
    """The most best ones of all images of a batch together."""
    proposals = _best(proposals, most)
    scores = torch.where(proposals.real, proposals.scores, -1).flatten()
    if len(scores) <= most:
        return proposals
    values, place = scores.topk(most)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(0, place, values >= 0)
    return proposals._replace(real=kept.view_as(proposals.real))
