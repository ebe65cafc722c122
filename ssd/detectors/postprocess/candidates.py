"""Boxes that may be detections, the same number in each image, before non-maximum suppression; and what a model says of
the masks and keypoints in boxes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# As torchvision's topk_candidates.
BEST_OF_A_MAP = 1000


class Candidates(NamedTuple):
    """boxes: B x N x 4 float32, cut to the image. scores: B x N float32, 0 or less of what is none. labels: B x N."""

    boxes_ltrb_px: Tensor
    scores: Tensor
    labels: Tensor


class PartMaps(NamedTuple):
    """What the heads of masks and keypoints say of boxes, D an image, float32. masks: B x D x S x S, of each box's
    class, before sigmoid. keypoints: B x D x P x S x S, of each cell, before softmax; those of boxes without are any.
    None of what the model has no head for."""

    masks: Tensor | None
    keypoints: Tensor | None


def best_of_maps(scores: Tensor, per_map: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The 1000 best pairs of anchor and class of each feature map: their scores, anchors and classes, B x N each.

    scores: B x A x K, per_map: how many of the A each map has. A map that has fewer pairs is filled up with minus
    infinity, so that N is the same for each shape of image.
    """
    classes = scores.shape[2]
    best, anchors, labels, first = [], [], [], 0
    for of_map, count in zip(scores.split(per_map, dim=1), per_map, strict=True):
        of_map = of_map.flatten(1)
        if torch.compiler.is_compiling() or of_map.shape[1] < BEST_OF_A_MAP:
            of_map = pad(of_map, (0, BEST_OF_A_MAP), value=-torch.inf)
        values, place = of_map.topk(BEST_OF_A_MAP, dim=1)
        anchors.append((place // classes).clamp(max=count - 1) + first)
        labels.append(place % classes)
        best.append(values)
        first += count
    return torch.cat(best, dim=1), torch.cat(anchors, dim=1), torch.cat(labels, dim=1)
