"""What both data paths make of masks and keypoints, and what an R-CNN's heads learn of it."""

from itertools import islice

import numpy as np
import pycocotools.mask
import pytest
import torch
from parts_data import POINTS, circle, write
from ragged_data import ALONE, VIEW, train_loader
from torchvision.models.detection.roi_heads import keypoints_to_heatmap, project_masks_on_boxes

from pipelines.annotations import Annotations
from pipelines.object_parts import BITMAP_SIDE, Masks, bitmap_of
from pipelines.ragged.draws import Sample
from pipelines.ragged.order import TrainingOrder
from pipelines.ragged.targets import boxes_and_labels, keypoints_of, masks_of
from pipelines.readers.coco import read_annotations
from ssd.config import DATA_PIPELINES
from ssd.detectors.torchvision.rcnn.parts import keypoint_targets, mask_targets
from ssd.views import ObjectParts

PARTS = ObjectParts(masks=True, keypoints=True)
VIEW_OF_PARTS = VIEW._replace(parts=PARTS)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return read_annotations(write(tmp_path_factory.mktemp("parts") / "data"), "train", PARTS)


def whole(bitmap: np.ndarray, window: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """The bitmap where it lies in its image: each pixel as the bitmap has its middle."""
    width, height = size_px
    at = [
        np.floor((np.arange(side) + 0.5 - window[i]) / (window[i + 2] - window[i]) * BITMAP_SIDE).astype(int)
        for i, side in enumerate((width, height))
    ]
    inside = [(each >= 0) & (each < BITMAP_SIDE) for each in at]
    picture = bitmap[np.ix_(at[1].clip(0, BITMAP_SIDE - 1), at[0].clip(0, BITMAP_SIDE - 1))]
    return picture * inside[1][:, None] * inside[0]


def stated(split: Annotations, i: int) -> np.ndarray:
    """Object i's mask by pycocotools, height x width."""
    width, height = split.sizes_px[split.image_of_box()[i]].tolist()
    segmentation = split.masks.segmentation(i, (width, height))  # type: ignore[union-attr]
    rle = pycocotools.mask.frPyObjects(segmentation, height, width)
    return pycocotools.mask.decode(pycocotools.mask.merge(rle) if isinstance(rle, list) else rle)


def test_bitmaps_are_the_masks(split: Annotations) -> None:
    """Of run lengths exactly. Of polygons but for the pixels of the edge, which pycocotools rounds at another scale."""
    assert split.masks is not None
    for i in range(5):
        size_px = tuple(split.sizes_px[split.image_of_box()[i]].tolist())
        bitmap, window = bitmap_of(split.masks, i, size_px)
        assert bitmap.shape == (BITMAP_SIDE, BITMAP_SIDE) and bitmap.dtype == np.uint8
        assert not bitmap[[0, -1]].any() and not bitmap[:, [0, -1]].any()
        expected = stated(split, i)
        differ = (whole(bitmap, window, size_px) != expected).sum()
        assert differ == 0 if split.masks.is_rle[i] else differ < 0.05 * expected.sum()


def test_a_window_is_the_masks_own_extent(split: Annotations) -> None:
    """12: columns 5 to 14 and rows 10 to 29. 15: a circle of radius 10 about (38, 40) in an image 40 wide."""
    pixel = 1 / (BITMAP_SIDE - 2)
    _, window = bitmap_of(split.masks, 1, (30, 40))  # type: ignore[arg-type]
    np.testing.assert_allclose(window, [5 - 10 * pixel, 10 - 20 * pixel, 15 + 10 * pixel, 30 + 20 * pixel])
    _, window = bitmap_of(split.masks, 4, (40, 60))  # type: ignore[arg-type]
    np.testing.assert_allclose(window, [28 - 12 * pixel, 30 - 20 * pixel, 40 + 12 * pixel, 50 + 20 * pixel])


@pytest.mark.parametrize("polygon", [[60.0, 60, 70, 60, 70, 70], [5.0, 5, 5, 5, 5, 5], [3.0, 3, 20, 3, 40, 3]])
def test_masks_of_nothing_are_bitmaps_too(polygon: list[float]) -> None:
    masks = Masks(np.array([0, 1]), np.array([0, 6]), np.array(polygon), np.array([False]))
    bitmap, window = bitmap_of(masks, 0, (48, 32))
    assert bitmap.shape == (BITMAP_SIDE, BITMAP_SIDE) and (window[2:] > window[:2]).all() and np.isfinite(window).all()


def test_flipped_masks_and_points_are_the_flipped_pictures(split: Annotations) -> None:
    """Object 11: its nose at (10, 12) of 48 x 32 is at (76, 24) of 96 x 64 flipped; left and right are exchanged."""
    plain, flipped = (Sample(0, (96, 64), flip) for flip in (False, True))
    (bitmaps, windows), (other, other_windows) = (masks_of(split, sample) for sample in (plain, flipped))
    assert np.array_equal(bitmaps[:, :, ::-1], other)
    np.testing.assert_allclose(other_windows[:, [0, 2]], 96 - windows[:, [2, 0]], rtol=1e-6)
    assert np.array_equal(other_windows[:, [1, 3]], windows[:, [1, 3]])
    points, mirrored = keypoints_of(split, plain)[0], keypoints_of(split, flipped)[0]
    assert points.tolist() == [[20, 24, 2], [17, 22, 1], [24, 22, 2], [0, 0, 0], [26, 40, 2]]
    names = dict(zip(POINTS, mirrored.tolist(), strict=True))
    assert names["nose"] == [76, 24, 2] and names["right_eye"] == [79, 22, 1] and names["left_eye"] == [72, 22, 2]
    assert names["left_foot"] == [70, 40, 2] and names["right_foot"][2] == 0
    assert len(boxes_and_labels(split, plain)[0]) == len(bitmaps) == 1


def test_crowds_have_neither(split: Annotations) -> None:
    bitmaps, windows = masks_of(split, Sample(2, (64, 64), False))
    assert bitmaps.shape == (0, BITMAP_SIDE, BITMAP_SIDE) and windows.shape == (0, 4)
    assert keypoints_of(split, Sample(2, (64, 64), False)).shape == (0, len(POINTS), 3)


@pytest.mark.parametrize("name", DATA_PIPELINES)
def test_batches_have_their_objects_parts(name: str, split: Annotations) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    order = TrainingOrder(split, VIEW_OF_PARTS, batch_size=2, seed=3, ranks=ALONE)
    batches = train_loader(name, split, VIEW_OF_PARTS).batches(0)
    for batch, step in islice(zip(batches, order.steps((0, 0)), strict=False), 4):
        masks = [masks_of(split, sample) for sample in step.samples]
        assert batch.masks.shape == (len(batch.labels), BITMAP_SIDE, BITMAP_SIDE)
        assert np.array_equal(batch.masks.numpy(), np.concatenate([bitmaps for bitmaps, _ in masks]))
        assert np.array_equal(batch.mask_windows_ltrb_px.numpy(), np.concatenate([window for _, window in masks]))
        points = np.concatenate([keypoints_of(split, sample) for sample in step.samples])
        assert np.array_equal(batch.keypoints_px.numpy(), points) and batch.keypoints_px.dtype == torch.float32
        parts = batch.split(2)
        assert torch.equal(torch.cat([part.masks for part in parts]), batch.masks)
        assert torch.equal(torch.cat([part.keypoints_px for part in parts]), batch.keypoints_px)
    plain = next(train_loader(name, split).batches(0))
    assert plain.masks is None and plain.mask_windows_ltrb_px is None and plain.keypoints_px is None


def polygon_rule(polygons: list[list[float]], box_ltrb: np.ndarray, side: int) -> np.ndarray:
    """Detectron's target: polygons moved and scaled to the box, and drawn by pycocotools at the target's own size."""
    left, top, right, bottom = box_ltrb
    scale = np.array([side / (right - left), side / (bottom - top)])
    scaled = [((np.reshape(each, (-1, 2)) - (left, top)) * scale).ravel().tolist() for each in polygons]
    return pycocotools.mask.decode(pycocotools.mask.merge(pycocotools.mask.frPyObjects(scaled, side, side)))


def test_mask_targets_are_the_polygons_and_torchvisions() -> None:
    """Over boxes that overlap the object by half or more. Of two circles in 400 x 300 pixels, whose edges are what may
    differ: at most 3 of 100 cells from the drawn polygon, of which 2 are on the edge by any rule, and 0.006 on average
    from torchvision's targets, which come of a bitmap of the whole image."""
    polygons = [circle(120, 110, 60), circle(230, 160, 75)]
    numbers = np.concatenate(polygons)
    masks = Masks(np.array([0, 2]), np.array([0, 48, 96]), numbers, np.array([False]))
    bitmap, window = bitmap_of(masks, 0, (400, 300))
    whole_image = pycocotools.mask.decode(pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, 300, 400)))
    rng = np.random.default_rng(0)
    own = np.array([60.0, 50, 305, 235])
    boxes = torch.tensor(own + rng.uniform(-35, 35, (40, 4)), dtype=torch.float32)
    targets = mask_targets(
        torch.from_numpy(bitmap)[None], torch.from_numpy(window).float()[None], torch.zeros(40, dtype=torch.int64),
        boxes, 28,
    )  # fmt: skip
    theirs = project_masks_on_boxes(torch.from_numpy(whole_image)[None], boxes, torch.zeros(40, dtype=torch.int64), 28)
    assert 0.3 < targets.mean() < 0.8
    assert (targets - theirs).abs().mean() < 0.006
    drawn = np.stack([polygon_rule(polygons, box, 28) for box in boxes.double().numpy() + 0.5])
    assert ((targets > 0.5).numpy() != drawn).mean() < 0.03


def test_mask_targets_beyond_the_object_are_background() -> None:
    """A square that fills its window; a box twice as wide has it in its left half."""
    masks = torch.zeros(2, 22, 22, dtype=torch.uint8)
    masks[1, 1:-1, 1:-1] = 1
    windows = torch.tensor([[0.0, 0, 9, 9], [8.0, 8, 52, 52]])
    # Half a pixel is where torchvision has it.
    boxes = torch.tensor([[9.5, 9.5, 89.5, 49.5]])
    (target,) = mask_targets(masks, windows, torch.tensor([1]), boxes, 8)
    expected = torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], dim=1)
    # On the edges a sample may lie between a pixel of the object and one that is none.
    torch.testing.assert_close(target, expected, rtol=0, atol=0.1)
    assert torch.equal(target[1:-1, :3], torch.ones(6, 3)) and not target[:, 5:].any()


def test_keypoint_targets_are_torchvisions() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.tensor(rng.uniform(0, 40, (60, 2)), dtype=torch.float32)
    boxes = torch.cat([boxes, boxes + torch.tensor(rng.uniform(5, 60, (60, 2)), dtype=torch.float32)], dim=1)
    points = torch.tensor(
        np.concatenate([rng.uniform(-5, 100, (60, 7, 2)), rng.integers(0, 3, (60, 7, 1))], axis=2), dtype=torch.float32
    )
    points[:, 0, :2], points[:, 1, 0], points[:, 2, :2] = boxes[:, 2:], boxes[:, 2], boxes[:, :2]
    cells, counted = keypoint_targets(points, boxes, 56)
    theirs, valid = keypoints_to_heatmap(points, boxes, 56)
    assert torch.equal(counted, valid.bool()) and 100 < counted.sum() < 300
    assert torch.equal(torch.where(counted, cells, 0), theirs)
