"""What the mask head and the keypoint head of an R-CNN learn from a box, and their losses: torchvision's, with fixed
shapes and nothing to wait for."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from ssd.detectors.postprocess.candidates import Candidates
from ssd.keypoints import Skeleton


class CandidatesOfMaps(NamedTuple):
    """What a model that finds masks or keypoints says of images: candidates, and the feature maps for `Boxes`."""

    candidates: Candidates
    maps: list[Tensor]


class Boxes(NamedTuple):
    """Detected boxes to look at once more: B x D x 4 in pixels; their labels, B x D int64, 0 of none; and which of them
    are of a class that has keypoints, B x D bool."""

    boxes_ltrb_px: Tensor
    labels: Tensor
    have_points: Tensor


def boxes_of(boxes_ltrb_px: Tensor, labels: Tensor, skeleton: Skeleton | None) -> Boxes:
    """skeleton: of the model's keypoints, None if it finds none."""
    have_points = torch.zeros_like(labels, dtype=torch.bool) if skeleton is None else skeleton.are_of(labels)
    return Boxes(boxes_ltrb_px, labels, have_points)


# Of each cell of a target, in either direction.
_SAMPLES = 4


def mask_targets(masks: Tensor, windows_ltrb_px: Tensor, matched: Tensor, boxes_ltrb_px: Tensor, side: int) -> Tensor:
    """What part of each cell of R boxes the mask belongs to that the box learns: R x side x side float32 in [0, 1].

    masks, windows: those of N objects as in `RaggedBatch`. matched: R int64, each box's object. torchvision aligns
    boxes with bitmaps as large as the image, and takes a pixel for a point at its integer place: half a pixel up and
    left of where it is. So is it here.
    """
    if not len(masks):
        return boxes_ltrb_px.new_zeros(len(boxes_ltrb_px), side, side)
    matched = matched.clamp(min=0)
    window = windows_ltrb_px[matched]
    pixels = masks.shape[1] / (window[:, 2:] - window[:, :2])  # of the window's bitmap, a pixel of the image
    boxes = (boxes_ltrb_px + 0.5 - window[:, :2].repeat(1, 2)) * pixels.repeat(1, 2) - 0.5
    rois = torch.cat([matched.unsqueeze(1).to(boxes.dtype), boxes], dim=1)
    return roi_align(masks.unsqueeze(1).to(boxes.dtype), rois, side, sampling_ratio=_SAMPLES).squeeze(1)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean of the binary cross-entropy over the cells of the counted boxes' own classes, 0 without any.

    logits: R x K x S x S. labels: R int64. targets: R x S x S. counted: R bool.
    """
    own = logits.gather(1, labels.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])).squeeze(1).float()
    of_boxes = F.binary_cross_entropy_with_logits(own, targets, reduction="none").mean(dim=(1, 2))
    return torch.where(counted, of_boxes, 0).sum() / counted.sum().clamp(min=1)


def keypoint_targets(keypoints_px: Tensor, boxes_ltrb_px: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The cell of its box in which each of R x P points (x 3) lies, of side x side row by row: R x P int64, and whether
    it is stated and lies in the box: R x P bool. A point on the right or lower edge is in the last cell."""
    corner, sides = boxes_ltrb_px[:, None, :2], (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).unsqueeze(1)
    points = keypoints_px[..., :2]
    cell = ((points - corner) * (side / sides)).floor()
    cell = torch.where(points == boxes_ltrb_px[:, None, 2:], side - 1, cell)
    inside = ((cell >= 0) & (cell < side)).all(dim=2) & (keypoints_px[..., 2] > 0)
    cell = torch.where(inside.unsqueeze(2), cell, 0).to(torch.int64)
    return cell[..., 1] * side + cell[..., 0], inside


def those_or_one(counted: Tensor) -> Tensor:
    """The places of those that count, of R bool, or of one that does not, so that a head has a gradient."""
    kept = counted.nonzero().squeeze(1)
    return kept if len(kept) else counted.new_zeros(1, dtype=torch.int64)


def keypoints_found(heatmaps: Tensor, boxes_ltrb_px: Tensor, have_points: Tensor) -> Tensor:
    """Where the highest logit of each point lies, in maps that are enlarged to their box by cubic interpolation, as
    torchvision and Detectron have it: B x D x P x 3 float32, x and y in pixels and the logit; 0 of boxes without.

    heatmaps: B x D x P x S x S. have_points: B x D bool. The host waits once, for the boxes' sizes.
    """
    found = heatmaps.new_zeros(*heatmaps.shape[:3], 3)
    corner, sides = boxes_ltrb_px[..., :2], (boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]).clamp(min=1)
    size_px = torch.where(have_points.unsqueeze(2), sides.ceil(), 0).to(torch.int64).tolist()
    for image, of_image in enumerate(size_px):
        for place, (width, height) in enumerate(of_image):
            if not width:
                continue
            enlarged = F.interpolate(heatmaps[image, place].unsqueeze(1), (height, width), mode="bicubic").flatten(1)
            logit, cell = enlarged.max(dim=1)
            middle = torch.stack([cell % width, cell // width], dim=1) + 0.5
            step = sides[image, place] / sides[image, place].ceil()
            found[image, place, :, :2] = middle * step + corner[image, place]
            found[image, place, :, 2] = logit
    return found


def keypoint_loss(logits: Tensor, cells: Tensor, counted: Tensor) -> Tensor:
    """Mean of the cross-entropy over the counted points, 0 without any.

    logits: R x P x S x S. cells, counted: R x P as `keypoint_targets` makes them.
    """
    of_points = F.cross_entropy(logits.float().flatten(0, 1).flatten(1), cells.flatten(), reduction="none")
    return torch.where(counted.flatten(), of_points, 0).sum() / counted.sum().clamp(min=1)
