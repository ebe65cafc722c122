"""Detectron's anchors, boxes and proposals are what its rules, written once more in numpy, say."""

from dataclasses import replace
from typing import Any

import detectron_by_hand as by_hand
import numpy as np
import pytest
import torch
from torchvision.ops import nms

from ssd.boxes import pairwise_iou
from ssd.detectors.detectron.rcnn.boxes import (
    anchors_ltrb_px,
    anchors_of_cell,
    cells_of,
    closed,
    cut,
    half_open,
    scaled,
)
from ssd.detectors.detectron.rcnn.rois import level_of, pooled, pooling_of
from ssd.detectors.detectron.rcnn.rpn import is_worth_a_look, join, propose, reached
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.boxes import decode, encode
from ssd.detectors.torchvision.rcnn.proposals import Proposals

FPN = DetectronSettings()
C4 = replace(FPN, maps="C4", box_head="res5", box_pooled=14, box_sampling=0)


def adversarial_boxes(count: int = 60, side: float = 100.0) -> np.ndarray:
    """Closed, in pixels: random ones, single pixels, thin ones, ones as large as the image, and equal ones."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, side - 1, (count, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.exponential(20, (count, 2)), side - 1)], axis=1)
    special = [[3, 4, 3, 4], [0, 0, side - 1, side - 1], [5, 0, 5, side - 1], [0, 7, side - 1, 7], [3, 4, 3, 4]]
    return np.concatenate([boxes, np.array(special, dtype=np.float64)])


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


# Width x height of sizes 32 to 512, ratios 0.5, 1, 2.
STATED = {
    4: [(48, 24), (32, 32), (24, 48)],
    8: [(88, 48), (64, 64), (48, 96)],
    16: [(184, 96), (128, 128), (88, 176)],
    32: [(360, 176), (256, 256), (184, 368)],
    64: [(728, 368), (512, 512), (360, 720)],
}


@pytest.mark.parametrize("stride", STATED)
def test_anchors_of_a_pyramid_have_their_stated_sides(stride: int) -> None:
    for (left, top, right, bottom), sides in zip(
        anchors_of_cell(stride, [8 * stride], [0.5, 1, 2]), STATED[stride], strict=True
    ):
        assert (right - left, bottom - top) == sides
        assert (left + right, top + bottom) == (stride, stride)


def test_anchors_of_one_map_come_ratio_by_ratio() -> None:
    sides = [(46, 24), (32, 32), (22, 44)]
    expected = [(width * n, height * n) for width, height in sides for n in (1, 2, 4, 8, 16)]
    anchors = anchors_of_cell(16, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    assert [(right - left, bottom - top) for left, top, right, bottom in anchors] == expected


def enumerated(stride: int, sizes: list[int], ratios: list[float], rows: int, columns: int) -> np.ndarray:
    """generate_anchors.py with its closed base box (0, 0, stride - 1, stride - 1), then shifted by whole strides."""
    middle, of_cell = (stride - 1) / 2, []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        for size in sizes:
            half = 0.5 * (np.array([width, height]) * (size / stride) - 1)
            of_cell.append(np.concatenate([middle - half, middle + half]))
    shifts = [(x, y, x, y) for y in range(0, rows * stride, stride) for x in range(0, columns * stride, stride)]
    return (np.array(shifts)[:, None] + np.array(of_cell)).reshape(-1, 4)


@pytest.mark.parametrize("settings", [FPN, C4, replace(FPN, maps="C5"), replace(FPN, rpn_levels=(2,), roi_levels=(2,))])
def test_anchors_lie_as_detectron_enumerates_them(settings: DetectronSettings) -> None:
    cells = cells_of(settings)
    # Of odd numbers of cells, whose strides no image's side says.
    maps = [torch.zeros(1, 1, 25 // (place + 1), 13 // (place + 1)) for place in range(len(cells))]
    sizes_px = settings.anchor_sizes_px
    of_maps = [[size] for size in sizes_px] if len(cells) > 1 else [list(sizes_px)]
    expected = [
        enumerated(stride, sizes, list(settings.anchor_ratios), *each.shape[2:])
        for (stride, _), sizes, each in zip(cells, of_maps, maps, strict=True)
    ]
    assert torch.equal(anchors_ltrb_px(cells, maps), tensor(by_hand.half_open(np.concatenate(expected))))


def test_half_open_boxes_have_detectrons_overlap_and_offsets() -> None:
    boxes = adversarial_boxes()
    others = boxes[::-1].copy()
    ours, theirs = tensor(by_hand.half_open(boxes)), tensor(by_hand.half_open(others))
    assert torch.equal(half_open(tensor(boxes)), ours) and torch.allclose(closed(ours), tensor(boxes), atol=1e-5)
    np.testing.assert_allclose(pairwise_iou(ours, theirs), by_hand.iou(boxes, others), atol=1e-5)
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = by_hand.encoded(boxes, others, weights)
    np.testing.assert_allclose(encode(theirs, ours, weights), deltas, rtol=1e-4, atol=1e-3)
    deltas[:3] *= 9  # some are cut before their exponential
    found = decode(tensor(deltas), ours, weights)
    np.testing.assert_allclose(found, by_hand.half_open(by_hand.decoded(boxes, deltas, weights)), rtol=1e-4, atol=2e-3)


def test_boxes_are_cut_to_pixels_and_never_empty() -> None:
    boxes = np.array([[-9, -9, -5, -3], [95, 3, 130, 250], [120, 130, 150, 160], [-3, 10, 300, 20.5], [99, 59, 99, 59]])
    limits = torch.tensor([[[0, 0, 100, 60.0]]])
    found = cut(tensor(by_hand.half_open(boxes)).unsqueeze(0), limits)[0]
    np.testing.assert_array_equal(found, by_hand.half_open(by_hand.clipped(boxes, 100, 60)))
    assert (found[:, 2:] - found[:, :2] >= 1).all()


def test_a_box_is_scaled_as_a_range_of_pixels() -> None:
    boxes = adversarial_boxes()
    for scale in (0.37, 1.0, 2.083):
        found = scaled(tensor(by_hand.half_open(boxes)), scale)
        np.testing.assert_allclose(found, by_hand.half_open(boxes * scale), rtol=1e-5, atol=1e-4)


def test_levels_are_detectrons() -> None:
    sides = np.array([1, 2, 111, 111.9, 112, 223, 223.99, 224, 225, 447, 448, 895, 896, 897, 5000])
    boxes = np.stack([np.full_like(sides, 3), np.full_like(sides, 5), sides + 2, sides + 4], axis=1)
    boxes = np.concatenate([boxes, adversarial_boxes()])
    root = np.sqrt(by_hand.widths(boxes) * by_hand.heights(boxes))
    expected = np.floor(4 + np.log2(root / 224 + 1e-6)).clip(2, 5) - 2
    # A float32 square root may be below the root of a box that is exactly as large as a level's: none here is.
    np.testing.assert_array_equal(level_of(tensor(by_hand.half_open(boxes)), FPN), expected)
    assert set(expected) == {0, 1, 2, 3}
    assert level_of(tensor(boxes), C4).unique().tolist() == [0]
    only_finest = replace(FPN, rpn_levels=(2,), roi_levels=(2,))
    assert level_of(tensor(boxes), only_finest).unique().tolist() == [0]


def test_a_box_is_looked_at_between_its_first_and_last_pixel() -> None:
    """A map whose values are their own column: bilinear samples of it are their places."""
    column = torch.arange(40.0).expand(1, 1, 30, 40).contiguous()
    rois = torch.tensor([[0, 16.0, 32, 16 + 7 * 16 + 1, 32 + 7 * 16 + 1], [0, 160, 160, 161, 161]])
    found = pooled([column], rois, pooling_of("align", 7, 2), C4)
    # The first has 7 map pixels in each direction: cell i lies about 1 + i + 0.5. The second is one map pixel at least.
    torch.testing.assert_close(found[0, 0, 0], 1.5 + torch.arange(7))
    torch.testing.assert_close(found[1, 0, 0], 10 + (torch.arange(7) + 0.5) / 7)
    (largest,) = pooled([column], rois[:1], pooling_of("max", 7, 0), C4)
    torch.testing.assert_close(largest[0, 0], torch.tensor([2.0, 3, 4, 5, 6, 7, 8]))


def test_a_pair_that_overlaps_by_the_threshold_itself_is_suppressed() -> None:
    # 10 x 10 and its upper half: an IoU of exactly one half; and one of a little less.
    boxes = tensor([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [20, 0, 30, 4.9]])
    scores = tensor([0.9, 0.8, 0.7, 0.6])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, reached(0.5)).tolist() == [0, 2, 3]
    assert by_hand.nms(by_hand.closed(boxes.numpy()), scores.numpy(), 0.5) == [0, 2, 3]


def proposed_by_hand(
    scores: list[np.ndarray], deltas: list[np.ndarray], anchors: list[np.ndarray], size_px: tuple[int, int],
    least_px: float, before: int, after: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """generate_proposals.py of one image, all levels one after the other: boxes and scores."""
    boxes, of_boxes = [], []
    for of_map, deltas_of_map, anchors_of_map in zip(scores, deltas, anchors, strict=True):
        best = np.argsort(-of_map, kind="stable")[:before]
        found = by_hand.clipped(by_hand.decoded(anchors_of_map[best], deltas_of_map[best], (1, 1, 1, 1)), *size_px)
        large = (by_hand.widths(found) >= least_px) & (by_hand.heights(found) >= least_px)
        large &= found[:, 0] + by_hand.widths(found) / 2 < size_px[0]
        large &= found[:, 1] + by_hand.heights(found) / 2 < size_px[1]
        found, left = found[large], of_map[best][large]
        kept = by_hand.nms(found, left, 0.7)[:after]
        boxes.append(found[kept])
        of_boxes.append(left[kept])
    return np.concatenate(boxes), np.concatenate(of_boxes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("before", "after", "scale"), [(60, 60, 1.0), (60, 9, 1.0), (60, 9, 2.5)])
def test_proposals_are_detectrons(training: bool, before: int, after: int, scale: float) -> None:
    settings = replace(
        FPN,
        rpn_collect_scale=scale,
        rpn_before_nms=(before, before),
        rpn_after_nms=(after, after),
        rpn_min_size_px=(4.0, 4.0),
    )
    rng = np.random.default_rng(1)
    cells = cells_of(settings)[:3]
    maps = [torch.zeros(2, 1, *grid) for grid in ((8, 10), (4, 5), (2, 3))]
    anchors = anchors_ltrb_px(cells, maps)
    counts = [3 * each.shape[2] * each.shape[3] for each in maps]
    logits = [rng.normal(0, 2, (2, count)) for count in counts]
    deltas = [rng.normal(0, 0.4, (2, count, 4)) for count in counts]
    sizes = [(40, 32), (33, 30)]
    limits = torch.tensor([[[0, 0, *size]] for size in sizes], dtype=torch.float32)
    least = torch.tensor([[4.0], [6.0]])
    found = propose([*map(tensor, logits)], [*map(tensor, deltas)], anchors, limits, least, settings, training=training)
    of_images = []
    for image in range(2):
        split = [each.numpy() for each in closed(anchors).double().split(counts)]
        scores = [1 / (1 + np.exp(-of_map[image])) for of_map in logits]
        boxes, of_boxes = proposed_by_hand(
            scores, [each[image] for each in deltas], split, sizes[image], float(least[image]), before, after
        )
        of_images.append((boxes, of_boxes))
    # collect_and_distribute_fpn_rpn_proposals.py: in training of all images together.
    if training:
        joined = int(after * scale + 0.5)
        found = join(found, joined)
        every = np.sort(np.concatenate([of_boxes for _, of_boxes in of_images]))[::-1]
        limit = [every[min(joined, len(every)) - 1]] * 2
    else:
        limit = [np.sort(of_boxes)[::-1][min(after, len(of_boxes)) - 1] for _, of_boxes in of_images]
    total = 0
    for image, (boxes, of_boxes) in enumerate(of_images):
        kept = of_boxes >= limit[image]
        order = np.argsort(-of_boxes[kept])
        real = found.real[image]
        total += int(real.sum())
        np.testing.assert_allclose(found.scores[image][real], of_boxes[kept][order], rtol=1e-5)
        np.testing.assert_allclose(
            found.boxes_ltrb_px[image][real], by_hand.half_open(boxes[kept][order]), rtol=1e-4, atol=1e-3
        )
    assert total == (
        min(joined, len(every)) if training else sum(min(after, len(of_boxes)) for _, of_boxes in of_images)
    )


def test_the_best_of_a_batch_are_kept_as_many_as_the_batch_is_large() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.05, 0.02]])
    proposals = Proposals(torch.zeros(2, 3, 4), torch.tensor([[True] * 3, [True, True, False]]), scores)
    assert join(proposals, 3).real.tolist() == [[True, True, False], [True, False, False]]
    assert join(proposals, 9).real.tolist() == proposals.real.tolist()


def test_boxes_of_a_diverging_network_are_none() -> None:
    boxes = torch.tensor(
        [[[5, 5, 4, 9], [5, 5, 9, 9], [50, 5, 90, 9], [float("nan"), 0, 1, 1], [0, 0, 1, float("inf")]]]
    )
    limits = torch.tensor([[[0, 0, 50.0, 50]]])
    assert is_worth_a_look(boxes, limits, 0.0).tolist() == [[False, True, False, False, False]]
    wild = propose(
        [torch.tensor([[0.5, float("nan"), 2.0]])], [torch.full((1, 3, 4), 1e30)], torch.tensor([[0.0, 0, 9, 9]] * 3),
        limits, torch.zeros(1, 1), replace(FPN, rpn_levels=(2,), roi_levels=(2,)), training=True,
    )  # fmt: skip
    sides = wild.boxes_ltrb_px[wild.real][:, 2:] - wild.boxes_ltrb_px[wild.real][:, :2]
    assert wild.boxes_ltrb_px.isfinite().all() and (sides >= 1).all()
