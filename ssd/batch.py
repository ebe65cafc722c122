"""The data that moves between the parts: named tuples whose docstrings are the contract.

Shape legend: B images in a batch, A default boxes, K classes with 0 the background, D detections an image.
Boxes are `ltrb` (left, top, right, bottom) in [0, 1] of the image unless a name says `_px`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ssd.keypoints import Skeleton

# ImageNet's channel statistics on [0, 1] RGB: what torchvision's ResNet weights were trained with.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


class MatchedBatch(NamedTuple):
    """A finished training batch of squares whose boxes are matched with default boxes, all but its ids on the training
    device.

    images: B x 3 x S x S float32, channels_last, RGB normalised by the view's mean and standard deviation.
    offsets: B x A x 4 float32, SSD regression targets of `matching.encode`; rows without a match are 0.
    labels: B x A int64 in [0, K), 0 where no ground truth matched.
    image_ids: B int64 on the CPU, the data set's own ids, to name the images of a batch that went wrong.
    """

    images: Tensor
    offsets: Tensor
    labels: Tensor
    image_ids: Tensor

    def split(self, parts: int) -> "list[MatchedBatch]":
        """Consecutive images in parts of equal size."""
        return [MatchedBatch(*part) for part in zip(*(t.tensor_split(parts) for t in self), strict=True)]


class RaggedBatch(NamedTuple):
    """A finished training batch of images that keep their shapes: all on the training device but what says so.

    images: B x 3 x H x W float32, channels_last, RGB normalised by the view's mean and standard deviation. Each image
    lies in the left top corner; what is right of it and below is 0.
    sizes_px: B x 2 int64 on the CPU, (width, height) of each image in `images`.
    boxes_ltrb_px: N x 4 float32 in pixels of `images`, those of the first image, then those of the second, ...
    labels: N int64 in [1, K).
    counts: B int64 on the CPU, how many of the N boxes each image has; an image may have none.
    image_ids: B int64 on the CPU, as in `MatchedBatch`.
    masks: N x S x S uint8, 1 where an object is, each in a window of its own, whose outermost pixels are 0. None
    where the view wants none, as the others below.
    mask_windows_ltrb_px: N x 4 float32, where the windows lie in `images`.
    keypoints_px: N x P x 3 float32: x, y in pixels of `images`, and COCO's visibility, 0 of points that are not stated.
    scales: B float64 on the CPU, by which factor each image was resized; None where that is not one for both sides.
    """

    images: Tensor
    sizes_px: Tensor
    boxes_ltrb_px: Tensor
    labels: Tensor
    counts: Tensor
    image_ids: Tensor
    masks: Tensor | None = None
    mask_windows_ltrb_px: Tensor | None = None
    keypoints_px: Tensor | None = None
    scales: Tensor | None = None

    def split(self, parts: int) -> "list[RaggedBatch]":
        """Consecutive images in parts of equal size."""
        first, batches = 0, []
        of_images = (self.images, self.sizes_px, self.counts, self.image_ids)
        scales_of_parts = [None] * parts if self.scales is None else self.scales.tensor_split(parts)
        for images, sizes_px, counts, image_ids, scales in zip(
            *(t.tensor_split(parts) for t in of_images), scales_of_parts, strict=True
        ):
            rows = slice(first, first + int(counts.sum()))
            first = rows.stop
            of_objects = (self.masks, self.mask_windows_ltrb_px, self.keypoints_px)
            masks, windows_ltrb_px, keypoints_px = (None if each is None else each[rows] for each in of_objects)
            batches.append(
                RaggedBatch(
                    images, sizes_px, self.boxes_ltrb_px[rows], self.labels[rows], counts, image_ids, masks,
                    windows_ltrb_px, keypoints_px, scales,
                )
            )  # fmt: skip
        return batches


class EvalBatch(NamedTuple):
    """A finished evaluation batch.

    images: as in the view's training batch, without any of its augmentation.
    placed_ltrb_px: B x 4 int64 on the CPU, where each image lies in `images`: all of it for a view that stretches, the
    left top part for one that pads.
    indices: B int64 on the CPU, positions in `GroundTruth.image_ids`.
    scales: as in `RaggedBatch`. stated_px: B x 2 int64 on the CPU, (width, height) of each image before it was resized,
    None where scales are.
    """

    images: Tensor
    placed_ltrb_px: Tensor
    indices: Tensor
    scales: Tensor | None = None
    stated_px: Tensor | None = None


def whole(images: Tensor) -> Tensor:
    """`EvalBatch.placed_ltrb_px` of images B x 3 x H x W that fill their place."""
    batch, _, height, width = images.shape
    return torch.tensor([0, 0, width, height]).expand(batch, -1)


Batch = MatchedBatch | RaggedBatch
"""What a step of training takes. Both kinds have `images`, `image_ids` and `split`."""


class Predictions(NamedTuple):
    """What the model says of each default box.

    offsets: B x A x 4, in the units of `MatchedBatch.offsets`.
    logits: B x A x K, before softmax.
    """

    offsets: Tensor
    logits: Tensor


class Detections(NamedTuple):
    """Detections after non-maximum suppression, padded to D an image, best score first.

    boxes_ltrb: B x D x 4 float32, clipped to [0, 1].
    scores: B x D float32 in [0, 1]; 0 in padded rows.
    labels: B x D int64 in [1, K); 0 in padded rows.
    counts: B int64, how many rows of each image are real.
    masks: B x D x S x S float32, how likely it is that each part of the box belongs to the object; None of a detector
    that finds none, as the keypoints. 0 in padded rows, both.
    keypoints: B x D x P x 3 float32: x, y in [0, 1] of the image, if they lie in it, and a score without bounds. 0 of
    classes that have none, too.
    """

    boxes_ltrb: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None


FIELDS_OF_BOXES = ("boxes_ltrb", "scores", "labels", "counts")
"""Of `Detections`, what every detector has."""


def of_boxes(detections: Detections) -> dict[str, Tensor]:
    return dict(zip(FIELDS_OF_BOXES, detections[:4], strict=True))


def on_host(detections: Detections) -> Detections:
    """The same on the CPU, by one copy, and one each for masks and keypoints."""
    boxes_ltrb, scores, labels, _, *parts = detections
    columns = [boxes_ltrb, scores.unsqueeze(2), labels.unsqueeze(2).to(torch.float32)]  # exact up to 2 ** 24 classes
    boxes_ltrb, scores, labels = torch.cat(columns, dim=2).cpu().split([4, 1, 1], dim=2)
    scores = scores.squeeze(2)
    on_cpu = (None if part is None else part.cpu() for part in parts)
    return Detections(boxes_ltrb, scores, labels.squeeze(2).to(torch.int64), (scores > 0).sum(dim=1), *on_cpu)


class GroundTruth(NamedTuple):
    """What evaluation needs to know of a split: the original ids and the COCO data set to judge by.

    image_ids: N int64, the file's own ids.
    sizes_px: N x 2 int32, (width, height).
    category_ids: K - 1 ids; label i + 1 is category_ids[i].
    category_names: K - 1 names in the same order.
    dataset: a COCO dict of images, annotations and categories, with the file's own numbers; the annotations have masks
    and keypoints where the split was read with them.
    skeleton: of the keypoints, where the annotations have them.
    """

    image_ids: np.ndarray
    sizes_px: np.ndarray
    category_ids: list[int]
    category_names: list[str]
    dataset: dict[str, Any]
    skeleton: Skeleton | None = None


class TrainLoader(Protocol):
    """One rank's endless training data, whichever data path it comes from.

    The images with a box that can be learned come in shuffled passes, one after the other, divided among the ranks. All
    batches are full, so an epoch of steps_per_epoch = ceil(images / (batch size x ranks)) steps is a pass and the
    beginning of the next: no image is repeated to fill a batch. Equal seeds give equal batches.
    """

    steps_per_epoch: int
    identity: dict[str, str]
    """What must be equal, beside data, seed, batch size and ranks, for a saved state to mean the same."""
    ranks_share_state: bool
    """Whether a state fits every rank, however many there are; otherwise it is its own rank's."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches of steps first_step, first_step + 1, ... without end. Without `restore`, a first_step above 0
        begins with images of its own, so that the run's beginning is not repeated."""
        ...

    def state(self) -> bytes:
        """The place in the data, for `restore`: after the batches that were taken so far.

        Before the first batch it is the state that `restore` was given, or b"" without one.
        """
        ...

    def restore(self, state: bytes) -> None:
        """Goes back to the place that `state` returned. Call it before `batches`, with that place's first_step."""
        ...


class EvalLoader(Protocol):
    """One rank's share of a split, in order; over all ranks every image of the split exactly once."""

    def __iter__(self) -> Iterator[EvalBatch]: ...
