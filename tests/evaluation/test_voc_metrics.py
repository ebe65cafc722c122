"""PASCAL VOC's metrics: by hand, and beside a second implementation written from VOC's rules alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd.batch import GroundTruth
from ssd.config import METRICS
from ssd.evaluation.detect import Results
from ssd.evaluation.metrics import DECIDING, metrics_of
from ssd.evaluation.voc import voc_metrics, write_comp4


def ground_truth(rows: list[dict[str, Any]], images: int, classes: int) -> GroundTruth:
    image_ids = np.arange(1, images + 1)
    category_ids = list(range(1, classes + 1))
    names = [f"kind {number}" for number in category_ids]
    annotations = [
        {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, "category_id": 1, "image_id": 1, **row}
        for number, row in enumerate(rows, 1)
    ]
    dataset = {
        "images": [{"id": int(image), "width": 100, "height": 100, "file_name": f"{image}.jpg"} for image in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in zip(category_ids, names, strict=True)],
    }
    return GroundTruth(image_ids, np.full((images, 2), 100, np.int32), category_ids, names, dataset)


def results(*rows: tuple[float, ...]) -> np.ndarray:
    """(x, y, width, height, score) in the first image, of the first class."""
    return np.array([(1, *row, 1) for row in rows], dtype=float).reshape(-1, 7)


ONE, TWO = {"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 10, 10]}


def test_two_objects_by_hand() -> None:
    """Right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1. Six of eleven recalls are at most 1/2."""
    truth = ground_truth([ONE, TWO], 1, 1)
    found = results((0, 0, 10, 10, 0.9), (30, 30, 9, 9, 0.8), (50, 50, 10, 10, 0.7))
    assert voc_metrics(truth, found, "voc07")["VOC07"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert voc_metrics(truth, found, "voc07")["VOC07"] == pytest.approx(0.848485, abs=1e-6)
    assert voc_metrics(truth, found, "voc12")["VOC12"] == pytest.approx((1 + 2 / 3) / 2)


def test_an_object_is_found_once_and_above_one_half() -> None:
    truth = ground_truth([ONE], 1, 1)
    twice = results((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8))
    assert voc_metrics(truth, twice, "voc12")["VOC12"] == 1
    half = results((0, 0, 10, 5, 0.9), (0, 0, 10, 5.01, 0.8))  # an IoU of exactly 1/2 is too little
    assert voc_metrics(truth, half, "voc12")["VOC12"] == pytest.approx(0.5)


def test_the_most_similar_object_counts_even_if_it_is_taken_or_difficult() -> None:
    """The second detection overlaps both, the first object more: it is wrong, although the second is not found."""
    truth = ground_truth([{"bbox": [0, 0, 10, 10]}, {"bbox": [0, 0, 10, 8]}], 1, 1)
    found = results((0, 0, 10, 10, 0.9), (0, 0, 10, 9.5, 0.8))
    assert voc_metrics(truth, found, "voc12")["VOC12"] == pytest.approx(0.5)
    truth = ground_truth([{"bbox": [0, 0, 10, 10], "iscrowd": 1}, TWO], 1, 1)
    found = results((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.85), (50, 50, 10, 10, 0.8))
    assert voc_metrics(truth, found, "voc12")["VOC12"] == 1  # neither right nor wrong, however often


def test_classes_without_detections_or_objects() -> None:
    truth = ground_truth([ONE, {**TWO, "category_id": 2}, {**TWO, "category_id": 3, "iscrowd": 1}], 1, 3)
    found = voc_metrics(truth, results((0, 0, 10, 10, 0.9)), "voc07")
    assert found["VOC07_per_class"] == {"kind 1": pytest.approx(1), "kind 2": 0, "kind 3": None}
    assert found["VOC07"] == pytest.approx(0.5)
    assert voc_metrics(ground_truth([], 1, 1), np.zeros((0, 7)), "voc12")["VOC12"] == -1
    broken = results((0, 0, np.nan, 10, 0.99), (0, 0, 10, 10, 0.9))
    assert voc_metrics(ground_truth([ONE], 1, 1), broken, "voc12")["VOC12"] == 1


def test_a_recall_of_exactly_six_tenths_misses_its_point_as_in_the_development_kit() -> None:
    objects = [{"bbox": [10 * number, 0, 8, 8]} for number in range(10)]
    found = results(*((10 * number, 0, 8, 8, 0.9) for number in range(6)))
    assert voc_metrics(ground_truth(objects, 1, 1), found, "voc07")["VOC07"] == pytest.approx(6 / 11)
    assert voc_metrics(ground_truth(objects, 1, 1), found, "voc12")["VOC12"] == pytest.approx(0.6)


def second_opinion(truth: GroundTruth, found: np.ndarray, category: int, year: str) -> float:
    """From the rules, on boxes of whole pixels with corners that belong to them."""

    def corners(bbox: Any) -> tuple[float, ...]:
        return bbox[0] + 1, bbox[1] + 1, bbox[0] + bbox[2], bbox[1] + bbox[3]

    objects = [dict(row, used=False) for row in truth.dataset["annotations"] if row["category_id"] == category]
    total = sum(1 for row in objects if not row["iscrowd"])
    right = wrong = 0
    points = []
    for row in sorted((row for row in found if row[6] == category), key=lambda row: -row[5]):
        best, candidate = 0.0, None
        x1, y1, x2, y2 = corners(row[1:5])
        for each in objects:
            if each["image_id"] != row[0]:
                continue
            a1, b1, a2, b2 = corners(each["bbox"])
            width, height = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            if width > 0 and height > 0:
                area = width * height
                overlap = area / ((x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - area)
                if overlap > best:
                    best, candidate = overlap, each
        if candidate is None or best <= 0.5:
            wrong += 1
        elif candidate["iscrowd"]:
            continue
        elif candidate["used"]:
            wrong += 1
        else:
            candidate["used"] = True
            right += 1
        points.append((right / total, right / (right + wrong)))
    if year == "voc07":
        wanted = [max((p for r, p in points if r >= 0.1 * step), default=0) for step in range(11)]
        return sum(wanted) / 11
    area, last = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[place:])
        last = recall
    return area


@pytest.mark.parametrize("year", ["voc07", "voc12"])
def test_a_second_implementation_agrees(year: str) -> None:
    """On random boxes with difficult objects, equal scores, duplicates and empty images."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        rows, found = [], []
        for image in range(1, 9):
            for _ in range(rng.integers(0, 6)):
                box = [int(value) for value in (*rng.integers(0, 60, 2), *rng.integers(5, 40, 2))]
                category = int(rng.integers(1, 3))
                rows.append(
                    {"bbox": box, "image_id": image, "category_id": category, "iscrowd": int(rng.random() < 0.3)}
                )
                for _ in range(rng.integers(0, 4)):
                    near = np.array(box) + rng.integers(-3, 4, 4)
                    found.append([image, *near[:2], *near[2:].clip(1), rng.integers(1, 7) / 7, category])
            found.append([image, *rng.integers(0, 60, 2), *rng.integers(5, 40, 2), rng.integers(1, 7) / 7, 1])
        truth, detections = ground_truth(rows, 9, 2), np.array(found, dtype=float)
        metrics = voc_metrics(truth, detections, year)
        name = year.upper()
        for number in (1, 2):
            expected = second_opinion(truth, detections, number, year)
            assert metrics[f"{name}_per_class"][f"kind {number}"] == pytest.approx(expected, abs=1e-12)
        assert 0.05 < metrics[name] < 0.95


def test_the_metrics_that_are_asked_for_stand_beside_cocos(refusal: Callable[..., str]) -> None:
    truth, found = ground_truth([ONE], 1, 1), Results(results((0, 0, 10, 10, 0.9)))
    metrics = metrics_of(truth, found, names=("voc07", "coco", "voc12"))
    assert [metrics[name] for name in ("AP", "AP50", "VOC07", "VOC12")] == pytest.approx([1, 1, 1, 1])
    assert "VOC07" not in metrics_of(truth, found, names=("coco",))
    assert tuple(DECIDING) == METRICS
    assert "--mlperf" in refusal("--data", "x", "--mlperf", "--metrics", "voc07", "coco")


def test_comp4_files_count_from_one_and_end_at_the_image(tmp_path: Path) -> None:
    """A box over the first two columns and three rows is 1 1 2 3; classes without detections have an empty file."""
    truth = ground_truth([ONE], 2, 2)
    found = np.array([[2, 0, 0, 2, 3, 0.5, 1], [1, 90.5, -4, 20, 200, 0.25, 1], [1, 0, 0, np.nan, 1, 0.9, 2]])
    files = write_comp4(tmp_path / "comp4", truth, found, ["a/000007.jpg", "b/2008_000003.jpg"])
    assert [file.name for file in files] == ["comp4_det_test_kind 1.txt", "comp4_det_test_kind 2.txt"]
    assert files[0].read_text() == (
        "2008_000003 0.500000 1.000000 1.000000 2.000000 3.000000\n"
        "000007 0.250000 91.500000 1.000000 100.000000 100.000000\n"
    )
    assert files[1].read_text() == ""
