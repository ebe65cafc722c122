"""From annotations to what a detector learns, and finished batches of it: one piece of code for both data paths."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.annotations import Annotations
from pipelines.order import Sample
from pipelines.shown import distorted
from ssd.batch import EvalBatch, RaggedBatch

LEAST_SHARE = 0.001
"""Of a window's side: a box that is narrower or lower in it is not learned. darknet's."""


def boxes_and_labels(annotations: Annotations, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of an image, n x 4 float32 ltrb in pixels of `sample.size_px` and flipped with it, and their labels,
    n int64; n may be 0. Crowd regions are left out, and boxes of which the sample's window has next to nothing."""
    rows = annotations.boxes_of(sample.image)
    learned = ~annotations.is_crowd[rows]
    width, height = sample.size_px
    boxes_ltrb, labels = annotations.boxes_ltrb[rows][learned], annotations.labels[rows][learned]
    if sample.window_ltrb_px is not None:
        boxes_ltrb = _in_window(boxes_ltrb, annotations.sizes_px[sample.image], sample.window_ltrb_px)
        seen = (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2] >= LEAST_SHARE).all(axis=1)
        boxes_ltrb, labels = boxes_ltrb[seen], labels[seen]
    boxes_ltrb_px = boxes_ltrb * np.array([width, height, width, height], dtype=np.float32)
    if sample.flip:
        left, top, right, bottom = boxes_ltrb_px.T
        boxes_ltrb_px = np.stack([width - right, top, width - left, bottom], axis=1)
    return boxes_ltrb_px, labels


def _in_window(boxes_ltrb: np.ndarray, size_px: np.ndarray, window_ltrb_px: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes in [0, 1] of an image as boxes in [0, 1] of a window of it, cut to that."""
    window = np.array(window_ltrb_px, dtype=np.float32)
    start, extent = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    inside: np.ndarray = ((boxes_ltrb * np.tile(size_px, 2) - start) / extent).clip(0, 1).astype(np.float32)
    return inside


def ragged_batch(images: Tensor, samples: Sequence[Sample], annotations: Annotations) -> RaggedBatch:
    """Puts the samples' targets to their images, on the images' device, and distorts the colours as the samples say."""
    images = distorted(images, samples)
    boxes_ltrb_px, labels = zip(*(boxes_and_labels(annotations, sample) for sample in samples), strict=True)
    return RaggedBatch(
        images,
        _sizes_px(samples),
        _to_device(np.concatenate(boxes_ltrb_px), images.device),
        _to_device(np.concatenate(labels), images.device),
        torch.tensor([len(each) for each in labels]),
        torch.from_numpy(annotations.image_ids[[sample.image for sample in samples]]),
    )


def eval_batch(images: Tensor, samples: Sequence[Sample]) -> EvalBatch:
    """Says which samples the finished images are, and where they lie."""
    sizes_px = _sizes_px(samples)
    placed_ltrb_px = torch.cat([torch.zeros_like(sizes_px), sizes_px], dim=1)
    return EvalBatch(images, placed_ltrb_px, torch.tensor([sample.image for sample in samples]))


def _sizes_px(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.size_px for sample in samples])


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    values = torch.from_numpy(array)
    # From memory that is not pinned the host would wait for the copy.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
