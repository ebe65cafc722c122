"""Detectron's average recall: hand-computed, and in a second writing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_voc_metrics import ground_truth

from ssd.evaluation.detect import Results
from ssd.evaluation.metrics import metrics_of
from ssd.evaluation.recall import proposals_of, recall_metrics
from ssd.storage.pickles import pickled, read_pickle


def truth_of(*boxes: tuple[float, float, float, float], crowd: int = -1) -> Any:
    """Objects of one image, of different classes; the one of that number is a crowd region."""
    rows = [
        {
            "id": number + 1, "image_id": 1, "category_id": 1 + number % 2, "bbox": list(box),
            "area": box[2] * box[3], "iscrowd": int(number == crowd),
        }
        for number, box in enumerate(boxes)
    ]  # fmt: skip
    return ground_truth(rows, 1, 2)


def rows_of(*found: tuple[float, float, float, float, float], image: int = 1, category: int = 1) -> np.ndarray:
    return np.array([[image, *box, category] for box in found]).reshape(-1, 7)


def test_recall_is_the_mean_over_ten_overlaps_whatever_the_class() -> None:
    truth = truth_of((0, 0, 10, 10), (50, 50, 100, 100))
    # The first has an IoU of 0.82 with one that says another class, which is 7 of 10 thresholds; the second none.
    metrics = recall_metrics(truth, rows_of((0, 0, 10, 8.2, 0.3), category=2))
    assert metrics["recall_AR100"] == pytest.approx(0.7 / 2)
    assert metrics["recall_AR1000"] == metrics["recall_AR100"]
    assert metrics["recall_AR100s"] == pytest.approx(0.7) and metrics["recall_AR100l"] == 0
    assert metrics["recall_AR100m"] == -1  # there is no such object


def test_the_pair_that_overlaps_most_is_given_first_and_a_box_covers_one_object() -> None:
    truth = truth_of((0, 0, 10, 10), (0, 0, 10, 8.2))
    assert recall_metrics(truth, rows_of((0, 0, 10, 8.2, 0.9)))["recall_AR100"] == pytest.approx(1 / 2)
    both = recall_metrics(truth, rows_of((0, 0, 10, 8.2, 0.9), (0, 0, 10, 8.2, 0.9)))
    assert both["recall_AR100"] == pytest.approx((1 + 0.7) / 2)


def test_only_the_best_boxes_of_an_image_count_and_no_crowd() -> None:
    truth = truth_of((0, 0, 10, 10), (20, 20, 30, 30), crowd=1)
    poor = [(60.0, 60.0, 5.0, 5.0, 0.9)] * 100
    metrics = recall_metrics(truth, rows_of(*poor, (0, 0, 10, 10, 0.1)))
    assert metrics["recall_AR100"] == 0 and metrics["recall_AR1000"] == 1
    nothing = recall_metrics(truth, np.zeros((0, 7)))
    assert nothing["recall_AR1000"] == 0 and nothing["recall_AR1000l"] == -1


def test_proposals_are_written_as_detectron_has_them(tmp_path: Path) -> None:
    truth = ground_truth([], 3, 1)
    rows = np.concatenate([rows_of((0, 0, 10, 20, 0.25), (5, 6, 1, 1, 0.75), image=3), rows_of((1, 2, 3, 4, 0.5))])
    file = tmp_path / "rpn_proposals.pkl"
    file.write_bytes(pickled(proposals_of(truth, rows)))
    content = read_pickle(file, "proposals")
    assert content["ids"] == [1, 2, 3]
    # Closed: a box of one pixel begins where it ends.
    assert [each.tolist() for each in content["boxes"]] == [[[1, 2, 3, 5]], [], [[5, 6, 5, 6], [0, 0, 9, 19]]]
    assert [each.tolist() for each in content["scores"]] == [[0.5], [], [0.75, 0.25]]
    assert content["boxes"][1].shape == (0, 4) and content["boxes"][0].dtype == np.float32


def test_it_stands_beside_cocos_metrics() -> None:
    truth = truth_of((0, 0, 10, 10))
    found = Results(rows_of((0, 0, 10, 10, 0.9)))
    metrics = metrics_of(truth, found, names=("recall", "coco"))
    assert metrics["AP"] == pytest.approx(1) and metrics["recall_AR1000"] == pytest.approx(1)
    assert "recall_AR1000" not in metrics_of(truth, found, names=("coco",))
