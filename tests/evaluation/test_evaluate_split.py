"""A split is detected whole: every image once, at any number of batches, with the settings and the model's own mode."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import ALONE, CAR, DOG, FIRST, KITE, SECOND, THIRD, near, results_of, truth_of
from torch import Tensor, nn

from ssd.batch import EvalBatch, Predictions, whole
from ssd.config import EVAL_ENGINES, Config
from ssd.detectors.ssd300.anchors import NUM_BOXES, default_boxes_cxcywh
from ssd.evaluation.analysis import analyse
from ssd.evaluation.coco import coco_metrics
from ssd.evaluation.detect import detect_split
from ssd.matching import offsets_of


class Says(nn.Module):
    """Finds in each image what it was told to: the top left pixel says which image it is."""

    def __init__(self, candidates: list[list[tuple[list[float], int, float]]], num_classes: int):
        super().__init__()
        self.candidates, self.num_classes = candidates, num_classes
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Predictions:
        self.modes.append(self.training)
        offsets = torch.zeros(len(images), NUM_BOXES, 4)
        probabilities = torch.zeros(len(images), NUM_BOXES, self.num_classes)
        probabilities[..., 0] = 1
        for row, image in enumerate(images[:, 0, 0, 0].long().tolist()):
            for default, (box_ltrb, label, probability) in enumerate(self.candidates[image], start=500):
                offsets[row, default] = offsets_of(torch.tensor(box_ltrb), default_boxes_cxcywh()[default])
                probabilities[row, default, 0], probabilities[row, default, label] = 1 - probability, probability
        return Predictions(offsets, probabilities.log().clamp(min=-100))


class Loader:
    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        for indices in self.batches:
            images = torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
            yield EvalBatch(images, whole(images), torch.tensor(indices))


# Labels 1, 2, 3 are kite 90, car 3 and dog 17.
CANDIDATES = [
    [([0.25, 0.5, 0.75, 1], 1, 0.75), ([0.0, 0, 0.1, 0.25], 3, 0.5)],  # on 200 x 100 pixels
    [],
    [([0.5, 0.25, 1, 0.5], 2, 0.875)],  # on 50 x 60
]
RESULTS = [
    # x 0.25 x 200, y 0.5 x 100, w 0.5 x 200, h 0.5 x 100
    [FIRST, 50, 50, 100, 50, 0.75, KITE],
    [FIRST, 0, 0, 20, 25, 0.5, DOG],
    [THIRD, 25, 15, 25, 15, 0.875, CAR],
]


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]], [[2, 0], [1]]])
def test_detections_of_a_split(batches: list[list[int]]) -> None:
    found = detect_split(Says(CANDIDATES, 4), Loader(batches), truth_of(), Config(), ALONE)
    assert found is not None and found.masks is None and found.keypoints is None
    results = found.rows
    assert results.dtype == np.float64
    order = [row for batch in batches for image in batch for row in RESULTS if row[0] == [FIRST, SECOND, THIRD][image]]
    assert results[:, [0, 6]].tolist() == [[row[0], row[6]] for row in order]
    # Decoding rounds at about 1e-7 of 200 pixels; scores go through a logarithm and an exponential.
    np.testing.assert_allclose(results[:, 1:6], [row[1:6] for row in order], rtol=0, atol=1e-4)


def test_every_image_is_judged_exactly_once() -> None:
    # One sure detection in each of 11 images, in batches of 4, 4 and 3.
    candidates = [[([0.1, 0.1, 0.6, 0.7], 1, 0.9)]] * 11
    truth = truth_of()._replace(
        image_ids=np.arange(11) * 3 + 100, sizes_px=np.column_stack([np.arange(11) + 10, np.full(11, 100)])
    )
    loader = Loader([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]])
    found = detect_split(Says(candidates, 4), loader, truth, Config(), ALONE)
    assert found is not None
    results = found.rows
    assert results[:, 0].tolist() == [100 + 3 * i for i in range(11)]
    # 0.1 and 0.5 of its own width 10 + i.
    np.testing.assert_allclose(results[:, 1], 0.1 * (np.arange(11) + 10), rtol=0, atol=1e-4)
    np.testing.assert_allclose(results[:, 3], 0.5 * (np.arange(11) + 10), rtol=0, atol=1e-4)


def test_the_settings_reach_the_detector() -> None:
    model, loader = Says([[(box, 1, p) for box, p in BARS]], 4), Loader([[0]])

    def scores(**settings: Any) -> list[float]:
        results = detect_split(model, loader, truth_of(), Config(**settings), ALONE)
        assert results is not None
        return results.rows[:, 5].round(4).tolist()

    assert scores() == [0.9, 0.7]  # the second bar has IoU 0.6 with the first
    assert scores(nms_iou=0.65) == [0.9, 0.8, 0.7]
    assert scores(score_threshold=0.75) == [0.9]
    assert scores(max_per_class=2) == [0.9]
    assert scores(max_per_image=1) == [0.9]


# 0.4 wide: 0.1 apart they share 0.3 of 0.5, IoU 0.6; 0.2 apart 0.2 of 0.6, IoU 1/3.
BARS = [([0.0, 0, 0.4, 1], 0.9), ([0.1, 0, 0.5, 1], 0.8), ([0.2, 0, 0.6, 1], 0.7)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_judges_in_eval_mode_and_returns_to_its_own(training: bool) -> None:
    model = Says(CANDIDATES, 4).train(training)
    detect_split(model, Loader([[0, 1], [2]]), truth_of(), Config(), ALONE)
    assert model.modes == [False, False]
    assert model.training is training


def test_what_is_asked_to_end_leaves_out_the_rest() -> None:
    model, asked = Says(CANDIDATES, 4), iter([False, True])
    found = detect_split(
        model, Loader([[0], [1], [2]]), truth_of(), Config(), ALONE, is_asked_to_end=lambda: next(asked)
    )
    assert found is not None and set(found.rows[:, 0]) == {FIRST} and len(model.modes) == 1 and model.training


def test_a_split_without_detections() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]))
    results = detect_split(Says([[], [], []], 4), Loader([[0, 1, 2]]), truth, Config(), ALONE)
    assert results is not None and results.rows.shape == (0, 7)
    assert coco_metrics(truth, results.rows)["AP"] == 0


def test_a_perfect_detector_has_ap_1() -> None:
    truth = truth_of(*[(int(image), int(category), box) for image, *box, _, category in RESULTS])
    found = detect_split(Says(CANDIDATES, 4), Loader([[0, 1], [2]]), truth, Config(), ALONE)
    assert found is not None
    metrics = coco_metrics(truth, found.rows)
    assert metrics["AP"] == near(1)
    assert metrics["per_class"] == {"kite": near(1), "car": near(1), "dog": near(1)}


@pytest.mark.parametrize("engine", EVAL_ENGINES)
def test_a_box_or_score_of_nan_is_no_detection(engine: str) -> None:
    """A score of NaN would be sorted to the front, and a box of NaN be a false positive before the true one."""
    truth, nan = truth_of((FIRST, CAR, [10, 10, 50, 50]), (SECOND, DOG, [0, 0, 90, 90])), float("nan")
    good = (FIRST, [10, 10, 50, 50], 0.6, CAR)
    bad = [
        (FIRST, [10, 10, 50, 50], nan, CAR), (FIRST, [nan, 10, 50, 50], 0.9, CAR),
        (FIRST, [10, 10, nan, nan], 0.8, CAR), (SECOND, [0, 0, nan, 90], 0.9, DOG),
    ]  # fmt: skip
    with_nan, without = results_of(*bad, good), results_of(good)
    assert coco_metrics(truth, with_nan, engine) == coco_metrics(truth, without, engine)
    assert analyse(truth, with_nan, engine) == analyse(truth, without, engine)
    assert coco_metrics(truth, with_nan, engine)["per_class"] == {
        "kite": None, "car": pytest.approx(1), "dog": 0
    }  # fmt: skip
