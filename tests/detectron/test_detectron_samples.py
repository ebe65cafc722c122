"""Which anchors and proposals have a loss, and the losses, are what Detectron's rules, written once more in numpy,
say."""

from dataclasses import replace
from typing import Any

import detectron_by_hand as by_hand
import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import Tensor

from pipelines.object_parts import Masks, bitmap_of
from ssd.batch import EvalBatch, RaggedBatch
from ssd.boxes import pairwise_iou
from ssd.detectors.detectron.rcnn.boxes import closed
from ssd.detectors.detectron.rcnn.losses import box_losses, keypoint_loss, mask_targets, rpn_losses
from ssd.detectors.detectron.rcnn.rois import objects_of_masks, sample_keypoint_rois, sample_rois
from ssd.detectors.detectron.rcnn.rpn import AnchorSamples, sample_anchors
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.targets import placement_of, targets_of
from ssd.detectors.torchvision import targets as torchvision_targets
from ssd.detectors.torchvision.rcnn.parts import keypoint_targets, mask_loss
from ssd.detectors.torchvision.rcnn.proposals import Proposals
from ssd.detectors.torchvision.targets import Targets

FPN = DetectronSettings()
ONE_MAP = replace(FPN, maps="C4", box_head="res5", box_pooled=14, box_sampling=0)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def targets_for(*boxes: list[list[float]], size_px: tuple[int, int] = (100, 80), **parts: Any) -> Targets:
    """boxes: half-open, of each image."""
    every = torch.tensor([box for of_image in boxes for box in of_image]).view(-1, 4)
    labels = torch.arange(1, 1 + len(every))
    return Targets(every, labels, tuple(map(len, boxes)), (size_px,) * len(boxes), **parts)


def grid_anchors() -> Tensor:
    """Half-open, some of them beyond an image of 100 x 80 pixels."""
    lefts, tops = np.meshgrid(np.arange(-16, 112, 4), np.arange(-16, 96, 4))
    corners = np.stack([lefts.ravel(), tops.ravel()], axis=1)
    return tensor(np.concatenate([np.concatenate([corners, corners + side], axis=1) for side in (16, 32)]))


# Large, small, one that no anchor overlaps by 0.7 or even by 0.3, and the first once more, which nothing learns.
BOXES = [[8.0, 8, 40, 40], [50, 20, 66, 36], [70, 70, 73, 72], [8, 8, 40, 40]]


def anchor_labels(anchors: np.ndarray, boxes: np.ndarray, size_px: tuple[int, int], straddle: float) -> np.ndarray:
    """data_utils and rpn.py up to the draws: 1 positive, 0 may be background, 2 both, -1 neither."""
    inside = np.ones(len(anchors), dtype=bool)
    if straddle >= 0:
        inside = (anchors[:, 0] >= -straddle) & (anchors[:, 1] >= -straddle)
        inside &= (anchors[:, 2] < size_px[0] + straddle) & (anchors[:, 3] < size_px[1] + straddle)
    labels = np.full(len(anchors), -1)
    iou = by_hand.iou(anchors[inside], boxes)
    best = iou.max(axis=1)
    positive = (best >= 0.7) | (iou == iou.max(axis=0)).any(axis=1)
    background = best < 0.3
    labels[inside] = np.where(positive & background, 2, np.where(positive, 1, np.where(background, 0, -1)))
    return labels


@pytest.mark.parametrize("at_once", [64, 2, 1])
@pytest.mark.parametrize("straddle", [0.0, 8.0, -1.0])
def test_anchors_are_labelled_as_detectron_labels_them(
    straddle: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many boxes are compared with the anchors at once."""
    seen: list[int] = []

    def counted(boxes: Tensor, anchors: Tensor) -> Tensor:
        seen.append(len(boxes))
        return pairwise_iou(boxes, anchors)

    monkeypatch.setattr(torchvision_targets, "BOXES_AT_ONCE", at_once)
    monkeypatch.setattr(torchvision_targets, "pairwise_iou", counted)
    anchors = grid_anchors()
    labels = anchor_labels(by_hand.closed(anchors.numpy()), by_hand.closed(np.array(BOXES)), (100, 80), straddle)
    assert {-1, 0, 1, 2} == set(labels)
    settings = replace(FPN, straddle_px=straddle, rpn_samples=4 * len(anchors))  # enough for all
    found = sample_anchors(targets_for(BOXES), anchors, settings)
    assert sum(seen) == len(BOXES) and max(seen) <= at_once
    is_object, is_counted = (np.zeros(len(anchors), dtype=bool) for _ in range(2))
    is_counted[found.anchor[0][found.counted[0]]] = True
    is_object[found.anchor[0][found.is_object[0]]] = True
    np.testing.assert_array_equal(is_counted, labels >= 0)
    # Those that may be either were drawn as background, as all were.
    np.testing.assert_array_equal(is_object, labels == 1)
    expected = by_hand.iou(by_hand.closed(anchors.numpy()), by_hand.closed(np.array(BOXES))).argmax(axis=1)
    rows = found.is_object[0]
    np.testing.assert_array_equal(found.matched[0][rows], expected[found.anchor[0][rows]])


def test_half_of_the_samples_are_objects_and_background_is_drawn_with_replacement() -> None:
    anchors = grid_anchors().repeat(3, 1)
    labels = anchor_labels(by_hand.closed(anchors.numpy()), by_hand.closed(np.array(BOXES)), (100, 80), 0)
    assert (labels > 0).sum() > 8
    settings, counts = replace(FPN, rpn_samples=16), []
    for seed in range(40):
        torch.manual_seed(seed)
        found = sample_anchors(targets_for(BOXES), anchors, settings)
        assert found.is_object.sum() <= 8 and found.counted.sum() <= 16
        place = found.anchor[0][found.counted[0]]
        assert len(place.unique()) == len(place)
        assert (labels[place[found.is_object[0][found.counted[0]]]] > 0).all()
        counts.append(int(found.counted.sum()))
    # Of 8 draws out of some 1500 hardly any is twice; but all together are not always 16.
    assert np.mean(counts) > 14
    few = replace(FPN, rpn_samples=1000, rpn_positive_share=0.0)
    torch.manual_seed(0)
    candidates = int((labels == 0).sum() + (labels == 2).sum())
    distinct = int(sample_anchors(targets_for(BOXES), anchors, few).counted.sum())
    expected = candidates * (1 - (1 - 1 / candidates) ** 1000)
    assert candidates > 1000 and abs(distinct - expected) < 60  # far from the 1000 of draws without replacement


def test_a_box_that_no_anchor_overlaps_makes_all_that_do_not_overlap_it_positive() -> None:
    anchors = tensor([[0, 0, 16, 16], [40, 40, 56, 56]])
    found = sample_anchors(targets_for([[90.0, 70, 95, 75]]), anchors, replace(FPN, rpn_negative_iou=0.0))
    assert found.is_object.all() and found.counted.all()


def test_images_without_boxes_are_background() -> None:
    found = sample_anchors(targets_for(BOXES, []), grid_anchors(), FPN)
    assert not found.is_object[1].any() and found.counted[1].sum() > 100
    none = sample_anchors(targets_for([], []), grid_anchors(), FPN)
    assert not none.is_object.any() and none.counted.any(dim=1).all()


def proposals_for(boxes: list[list[float]], batch: int = 1) -> Proposals:
    every = torch.tensor(boxes).expand(batch, -1, -1)
    return Proposals(every, torch.ones(every.shape[:2], dtype=torch.bool), torch.ones(every.shape[:2]))


def test_boxes_are_sampled_by_their_overlap() -> None:
    box = [0.0, 0, 10, 10]
    # IoU 1, one half exactly, just less, 0.2, 0.1 exactly, 0.09, none, and one that only fills up.
    boxes = [
        box,
        [0, 0, 10, 5.0],
        [0, 0, 10, 4.9],
        [0, 0, 10, 2],
        [0, 0, 10, 1],
        [0, 0, 10, 0.9],
        [20, 20, 30, 30],
        box,
    ]
    proposals = proposals_for(boxes)
    proposals.real[0, -1] = False
    targets = targets_for([box])._replace(labels=torch.tensor([3]))
    found = sample_rois(proposals, targets, FPN)
    assert found.counted.sum() == 7
    assert sorted(found.labels[found.counted].tolist()) == [0, 0, 0, 0, 0, 3, 3]
    far = sample_rois(proposals, targets, replace(FPN, roi_negative_iou=(0.1, 0.5)))
    assert sorted(far.labels[far.counted].tolist()) == [0, 0, 0, 3, 3]
    few = sample_rois(proposals, targets, replace(FPN, roi_samples=4))
    assert sorted(few.labels.tolist()) == [0, 0, 0, 3] and few.counted.all()
    strict = sample_rois(proposals, targets, replace(FPN, roi_positive_iou=0.6))
    assert sorted(strict.labels[strict.counted].tolist()) == [0] * 5 + [3]  # 0.5 is neither


def test_keypoints_are_learned_from_boxes_with_a_stated_point_in_them() -> None:
    box = [10.0, 10, 31, 31]
    points = torch.zeros(2, 2, 3)
    points[0] = torch.tensor([[12.0, 12, 1], [25, 25, 0]])  # of which the second is not stated
    points[1] = torch.tensor([[300.0, 300, 2], [5, 5, 2]])  # outside of every box
    targets = targets_for([box, [40, 40, 60, 60]], keypoints_px=points)
    near = [[10.0, 10, 31, 31], [12, 12, 31, 31], [12.1, 12, 31, 31], [10, 10, 31, 13], [40, 40, 60, 60]]
    found = sample_keypoint_rois(proposals_for(near), targets, FPN)
    assert found.rois[found.counted][:, 1:3].sort(dim=0).values.tolist() == [[10, 10], [12, 12]]
    assert set(found.matched[found.counted].tolist()) == {0}
    assert len(sample_keypoint_rois(proposals_for(near), targets, replace(FPN, roi_samples=4)).rois) == 1


def smooth_l1(values: np.ndarray, beta: float) -> np.ndarray:
    size = np.abs(values)
    return np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta).sum(axis=-1)


@pytest.mark.parametrize("settings", [replace(FPN, rpn_samples=6), replace(ONE_MAP, rpn_samples=6)])
def test_losses_of_anchors_divide_as_detectron_does(settings: DetectronSettings) -> None:
    rng = np.random.default_rng(0)
    anchors = by_hand.half_open(np.tile(np.array([[0, 0, 15, 15], [8, 4, 39, 35]]), (2, 3, 1)).astype(float))
    boxes = by_hand.half_open(np.tile(np.array([2.0, 3, 20, 30]), (2, 6, 1)))
    logits, offsets = rng.normal(0, 3, (2, 6)), rng.normal(0, 0.3, (2, 6, 4))
    counted = np.array([[True] * 6, [True, True, False, False, True, False]])
    is_object = np.array([[True, False, True, False, False, False], [False, True, False, False, False, False]])
    samples = AnchorSamples(torch.zeros(2, 6), torch.tensor(counted), torch.tensor(is_object), torch.zeros(2, 6))
    found = rpn_losses(tensor(logits), tensor(offsets), samples, tensor(boxes), tensor(anchors), settings)
    cross = np.where(is_object, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))[counted].sum()
    divisor = counted.sum() if settings.maps == "C4" else 2 * 6
    of_boxes = []
    for image in range(2):
        rows = is_object[image]
        wanted = by_hand.encoded(by_hand.closed(anchors[image][rows]), by_hand.closed(boxes[image][rows]), (1, 1, 1, 1))
        of_boxes.append(smooth_l1(offsets[image][rows] - wanted, 1 / 9).sum() / counted[image].sum())
    assert found["loss_objectness"].item() == pytest.approx(cross / divisor, rel=1e-4)
    assert found["loss_rpn_box_reg"].item() == pytest.approx(np.mean(of_boxes), rel=1e-3)


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_of_boxes_are_means_over_all_samples(agnostic: bool) -> None:
    settings = replace(FPN, class_agnostic_boxes=agnostic)
    rng = np.random.default_rng(0)
    boxes, learned = np.array([[0, 0, 15, 15], [8, 4, 39, 35]] * 3), np.array([[2, 3, 20, 30]] * 6)
    labels, counted = np.array([0, 2, 1, 0, 3, 3]), np.array([True, True, True, True, True, False])
    logits, offsets = rng.normal(0, 1, (6, 4)), rng.normal(0, 2, (6, 2 if agnostic else 4, 4))
    found = box_losses(
        tensor(logits), tensor(offsets), torch.tensor(labels), torch.tensor(counted),
        tensor(by_hand.half_open(learned)), tensor(by_hand.half_open(boxes)), settings,
    )  # fmt: skip
    wanted = by_hand.encoded(boxes, learned, (10, 10, 5, 5))
    own = offsets[np.arange(6), labels.clip(max=1) if agnostic else labels]
    rows = counted & (labels > 0)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert found["loss_box_reg"].item() == pytest.approx(smooth_l1(own[rows] - wanted[rows], 1.0).sum() / 5, rel=1e-4)
    of_classes = -log_softmax[np.arange(6), labels][counted].mean()
    assert found["loss_classifier"].item() == pytest.approx(of_classes, rel=1e-5)
    assert labels.tolist() == [0, 2, 1, 0, 3, 3]  # one box for all classes leaves the classes as they are


def rasterised(polygons: list[np.ndarray], box: np.ndarray, side: int) -> np.ndarray:
    """segms.py's polys_to_mask_wrt_box of a closed box."""
    width, height = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
    moved = [
        ((each.reshape(-1, 2) - box[:2]) * (side / np.array([width, height]))).ravel().tolist() for each in polygons
    ]
    return np.asarray(pycocotools.mask.decode(pycocotools.mask.merge(pycocotools.mask.frPyObjects(moved, side, side))))


def test_masks_are_those_of_polygons_in_a_box_but_for_the_border() -> None:
    rng = np.random.default_rng(0)
    wrong = covered = balance = 0
    for number in range(60):
        corners = int(rng.integers(3, 12))
        angle = np.sort(rng.random(corners)) * 2 * np.pi
        radius = rng.uniform(0.3, 1, corners) * rng.uniform(2, 150)
        points = rng.uniform(160, 300, 2) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        polygons = [points.ravel()]
        if number % 3 == 0:  # a second part
            polygons.append((points[:3] + 10).ravel())
        numbers = np.concatenate(polygons)
        starts = np.cumsum([0, *map(len, polygons)])
        masks = Masks(np.array([0, len(polygons)]), starts, numbers, np.array([False]))
        bitmap, window = bitmap_of(masks, 0, (500, 500))
        every = np.concatenate([each.reshape(-1, 2) for each in polygons])
        sides = every.max(axis=0) - every.min(axis=0)
        box = np.concatenate([every.min(axis=0), every.max(axis=0)]) + rng.uniform(-0.15, 0.15, 4) * np.tile(sides, 2)
        expected = rasterised(polygons, box, 28)
        found = mask_targets(
            torch.tensor(bitmap).unsqueeze(0), tensor(window[None]), torch.tensor([0]), tensor(box[None]), 28
        )[0].numpy()
        assert set(np.unique(found)) <= {0.0, 1.0}
        wrong += (found != expected).sum()
        covered += ((found > 0) | (expected > 0)).sum()
        balance += found.sum() - expected.sum()
    assert covered > 10_000 and wrong / covered < 0.03 and abs(balance) / covered < 0.01


def test_a_mask_is_learned_of_the_object_whose_polygons_a_box_overlaps_most() -> None:
    """Not of the one whose stated box it overlaps most: the first's is far larger than its polygon."""
    stated = [[0.0, 0, 40, 40], [0, 0, 60, 60]]
    polygons = np.array([[2.0, 2, 12, 12], [5, 5, 39, 38], [0, 0, 40, 40]])
    frame = np.array([-1, -1, 1, 1]) * np.tile((polygons[:, 2:] - polygons[:, :2]) / 110, 2)
    parts = {"masks": torch.ones(3, 112, 112, dtype=torch.uint8), "mask_windows_ltrb_px": tensor(polygons + frame)}
    targets = targets_for(stated, [[0.0, 0, 40, 40]], **parts)
    boxes = [[0.0, 0, 40, 40], [1, 1, 14, 14], [30, 30, 60, 60]]
    both = Proposals(tensor([boxes] * 2), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3))
    rois = sample_rois(both, targets, replace(FPN, roi_positive_iou=0.1, roi_negative_iou=(0.0, 0.1)))
    rois = rois.take(rois.counted.nonzero().squeeze(1))
    assert len(rois.rois) == 6
    iou = by_hand.iou(by_hand.closed(rois.rois[:, 1:].double().numpy()), polygons)
    iou[np.array(rois.rois[:, 0])[:, None] != [0, 0, 1]] = -1
    found = objects_of_masks(rois, targets, FPN)
    np.testing.assert_array_equal(found, iou.argmax(axis=1))
    (first,) = (rois.rois == torch.tensor([0.0, *boxes[0]])).all(dim=1).nonzero().flatten().tolist()
    assert (rois.matched[first], found[first]) == (0, 1)
    # Run lengths of nothing: their window is the image, and they are learned where nothing else is there.
    empty = parts["masks"].clone()
    empty[[1, 2]] = 0
    found = objects_of_masks(rois, targets._replace(masks=empty), FPN)
    assert torch.equal(found, torch.where(rois.rois[:, 0] == 0, 0, rois.matched))
    none = targets._replace(masks=parts["masks"][:0])
    assert torch.equal(objects_of_masks(rois, none, FPN), rois.matched)


def test_a_box_of_one_pixel_sees_a_pixel_of_the_mask() -> None:
    """In Detectron a box's side is one pixel at least where it is divided by it."""
    bitmap = torch.zeros(1, 12, 12, dtype=torch.uint8)
    bitmap[:, 1:-1, 1:-1] = 1
    found = mask_targets(bitmap, tensor([[-1, -1, 11, 11]]), torch.tensor([0]), tensor([[9, 4, 9, 4]]), 4)
    assert found[0].tolist() == [[1, 1, 1, 1]] * 4
    beyond = mask_targets(bitmap, tensor([[-1, -1, 11, 11]]), torch.tensor([0]), tensor([[8, 4, 12, 4]]), 4)
    assert beyond[0].tolist() == [[1, 1, 0, 0]] * 4
    empty = mask_targets(bitmap[:0], tensor(np.zeros((0, 4))), torch.tensor([-1]), tensor([[8, 4, 12, 4]]), 4)
    assert empty.tolist() == [[[0] * 4] * 4]


def test_points_lie_in_the_cells_that_detectron_says() -> None:
    box = np.array([10.0, 20, 38, 76])  # closed: 28 and 56 wide without the last pixel
    points = np.array(
        [
            [10, 20, 2],
            [37.9, 75.9, 1],
            [38, 76, 2],
            [38.01, 30, 2],
            [9.99, 30, 2],
            [24, 48, 0],
            [24, 48, 1],
            [10.5, 76, 1],
        ]
    )
    cells, inside = keypoint_targets(tensor(points[None]), closed(tensor(by_hand.half_open(box)[None])), 56)
    for (x, y, stated), cell, is_inside in zip(points, cells[0].tolist(), inside[0].tolist(), strict=True):
        column = 55 if x == box[2] else np.floor((x - box[0]) * 56 / (box[2] - box[0]))
        row = 55 if y == box[3] else np.floor((y - box[1]) * 56 / (box[3] - box[1]))
        expected = stated > 0 and 0 <= column < 56 and 0 <= row < 56
        assert is_inside == expected
        assert not expected or cell == row * 56 + column


def test_losses_of_points_are_means_of_those_stated_or_of_all_that_might_be() -> None:
    logits = tensor(np.random.default_rng(0).normal(0, 1, (2, 3, 4, 4)))
    cells, counted = torch.tensor([[1, 5, 15], [0, 2, 3]]), torch.tensor([[True, False, True], [False, False, True]])
    flat = logits.flatten(2).double().numpy()
    each = np.log(np.exp(flat).sum(axis=2)) - np.take_along_axis(flat, cells.numpy()[..., None], 2)[..., 0]
    total = each[counted.numpy()].sum()
    assert keypoint_loss(logits, cells, counted, 2, FPN).item() == pytest.approx(total / 3, rel=1e-5)
    fixed = replace(FPN, keypoint_by_visible=False)
    assert keypoint_loss(logits, cells, counted, 2, fixed).item() == pytest.approx(
        total / (2 * 512 * 0.25 * 3), rel=1e-5
    )
    for settings in (FPN, fixed):  # 0 with a gradient where no point is stated
        logits.requires_grad_()
        nothing = keypoint_loss(logits, cells, counted & False, 2, settings)
        nothing.backward()
        assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()
    masks = torch.zeros(1, 2, 4, 4, requires_grad=True)
    assert mask_loss(masks, torch.tensor([1]), torch.zeros(1, 4, 4), torch.tensor([False])).item() == 0


def test_boxes_become_ranges_of_pixels_at_the_edge() -> None:
    """A box of COCO's, x y w h = 10 20 30 40, has the pixels 10 to 39; scaled by 2.5, 25 to 97.5."""
    boxes = tensor([[25, 50, 100, 150], [25, 50, 100, 150]])
    batch = RaggedBatch(
        torch.zeros(2, 3, 8, 8), torch.tensor([[250, 250]] * 2), boxes, torch.ones(2, dtype=torch.int64),
        torch.tensor([1, 1]), torch.arange(2), scales=torch.tensor([2.5, 0.5], dtype=torch.float64),
    )  # fmt: skip
    targets = targets_of(batch)
    assert targets.boxes_ltrb_px[0].tolist() == [25, 50, 39 * 2.5 + 1, 59 * 2.5 + 1]
    assert targets.boxes_ltrb_px[1].tolist() == [25, 50, 199 * 0.5 + 1, 299 * 0.5 + 1]
    assert targets.scales == (2.5, 0.5)
    assert targets_of(batch._replace(scales=None)).boxes_ltrb_px.tolist() == boxes.tolist()


def test_proposals_are_cut_to_a_window_that_no_other_image_of_the_batch_changes() -> None:
    placed = torch.tensor([[0, 0, 90, 64], [0, 0, 33, 20]])
    batch = EvalBatch(torch.zeros(2, 3, 64, 96), placed, torch.arange(2))
    assert placement_of(batch, FPN).limits_px[:, 0].tolist() == [[96, 64, 96, 64], [64, 32, 64, 32]]
    assert placement_of(batch, ONE_MAP).limits_px[:, 0].tolist() == [[90, 64, 90, 64], [33, 20, 33, 20]]
    scales, stated = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([[181, 128], [17, 10]])
    where = placement_of(batch._replace(scales=scales, stated_px=stated), FPN)
    assert where.scales.flatten().tolist() == [0.5, 2] and where.stated_limits_px[0, 0].tolist() == [181, 128, 181, 128]
