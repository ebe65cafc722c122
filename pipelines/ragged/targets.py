"""From annotations to what a detector learns, and finished batches of it: one piece of code for both data paths."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.annotations import Annotations
from pipelines.object_parts import BITMAP_SIDE, bitmap_of
from pipelines.ragged.draws import Sample
from pipelines.ragged.learned import learned_rows
from pipelines.ragged.order import TrainingOrder
from pipelines.ragged.shown import distorted
from ssd.batch import EvalBatch, RaggedBatch
from ssd.distributed import Ranks
from ssd.keypoints import mirrored
from ssd.views import BOXES, ObjectParts, StretchView

_MOST_LOOKED_AT = 5000
"""Images: the start of a run waits for them."""
LEAST_SHARE = 0.001
"""Of a window's side: a box that is narrower or lower in it is not learned. darknet's."""


def boxes_and_labels(annotations: Annotations, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of an image, n x 4 float32 ltrb in pixels of `sample.size_px` and flipped with it, and their labels,
    n int64; n may be 0. Crowd regions are left out, boxes of which the sample's window has next to nothing, and in a
    sample of one scale, which is Detectron's, boxes without extent."""
    learned = _learned(annotations, sample)
    boxes_ltrb, labels = annotations.boxes_ltrb[learned], annotations.labels[learned]
    if sample.window_ltrb_px is not None or sample.placed_ltrb_px is not None:
        if sample.window_ltrb_px is not None:
            boxes_ltrb = _in_window(boxes_ltrb, annotations.sizes_px[sample.image], sample.window_ltrb_px)
        if sample.placed_ltrb_px is not None:
            boxes_ltrb = _placed(boxes_ltrb, sample.size_px, sample.placed_ltrb_px)
        seen = (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2] >= LEAST_SHARE).all(axis=1)
        boxes_ltrb, labels = boxes_ltrb[seen], labels[seen]
    boxes_ltrb_px = boxes_ltrb * np.tile(_factors(annotations, sample), 2).astype(np.float32)
    if sample.flip:
        boxes_ltrb_px = _flipped(boxes_ltrb_px, sample.size_px[0])
    return boxes_ltrb_px, labels


def boxes_left_out(annotations: Annotations, view: StretchView, *, batch_size: int, seed: int) -> tuple[int, int]:
    """How many boxes `boxes_and_labels` leaves out of the first images of a run for its windows, and of how many.

    What is drawn derives from the seed, pass and image, so this is so of both data paths, and known before the start.
    batch_size: of all ranks together.
    """
    order = TrainingOrder(
        annotations, view, batch_size=batch_size, seed=seed, ranks=Ranks(0, 0, 1, torch.device("cpu"))
    )
    steps = itertools.islice(order.steps((0, 0)), min(order.steps_per_epoch, -(-_MOST_LOOKED_AT // batch_size)))
    samples = [sample for step in steps for sample in step.samples]
    of_all = sum(len(_learned(annotations, sample)) for sample in samples)
    return of_all - sum(len(boxes_and_labels(annotations, sample)[1]) for sample in samples), of_all


def _in_window(boxes_ltrb: np.ndarray, size_px: np.ndarray, window_ltrb_px: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes in [0, 1] of an image as boxes in [0, 1] of a window of it, cut to that."""
    window = np.array(window_ltrb_px, dtype=np.float32)
    start, extent = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    inside: np.ndarray = ((boxes_ltrb * np.tile(size_px, 2) - start) / extent).clip(0, 1).astype(np.float32)
    return inside


def _placed(boxes_ltrb: np.ndarray, size_px: tuple[int, int], placed_ltrb_px: tuple[int, ...]) -> np.ndarray:
    """Boxes in [0, 1] of an image as boxes in [0, 1] of the size that it lies in."""
    place = np.array(placed_ltrb_px, dtype=np.float32)
    start, extent = np.tile(place[:2], 2), np.tile(place[2:] - place[:2], 2)
    placed: np.ndarray = ((boxes_ltrb * extent + start) / np.tile(size_px, 2)).astype(np.float32)
    return placed


def masks_of(annotations: Annotations, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The masks of `boxes_and_labels`' objects: n x S x S uint8 as `parts.bitmap_of` makes them, flipped with the
    image, and their windows, n x 4 float32 ltrb in pixels of `sample.size_px`."""
    assert annotations.masks is not None
    objects = _learned(annotations, sample)
    if len(objects) == 0:
        return np.zeros((0, BITMAP_SIDE, BITMAP_SIDE), dtype=np.uint8), np.zeros((0, 4), dtype=np.float32)
    stated_px = annotations.sizes_px[sample.image].tolist()
    found = [bitmap_of(annotations.masks, i, (stated_px[0], stated_px[1])) for i in objects.tolist()]
    bitmaps, windows_ltrb = np.stack([bitmap for bitmap, _ in found]), np.stack([window for _, window in found])
    windows_ltrb *= np.tile(_factors(annotations, sample) / stated_px, 2)
    if sample.flip:
        bitmaps, windows_ltrb = bitmaps[:, :, ::-1], _flipped(windows_ltrb, sample.size_px[0])
    return np.ascontiguousarray(bitmaps), windows_ltrb.astype(np.float32)


def keypoints_of(annotations: Annotations, sample: Sample) -> np.ndarray:
    """The points of `boxes_and_labels`' objects, n x P x 3 float32: x, y in pixels of `sample.size_px`, and visibility.
    In a flipped image each has the place of its mirror image: what was a left eye is a right one."""
    assert annotations.keypoints is not None
    points = annotations.keypoints.points[_learned(annotations, sample)]
    points = points * (*_factors(annotations, sample) / annotations.sizes_px[sample.image], 1)
    if sample.flip:
        # Detectron takes a point for its pixel, the others for a place in the image.
        points[..., 0] = sample.size_px[0] - (sample.scale or 0) - points[..., 0]
        points = points[:, mirrored(annotations.keypoints.skeleton.names)]
    return points.astype(np.float32)


def _factors(annotations: Annotations, sample: Sample) -> np.ndarray:
    """How many pixels of the shown image its (width, height) are: all of them, unless one scale says otherwise."""
    if sample.scale is None:
        return np.array(sample.size_px, dtype=np.float64)
    return annotations.sizes_px[sample.image] * sample.scale


def _learned(annotations: Annotations, sample: Sample) -> np.ndarray:
    """The rows of `boxes_and_labels`' objects."""
    return learned_rows(annotations, sample.image, closed=sample.scale is not None)


def _flipped(boxes_ltrb_px: np.ndarray, width_px: int) -> np.ndarray:
    left, top, right, bottom = boxes_ltrb_px.T
    return np.stack([width_px - right, top, width_px - left, bottom], axis=1)


def ragged_batch(
    images: Tensor, samples: Sequence[Sample], annotations: Annotations, parts: ObjectParts = BOXES
) -> RaggedBatch:
    """Puts the samples' targets to their images, on the images' device, and distorts the colours as the samples say.
    parts: of the view."""
    images = distorted(images, samples)
    masks: Tensor | None = None
    windows_ltrb_px: Tensor | None = None
    keypoints_px: Tensor | None = None
    if parts.masks:
        masks, windows_ltrb_px = (
            _to_device(np.concatenate(each), images.device)
            for each in zip(*(masks_of(annotations, sample) for sample in samples), strict=True)
        )
    if parts.keypoints:
        points = np.concatenate([keypoints_of(annotations, sample) for sample in samples])
        keypoints_px = _to_device(points, images.device)
    boxes_ltrb_px, labels = zip(*(boxes_and_labels(annotations, sample) for sample in samples), strict=True)
    return RaggedBatch(
        images,
        _sizes_px(samples),
        _to_device(np.concatenate(boxes_ltrb_px), images.device),
        _to_device(np.concatenate(labels), images.device),
        torch.tensor([len(each) for each in labels]),
        torch.from_numpy(annotations.image_ids[[sample.image for sample in samples]]),
        masks,
        windows_ltrb_px,
        keypoints_px,
        _scales(samples),
    )


def eval_batch(images: Tensor, samples: Sequence[Sample], annotations: Annotations) -> EvalBatch:
    """Says which samples the finished images are, and where they lie."""
    placed_ltrb_px = torch.tensor([sample.placed_ltrb_px or (0, 0, *sample.size_px) for sample in samples])
    indices = torch.tensor([sample.image for sample in samples])
    scales = _scales(samples)
    stated_px = None
    if scales is not None:
        stated_px = torch.tensor([s.stretched_px or annotations.sizes_px[s.image].tolist() for s in samples])
    return EvalBatch(images, placed_ltrb_px, indices, scales, stated_px)


def _scales(samples: Sequence[Sample]) -> Tensor | None:
    scales = [sample.scale for sample in samples if sample.scale is not None]
    return torch.tensor(scales, dtype=torch.float64) if scales else None


def _sizes_px(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.size_px for sample in samples])


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    values = torch.from_numpy(array)
    # From memory that is not pinned the host would wait for the copy.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
