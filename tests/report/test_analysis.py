"""What evaluation.json holds: confusions, precision-recall curves and box sizes, by hand-made boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ssd.batch import GroundTruth
from ssd.detectors.ssd300 import anchors
from ssd.detectors.ssd300.coverage import SIZE_EDGES_PX, box_sizes
from ssd.evaluation.analysis import SHOWN_SCORE, analyse, boxes_of, confusion
from ssd.evaluation.coco import coco_metrics, precision_at_iou50

CAT, DOG, OWL = 3, 7, 9  # ids of the categories, whose labels are 1, 2, 3


def truth_of(*boxes: tuple[int, int, list[float]], crowd: Sequence[int] = ()) -> GroundTruth:
    """boxes: (image id, category id, xywh in pixels); crowd: which of them are crowd regions. Images 1 and 2 are 600 x
    300 pixels."""
    annotations = [
        {"id": row + 1, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3],
         "iscrowd": int(row in crowd)}
        for row, (image, category, box) in enumerate(boxes)
    ]  # fmt: skip
    names = {CAT: "cat", DOG: "dog", OWL: "owl"}
    dataset: dict[str, Any] = {
        "images": [{"id": image, "file_name": f"{image}.jpg", "width": 600, "height": 300} for image in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in names.items()],
    }
    return GroundTruth(np.array([1, 2]), np.array([[600, 300]] * 2, np.int32), [*names], [*names.values()], dataset)


def found(*rows: tuple[int, int, list[float], float]) -> np.ndarray:
    """rows: (image id, category id, xywh in pixels, score)."""
    return np.array([[image, *box, score, category] for image, category, box, score in rows]).reshape(-1, 7)


LEFT, RIGHT, FAR = [0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 100.0, 100.0], [400.0, 100.0, 100.0, 100.0]


def test_confusion_counts_hits_mix_ups_misses_and_detections_of_nothing() -> None:
    truth = truth_of((1, CAT, LEFT), (1, CAT, RIGHT), (1, DOG, FAR), (2, DOG, LEFT))
    results = found((1, CAT, LEFT, 0.9), (1, DOG, RIGHT, 0.9), (2, CAT, FAR, 0.9), (1, DOG, FAR, SHOWN_SCORE - 0.01))
    assert confusion(truth, results).tolist() == [
        [1, 1, 0, 0],  # cats: one found, one taken for a dog
        [0, 0, 0, 2],  # dogs: both missed, one of them by its low score
        [0, 0, 0, 0],
        [1, 0, 0, 0],  # a cat where there is nothing
    ]


def test_a_box_is_found_once_and_by_the_detection_that_overlaps_it_most() -> None:
    near = [10.0, 0.0, 100.0, 100.0]
    matrix = confusion(truth_of((1, CAT, LEFT)), found((1, DOG, near, 0.99), (1, CAT, LEFT, 0.5)))
    assert matrix[0].tolist() == [1, 0, 0, 0] and matrix[3].tolist() == [0, 1, 0, 0]


def test_crowd_regions_are_neither_missed_nor_can_detections_in_them_be_wrong() -> None:
    truth = truth_of((1, CAT, [0.0, 0.0, 300.0, 300.0]), crowd=[0])
    results = found((1, DOG, LEFT, 0.9), (1, DOG, FAR, 0.9))
    matrix = confusion(truth, results)
    assert matrix.sum() == 1 and matrix[3, 1] == 1


def test_without_detections_all_is_missed() -> None:
    assert confusion(truth_of((1, CAT, LEFT), (2, OWL, LEFT)), found())[:, 3].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_the_mean_precision_at_iou_50_is_the_metric(engine: str) -> None:
    generator = np.random.default_rng(1)
    boxes = [(1 + i % 2, (CAT, DOG)[i % 3 == 0], [*(generator.random(2) * 200), 60.0, 60.0]) for i in range(30)]
    near = [(image, category, [x + generator.normal(0, 25), y, w, h]) for image, category, (x, y, w, h) in boxes]
    truth, results = truth_of(*boxes), found(*((*row, float(generator.random())) for row in near))
    precision = precision_at_iou50(truth, results, engine)
    assert precision.shape == (3, 101) and (precision[2] == -1).all()  # there are no owls
    metrics = coco_metrics(truth, results, engine)
    assert precision[:2].mean() == pytest.approx(metrics["AP50"], abs=1e-12) and 0.1 < metrics["AP50"] < 1


def test_box_sizes_are_those_of_the_resized_image_and_say_what_default_boxes_match() -> None:
    default_ltrb = anchors.default_boxes_ltrb()[700]  # 21 x 21 px of 300
    left, top, right, bottom = (default_ltrb * 300).tolist()
    exact = [2 * left, top, 2 * (right - left), bottom - top]  # of 600 x 300
    sliver = [0.0, 0.0, 600.0, 3.0]
    sizes = box_sizes(boxes_of(truth_of((1, CAT, exact), (2, DOG, sliver), (2, DOG, exact), crowd=[2])))
    covered, uncovered = np.array(sizes["covered"]), np.array(sizes["uncovered"])
    assert covered.sum() == uncovered.sum() == 1
    for counts, size_px in ((covered, 21), (uncovered, (300 * 3) ** 0.5)):
        place = counts.argmax()
        assert SIZE_EDGES_PX[place] <= size_px < SIZE_EDGES_PX[place + 1]
    assert sum(box_sizes(boxes_of(truth_of()))["covered"]) == 0


def test_analysis_names_classes_and_has_none_for_those_without_ground_truth() -> None:
    content = analyse(truth_of((1, CAT, LEFT), (2, DOG, LEFT)), found((1, CAT, LEFT, 0.9)))
    assert content["classes"] == ["cat", "dog", "owl"] and content["boxes"] == [1, 1, 0]
    cat, dog, owl = content["precision_at_iou50"]
    assert cat == [1.0] * 101 and dog == [0.0] * 101 and owl is None
