"""Anchors for a data set: k-means on IoU, as YOLOv2's paper has it."""

import numpy as np
from torch import Tensor

from ssd.errors import InputError

_MOST_ROUNDS = 1000


def kmeans_anchors(boxes_ltrb: Tensor, count: int, grid: tuple[int, int]) -> tuple[tuple[float, ...], float]:
    """So many pairs of width and height in cells of a grid (columns, rows), small ones first, and the mean over the
    boxes of the IoU with the anchor that is most like it.

    boxes_ltrb: N x 4 in [0, 1]. The first means are quantiles by area, so that equal boxes give equal anchors. Raises
    InputError for fewer shapes than anchors.
    """
    sides = (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2]).double().numpy() * grid
    sides = sides[sides.min(axis=1, initial=np.inf) > 0]
    shapes = np.unique(sides, axis=0)
    if len(shapes) < count:
        raise InputError(f"--anchors auto: boxes of {len(shapes)} shapes make no {count} anchors; leave it out")
    shapes = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    means = shapes[((np.arange(count) + 0.5) * len(shapes) / count).astype(int)]
    nearest = np.full(len(sides), -1)
    for _ in range(_MOST_ROUNDS):
        before, nearest = nearest, _iou(sides, means).argmax(axis=1)
        if np.array_equal(before, nearest):
            break
        members = [sides[nearest == number] for number in range(count)]
        means = np.stack([own.mean(axis=0) if len(own) else mean for own, mean in zip(members, means, strict=True)])
    means = means[np.argsort(means.prod(axis=1), kind="stable")].round(4)
    return tuple(means.flatten().tolist()), float(_iou(sides, means).max(axis=1).mean())


def _iou(sides: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of N boxes and M with one centre: N x M."""
    shared = np.minimum(sides[:, None], others).prod(axis=2)
    iou: np.ndarray = shared / (sides.prod(axis=1)[:, None] + others.prod(axis=1) - shared)
    return iou
