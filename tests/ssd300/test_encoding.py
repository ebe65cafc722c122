"""Boxes as offsets from the default boxes and back; encoded batches are those of DALI's box encoder."""

import functools
from math import log, sqrt
from typing import Any

import pytest
import torch
from test_anchors import random_boxes_ltrb
from torch import Tensor

from ssd.detectors.ssd300.anchors import (
    NUM_BOXES,
    default_boxes_cxcywh,
    default_boxes_ltrb,
)
from ssd.matching import MATCH_IOU, OFFSET_STDS, decode, encode, encode_sparse, match, offsets_of

OFFSETS_BY_HAND = [
    # Centre (0.6, 0.6) is 0.1 / 0.2 and 0.1 / 0.4 of a default box away, then / 0.1; the size is the same: log 1 = 0.
    ((0.5, 0.5, 0.2, 0.4), (0.5, 0.4, 0.7, 0.8), (5, 2.5, 0, 0)),
    # The same centre, twice as wide, half as high: +- log 2 / 0.2.
    ((0.5, 0.5, 0.2, 0.4), (0.3, 0.4, 0.7, 0.6), (0, 0, log(2) / 0.2, -log(2) / 0.2)),
    # Centre (0.2, 0.4) is -0.3 / 0.2 and -0.1 / 0.4 away; 0.2 wide as before, 0.1 high: log (1/4) / 0.2.
    ((0.5, 0.5, 0.2, 0.4), (0.1, 0.35, 0.3, 0.45), (-15, -2.5, 0, -2 * log(2) / 0.2)),
]


@pytest.mark.parametrize(("default_cxcywh", "box_ltrb", "offsets"), OFFSETS_BY_HAND)
def test_offsets_by_hand(default_cxcywh, box_ltrb, offsets) -> None:
    box, default = torch.tensor([box_ltrb]), torch.tensor([default_cxcywh])
    expected = torch.tensor([offsets], dtype=torch.float32)
    # Roundings of 6e-8 in the coordinates, over a default box's 0.2 and the deviation's 0.1 or 0.2.
    torch.testing.assert_close(offsets_of(box, default), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decode(expected, default), box, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.001, 0.05), (0.05, 0.5), (0.5, 1)])
def test_encode_then_decode_is_the_identity(low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(6)
    for _ in range(10):
        boxes_ltrb = random_boxes_ltrb(10, low, high, generator)
        labels = torch.arange(1, 11)
        offsets, targets = encode(boxes_ltrb, labels, default_boxes_cxcywh())
        positive = targets > 0
        assert positive.any()
        decoded = decode(offsets, default_boxes_cxcywh())
        torch.testing.assert_close(decoded[positive], boxes_ltrb[targets[positive] - 1], rtol=0, atol=1e-6)
        # Where nothing matched the offsets say the default box itself.
        torch.testing.assert_close(decoded[~positive], default_boxes_ltrb()[~positive], rtol=0, atol=1e-6)


def test_decode_batched_equals_single() -> None:
    offsets = torch.randn(3, NUM_BOXES, 4, generator=torch.Generator().manual_seed(7))
    singly = torch.stack([decode(image, default_boxes_cxcywh()) for image in offsets])
    assert torch.equal(decode(offsets, default_boxes_cxcywh()), singly)


def test_encode_by_hand() -> None:
    # 300 x 261 / sqrt 2 px in the middle of the image is default box 8730, so it has this one with offset 0.
    height = 261 / sqrt(2) / 300
    box_ltrb = torch.tensor([[0.0, 0.5 - height / 2, 1.0, 0.5 + height / 2]])
    offsets, labels = encode(box_ltrb, torch.tensor([7]), default_boxes_cxcywh())
    assert offsets.shape == (8732, 4) and offsets.dtype == torch.float32
    assert labels.shape == (8732,) and labels.dtype == torch.int64
    assert labels[8730] == 7
    torch.testing.assert_close(offsets[8730], torch.zeros(4), rtol=0, atol=1e-5)
    # Default box 8728 is 261 x 261 px in the same place: it shares 261 x 184.55 px, of 261^2 + 300 x 184.55 less that,
    # IoU 0.64. So it learns the box too: 300 / 261 as wide and 1 / sqrt 2 as high.
    assert labels[8728] == 7
    expected = torch.tensor([0, 0, log(300 / 261) / 0.2, -log(sqrt(2)) / 0.2])
    torch.testing.assert_close(offsets[8728], expected, rtol=0, atol=1e-5)
    # Default box 8731, upright, shares 184.55^2 of 2 x 300 x 184.55 less that, IoU 0.44: background.
    assert labels[8731] == 0
    assert set(labels.tolist()) == {0, 7}


def test_encode_without_boxes_is_all_background() -> None:
    offsets, labels = encode(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), default_boxes_cxcywh())
    assert torch.equal(offsets, torch.zeros(8732, 4))
    assert torch.equal(labels, torch.zeros(8732, dtype=torch.int64))
    image, default, offsets, labels = encode_sparse(
        [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], default_boxes_cxcywh()
    )
    assert image.shape == default.shape == labels.shape == (0,) and offsets.shape == (0, 4)


def test_encode_sparse_is_encode_of_each_image_without_its_zeros() -> None:
    generator = torch.Generator().manual_seed(8)
    boxes_ltrb = [random_boxes_ltrb(count, 0.02, 0.9, generator) for count in (20, 0, 3)]
    labels = [torch.randint(1, 81, (len(boxes),), generator=generator) for boxes in boxes_ltrb]
    image, default, sparse_offsets, sparse_labels = encode_sparse(boxes_ltrb, labels, default_boxes_cxcywh())
    encoded = [encode(*image, default_boxes_cxcywh()) for image in zip(boxes_ltrb, labels, strict=True)]
    offsets, targets = (torch.stack(dense) for dense in zip(*encoded, strict=True))
    assert torch.equal(torch.stack([image, default], dim=1), torch.nonzero(targets))
    assert torch.equal(default[image == 0], torch.nonzero(match(boxes_ltrb[0], default_boxes_ltrb()) >= 0).squeeze(1))
    assert torch.equal(sparse_offsets, offsets[image, default]) and torch.equal(sparse_labels, targets[image, default])
    background = torch.ones(3, 8732, dtype=torch.bool)
    background[image, default] = False
    assert not offsets[background].any()


# DALI's encoder is the other implementation: the data path "dali" uses it instead of `encode`.


def _images_of_random_boxes(low: float, high: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    counts = torch.randint(1, 31, (100,), generator=generator).tolist()
    return [random_boxes_ltrb(count, low, high, generator) for count in counts]


def _images_of_grid_boxes(cells: int) -> list[Tensor]:
    """Corners on a coarse grid: many boxes are equally far from two default boxes."""
    generator = torch.Generator().manual_seed(10)
    images = []
    for count in torch.randint(1, 31, (100,), generator=generator).tolist():
        left_top = torch.randint(0, cells, (count, 2), generator=generator)
        size = torch.randint(1, cells + 1, (count, 2), generator=generator)
        images.append(torch.cat([left_top, (left_top + size).clamp(max=cells)], dim=1) / cells)
    return images


def _images_of_default_boxes() -> list[Tensor]:
    """Default boxes, cut at the image's edge: with IoU 1 or close to it, and with repetitions."""
    generator = torch.Generator().manual_seed(11)
    defaults = default_boxes_ltrb().clamp(0, 1)
    return [defaults[torch.randint(0, NUM_BOXES, (20,), generator=generator)] for _ in range(50)]


DALI_CASES = {
    "any size": functools.partial(_images_of_random_boxes, 0.001, 1),
    # Smaller than all default boxes: each that contains it has the same IoU, but for rounding.
    "tiny": functools.partial(_images_of_random_boxes, 0.001, 0.03),
    "large": functools.partial(_images_of_random_boxes, 0.5, 1),
    "grid of 4": functools.partial(_images_of_grid_boxes, 4),
    "grid of 75": functools.partial(_images_of_grid_boxes, 75),
    "grid of 300": functools.partial(_images_of_grid_boxes, 300),
    "default boxes": _images_of_default_boxes,
    "all twice": lambda: [torch.cat([boxes, boxes.flip(0)]) for boxes in _images_of_random_boxes(0.01, 1)[:30]],
    "some without boxes": lambda: [torch.zeros(0, 4), torch.tensor([[0.1, 0.2, 0.5, 0.9]]), torch.zeros(0, 4)],
}


def _dali_encode(images: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        return tuple(
            fn.box_encoder(
                fn.external_source(source=lambda: [boxes.numpy() for boxes in images]),
                fn.external_source(source=lambda: [of_image.int().numpy() for of_image in labels]),
                anchors=default_boxes_ltrb().flatten().tolist(),
                criteria=MATCH_IOU,
                offset=True,
                stds=list(OFFSET_STDS),
            )
        )

    pipeline = graph()
    pipeline.build()
    offsets, targets = (torch.tensor(output.as_array()) for output in pipeline.run())
    return offsets, targets.long()


@pytest.mark.parametrize("case", DALI_CASES)
def test_encode_is_dalis_box_encoder(case: str) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed", exc_type=ImportError)
    images = DALI_CASES[case]()
    # Each box has a label of its own, so equal labels are equal matches.
    labels = [torch.arange(1, len(boxes) + 1) for boxes in images]
    dali_offsets, dali_labels = _dali_encode(images, labels)
    ours = [encode(*image, default_boxes_cxcywh()) for image in zip(images, labels, strict=True)]
    assert torch.equal(torch.stack([labels for _, labels in ours]), dali_labels)
    # Of a tiny box in a large default box the offset is about -40, where float32 steps by 4e-6: hence rtol.
    torch.testing.assert_close(torch.stack([offsets for offsets, _ in ours]), dali_offsets, rtol=1e-6, atol=1e-5)
