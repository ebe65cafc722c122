"""COCO's metrics of masks and keypoints are pycocotools'; what a model finds of a split reaches them."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from parts_data import POINTS, circle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ssd.batch import EvalBatch, GroundTruth
from ssd.config import EVAL_ENGINES, Config
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps
from ssd.distributed import Ranks
from ssd.evaluation.detect import Results, detect_split
from ssd.evaluation.parts import KEYPOINT_METRIC_NAMES, all_metrics
from ssd.keypoints import Skeleton, sigmas_of
from ssd.masks import pasted, pasted_counts

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
WIDTH, HEIGHT = 320, 240
STONE, ANIMAL = 9, 4
SKELETON = Skeleton(tuple(POINTS), (), (2,))


def truth_of(objects_an_image: int = 5) -> GroundTruth:
    """Ten images with circles of all sizes, a crowd in each, and points on the animals."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for image in range(10):
        for number in range(objects_an_image):
            x, y, radius = rng.uniform(20, 300), rng.uniform(20, 220), rng.uniform(6, 70)
            is_crowd, category = number == 4, [STONE, ANIMAL][number % 2]
            points = np.concatenate([rng.normal((x, y), radius / 2, (5, 2)), rng.integers(0, 3, (5, 1))], axis=1)
            polygon = circle(x, y, radius)
            rle = pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]
            bitmap = pycocotools.mask.decode(rle).ravel(order="F")
            runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[1 - int(bitmap[0])], bitmap, [2]])))).tolist()
            counts = [0, *runs] if bitmap[0] else runs
            rows.append(
                {
                    "id": len(rows) + 1, "image_id": 100 + image, "category_id": category, "iscrowd": int(is_crowd),
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius], "area": float(bitmap.sum()),
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts} if is_crowd else [polygon],
                    "keypoints": points.ravel().tolist() if category == ANIMAL else [0.0] * 15,
                    "num_keypoints": int((points[:, 2] > 0).sum()) if category == ANIMAL else 0,
                }
            )  # fmt: skip
    images = [{"id": 100 + i, "width": WIDTH, "height": HEIGHT} for i in range(10)]
    categories = [{"id": STONE, "name": "stone"}, {"id": ANIMAL, "name": "animal"}]
    return GroundTruth(
        np.arange(100, 110),
        np.array([[WIDTH, HEIGHT]] * 10, dtype=np.int32),
        [STONE, ANIMAL],
        ["stone", "animal"],
        {"images": images, "annotations": rows, "categories": categories},
        SKELETON,
    )


def found_of(truth: GroundTruth, noise: float) -> Results:
    """Two guesses at each object, the worse the more noise, and each of either class."""
    rng = np.random.default_rng(1)
    rows, masks, keypoints = [], [], []
    for row in truth.dataset["annotations"] * 2:
        x, y, width, _ = row["bbox"]
        centre, radius = np.array([x, y]) + width / 2, width / 2
        x, y = centre + rng.normal(0, noise * radius, 2)
        radius *= 1 + abs(rng.normal(0, noise))
        category = row["category_id"] if noise == 0 or rng.random() < 0.8 else STONE
        rows.append([row["image_id"], x - radius, y - radius, 2 * radius, 2 * radius, rng.random(), category])
        masks.append(pycocotools.mask.frPyObjects([circle(x, y, radius)], HEIGHT, WIDTH)[0]["counts"])
        points = np.reshape(row["keypoints"], (5, 3)).copy()
        points[:, :2] += rng.normal(0, noise * radius / 2, (5, 2))
        keypoints.append(points)
    keep = slice(None) if noise else slice(len(rows) // 2)
    return Results(np.array(rows)[keep], masks[keep], np.stack(keypoints)[keep])


def their_stats(truth: GroundTruth, found: Results, kind: str) -> list[float]:
    """pycocotools' own way: results as its files have them, which it completes itself."""
    results = []
    for row, mask, points in zip(found.rows, found.masks or [], found.keypoints, strict=True):  # type: ignore[arg-type]
        each: dict[str, Any] = {"image_id": int(row[0]), "category_id": int(row[6]), "score": row[5]}
        if kind == "segm":
            each["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": mask}
        else:
            each["keypoints"] = np.concatenate([points[:, :2], np.ones((5, 1))], axis=1).ravel().tolist()
        results.append(each)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth.dataset, "annotations": [dict(row) for row in truth.dataset["annotations"]]}
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), kind)
        if kind == "keypoints":
            judge.params.kpt_oks_sigmas = np.array(sigmas_of(SKELETON.names))
            judge.params.catIds = [ANIMAL]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


@pytest.mark.parametrize("engine", EVAL_ENGINES)
def test_metrics_are_pycocotools(engine: str) -> None:
    truth = truth_of()
    found = found_of(truth, 0.2)
    metrics = all_metrics(truth, found, engine)
    segm = [value for name, value in metrics.items() if name.startswith("segm_")]
    points = [value for name, value in metrics.items() if name.startswith("keypoints_")]
    assert (len(segm), len(points)) == (12, len(KEYPOINT_METRIC_NAMES))
    assert segm == pytest.approx(their_stats(truth, found, "segm"), abs=1e-12)
    assert points == pytest.approx(their_stats(truth, found, "keypoints"), abs=1e-12)
    assert 0.1 < metrics["segm_AP"] < 0.9 and 0.1 < metrics["keypoints_AP"] < 0.95
    assert metrics["segm_AP"] != metrics["AP"]
    assert all_metrics(truth, found, engine) == metrics  # nothing was written into the ground truth


def test_a_perfect_detector_has_ap_1_of_each_kind() -> None:
    truth = truth_of(4)
    metrics = all_metrics(truth, found_of(truth, 0))
    for name in ("AP", "segm_AP", "segm_AP75", "keypoints_AP", "keypoints_AR"):
        assert metrics[name] == pytest.approx(1, abs=1e-9), name


def test_boxes_alone_have_boxes_metrics_alone() -> None:
    truth = truth_of()
    found = found_of(truth, 0.2)
    names = all_metrics(truth, replace(found, masks=None, keypoints=None)).keys()
    assert not [name for name in names if name.startswith(("segm", "keypoints"))]
    nan = replace(found, rows=np.where(np.arange(len(found))[:, None] == 3, np.nan, found.rows))
    some = np.arange(len(found)) != 3
    masks = [mask for mask, stays in zip(found.masks or [], some, strict=True) if stays]
    without = Results(found.rows[some], masks, found.keypoints[some])  # type: ignore[index]
    assert all_metrics(truth, nan) == all_metrics(truth, without)


def test_pasted_masks_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 28, 28, generator=generator)
    boxes = torch.rand(20, 4, generator=generator) * torch.tensor([60.0, 40, 60, 40])
    boxes[:, 2:] += boxes[:, :2]
    bitmaps = pasted(masks, boxes, (100, 70))
    assert torch.equal(bitmaps, paste_masks_in_image(masks[:, None], boxes, (70, 100))[:, 0] > 0.5)
    for bitmap, counts in zip(bitmaps, pasted_counts(masks, boxes, (100, 70)), strict=True):
        assert np.array_equal(pycocotools.mask.decode({"size": [70, 100], "counts": counts}), bitmap.numpy())
    assert pasted_counts(masks[:0], boxes[:0], (100, 70)) == []


class Says(nn.Module):
    """An R-CNN that finds one box in the first image, all of it an object, and none in the second."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, seen: Any, about: Any) -> Any:
        if isinstance(about, torch.Tensor):
            boxes = torch.tensor([[[16.0, 8, 48, 24]], [[0, 0, 1, 1]]])
            return CandidatesOfMaps(
                Candidates(boxes, torch.tensor([[0.9], [0.0]]), torch.tensor([[2], [1]])), [torch.zeros(0)]
            )
        batch, count = about.labels.shape
        heatmaps = torch.zeros(batch, count, 5, 56, 56)
        heatmaps[..., 28, 14] = 7  # the middle of the box's height, a quarter of its width
        masks = torch.full((batch, count, 28, 28), 9.0)
        return PartMaps(masks, None) if self.kind == "maskrcnn" else PartMaps(None, heatmaps)


@pytest.mark.parametrize("kind", ["maskrcnn", "keypointrcnn"])
def test_parts_of_a_split(kind: str) -> None:
    """In pixels of the image, which is twice as large as what the model sees."""
    truth = truth_of()
    images = torch.zeros(2, 3, 32, 64)
    batch = EvalBatch(images, torch.tensor([[0, 0, 64, 32]] * 2), torch.tensor([3, 4]))
    truth = truth._replace(sizes_px=np.array([[128, 64]] * 10, dtype=np.int32))
    settings = settings_of(f"{kind}_resnet18_fpn")
    settings = replace(settings, keypoints=tuple(POINTS), keypoint_links=()) if settings.keypoints else settings
    config = Config(detector=settings, max_per_image=3)
    results = detect_split(Says(kind), [batch], truth, config, ALONE)  # type: ignore[arg-type]
    assert results is not None and len(results) == 1
    assert results.rows[0, [0, 1, 2, 3, 4, 6]].tolist() == [103, 32, 16, 64, 32, ANIMAL]
    if kind == "maskrcnn":
        assert results.keypoints is None and results.masks is not None
        mask = pycocotools.mask.decode({"size": [64, 128], "counts": results.masks[0]})
        assert mask[16:48, 32:96].mean() > 0.97 and mask.sum() < 1.1 * 64 * 32
    else:
        assert results.masks is None and results.keypoints is not None and results.keypoints.shape == (1, 5, 3)
        # The cell 14 of 56 begins at a quarter of the width: 32 + 64 / 4. A pixel that the model sees is two of these.
        np.testing.assert_allclose(results.keypoints[0, :, 0], 48.5, atol=2)
        np.testing.assert_allclose(results.keypoints[0, :, 1], 32.5, atol=2)
