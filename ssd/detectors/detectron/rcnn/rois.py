"""Which proposals the heads learn from, and how a box is pooled."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_pool

from ssd.boxes import pairwise_iou
from ssd.constants import on_device
from ssd.detectors.detectron.network.bodies import FINEST_LEVEL, roi_strides
from ssd.detectors.detectron.rcnn.boxes import closed, half_open
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.rcnn.proposals import Proposals
from ssd.detectors.torchvision.rcnn.roi_pooling import Sampler, aligned, pool_levels, rois_of
from ssd.detectors.torchvision.rcnn.sampling import sample
from ssd.detectors.torchvision.targets import BELOW, Targets, gather, match


class Rois(NamedTuple):
    """Proposals that have a loss. rois: R x 5 as `rois_of` makes them. labels: R, 0 background. counted: R bool, false
    of what fills up. matched: R int64, the object that each learns, below 0 for none."""

    rois: Tensor
    labels: Tensor
    counted: Tensor
    matched: Tensor

    def take(self, rows: Tensor) -> "Rois":
        return Rois(*(part.index_select(0, rows) for part in self))


def sample_rois(proposals: Proposals, targets: Targets, settings: DetectronSettings) -> Rois:
    """Of each image roi_samples: objects first, a share of all at most, and background for the rest."""
    low, high = settings.roi_negative_iou
    boxes, positive_iou = proposals.boxes_ltrb_px, settings.roi_positive_iou
    matched = match(targets, boxes, low=min(high, positive_iou), high=positive_iou, each_box_learns=False)
    labels = torch.where(matched == BELOW, 0, gather(targets.labels, matched))
    is_sampled = proposals.real & ((matched >= 0) | (matched == BELOW))
    if low > 0:
        is_sampled &= match(targets, boxes, low=low, high=low, each_box_learns=False) != BELOW
    positives = round(settings.roi_positive_share * settings.roi_samples)
    share = positives / settings.roi_samples
    place, counted = sample(torch.where(is_sampled, labels, -1), settings.roi_samples, share)
    return _rois(proposals, labels, matched, place, counted)


def sample_keypoint_rois(proposals: Proposals, targets: Targets, settings: DetectronSettings) -> Rois:
    """Of each image as many at most as the boxes have objects: those of an object of which a point that is stated lies
    in the box."""
    assert targets.keypoints_px is not None
    iou = settings.roi_positive_iou
    matched = match(targets, proposals.boxes_ltrb_px, low=iou, high=iou, each_box_learns=False)
    points, boxes = (
        gather(targets.keypoints_px, matched),
        closed(proposals.boxes_ltrb_px, settings.edge_px).unsqueeze(2),
    )
    inside = ((points[..., :2] >= boxes[..., :2]) & (points[..., :2] <= boxes[..., 2:])).all(dim=3)
    is_object = proposals.real & (matched >= 0) & (inside & (points[..., 2] > 0)).any(dim=2)
    most = round(settings.roi_positive_share * settings.roi_samples)
    place, counted = sample(torch.where(is_object, 1, -1), most, 1.0)
    return _rois(proposals, gather(targets.labels, matched), matched, place, counted)


def objects_of_masks(rois: Rois, targets: Targets, settings: DetectronSettings) -> Tensor:
    """Whose mask each ROI learns: R int64. Not of the object whose box it overlaps most, but of that whose mask's own
    box it does, as in mask_rcnn.py of Detectron: the stated box of an object may be another."""
    masks, windows_ltrb_px = targets.masks, targets.mask_windows_ltrb_px
    assert masks is not None and windows_ltrb_px is not None
    if not len(masks):
        return rois.matched
    frame = (windows_ltrb_px[:, 2:] - windows_ltrb_px[:, :2]) / masks.shape[1]
    boxes = torch.cat([windows_ltrb_px[:, :2] + frame, windows_ltrb_px[:, 2:] - frame], dim=1)
    image = torch.arange(len(targets.counts)).repeat_interleave(torch.tensor(targets.counts))
    iou = pairwise_iou(rois.rois[:, 1:], half_open(boxes, settings.edge_px))
    is_elsewhere = rois.rois[:, :1] != on_device(image, iou.device)
    is_empty = masks.flatten(1).amax(dim=1) == 0  # run lengths of nothing, whose window is the image
    iou, place = iou.masked_fill(is_elsewhere | is_empty, -1).max(dim=1)
    return torch.where(iou < 0, rois.matched, place)


def _rois(proposals: Proposals, labels: Tensor, matched: Tensor, place: Tensor, counted: Tensor) -> Rois:
    boxes = proposals.boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
    return Rois(
        rois_of(boxes), labels.gather(1, place).flatten(), counted.flatten(), matched.gather(1, place).flatten()
    )


def level_of(boxes_ltrb_px: Tensor, settings: DetectronSettings) -> Tensor:
    """Which of the maps that boxes are pooled from suits half-open boxes N x 4: N int64."""
    if not settings.has_pyramid or len(settings.roi_levels) == 1:
        return torch.zeros_like(boxes_ltrb_px[:, 0], dtype=torch.int64)
    sides = (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).prod(dim=1).sqrt()
    least = settings.roi_levels[0]
    more = 1e-6 if settings.rules == "detectron" else 1e-8
    level = (settings.roi_canonical_level + (sides / settings.roi_canonical_px + more).log2()).floor()
    return level.clamp(least, settings.roi_levels[-1]).to(torch.int64) - least


class Pooling(NamedTuple):
    """How a head pools a box. cells: in each direction."""

    cells: int
    sampler: Sampler


def pooling_of(kind: str, cells: int, samples: int) -> Pooling:
    """kind: one of `settings.POOLINGS`. samples: of a cell in each direction, 0 for as many as it has of the map's."""
    return Pooling(cells, roi_pool if kind == "max" else aligned(samples, centred=kind == "align v2"))


def pooled(maps: Sequence[Tensor], rois: Tensor, pooling: Pooling, settings: DetectronSettings) -> Tensor:
    """maps: the pyramid's, finest first, or the only one. rois: R x 5, half-open. Returns R x C x cells x cells."""
    strides = roi_strides(settings)
    first = settings.roi_levels[0] - FINEST_LEVEL if settings.has_pyramid else 0
    level = level_of(rois[:, 1:], settings)
    boxes = closed(rois, settings.edge_px)
    return pool_levels(maps[first : first + len(strides)], strides, boxes, level, pooling.cells, pooling.sampler)
