"""Detections: by hand, and against loops over images and classes with torchvision's NMS."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from ssd.batch import Detections, Predictions
from ssd.detectors.ssd300.anchors import NUM_BOXES, default_boxes_cxcywh
from ssd.detectors.ssd300.postprocess import detect
from ssd.matching import decode, offsets_of

SETTINGS: dict[str, Any] = {"score_threshold": 0.05, "nms_iou": 0.5, "max_per_class": 200, "max_per_image": 200}

NAN, INF = float("nan"), float("inf")
Candidate = tuple[tuple[float, float, float, float], int, float]  # ltrb, label, probability


def saying(*images: list[Candidate], num_classes: int) -> Predictions:
    """Predictions of certain background, but for these candidates on default boxes 1000, 1001, ... of each image."""
    offsets = torch.zeros(len(images), NUM_BOXES, 4)
    probabilities = torch.zeros(len(images), NUM_BOXES, num_classes)
    probabilities[..., 0] = 1
    for image, candidates in enumerate(images):
        for default, (box_ltrb, label, probability) in enumerate(candidates, start=1000):
            offsets[image, default] = offsets_of(torch.tensor(box_ltrb), default_boxes_cxcywh()[default])
            probabilities[image, default, label] = probability
            probabilities[image, default, 0] = 1 - probability
    return Predictions(offsets, probabilities.log().clamp(min=-100))


def found(detections: Detections, image: int = 0) -> list[Candidate]:
    """An image's real rows, rounded to what the hand-made numbers need."""
    count = int(detections.counts[image])
    return [
        (tuple(round(value, 4) for value in box), label, round(score, 4))
        for box, label, score in zip(
            detections.boxes_ltrb[image, :count].tolist(),
            detections.labels[image, :count].tolist(),
            detections.scores[image, :count].tolist(),
            strict=True,
        )
    ]


# By hand


def test_a_detection_comes_through() -> None:
    predictions = saying([((0.1, 0.2, 0.5, 0.8), 2, 0.75)], num_classes=4)
    detections = detect(predictions, **SETTINGS)
    assert found(detections) == [((0.1, 0.2, 0.5, 0.8), 2, 0.75)]
    assert detections.boxes_ltrb.shape == (1, 200, 4) and detections.boxes_ltrb.dtype == torch.float32
    assert detections.scores.shape == (1, 200) and detections.scores.dtype == torch.float32
    assert detections.labels.shape == (1, 200) and detections.labels.dtype == torch.int64
    assert detections.counts.shape == (1,) and detections.counts.dtype == torch.int64


def bar(left: float, label: int, probability: float) -> Candidate:
    """0.4 wide. Two bars 0.1 apart share 0.3 of 0.5: IoU 0.6. Two 0.2 apart share 0.2 of 0.6: IoU 1/3."""
    return (round(left, 4), 0.0, round(left + 0.4, 4), 1.0), label, probability


def test_a_suppressed_box_suppresses_nothing() -> None:
    a, b, c = bar(0, 1, 0.9), bar(0.1, 1, 0.8), bar(0.2, 1, 0.7)
    # A beats B. B overlaps C too much, but is gone; A and C have IoU 1/3.
    assert found(detect(saying([c, a, b], num_classes=2), **SETTINGS)) == [a, c]


def test_a_long_chain_of_suppression() -> None:
    chain = [bar(0.05 * i, 1, 0.9 - 0.05 * i) for i in range(12)]
    # 0.05 apart: IoU 0.35 / 0.45; 0.1 apart 0.6; 0.15 apart 0.25 / 0.55 < 1/2. So every third survives.
    assert found(detect(saying(chain, num_classes=2), **SETTINGS)) == [
        (box, label, round(probability, 4)) for box, label, probability in chain[::3]
    ]


def test_suppression_stays_within_a_class_and_an_image() -> None:
    a, b = bar(0, 1, 0.9), bar(0.1, 2, 0.8)
    assert found(detect(saying([a, b], num_classes=3), **SETTINGS)) == [a, b]
    a, b = bar(0, 1, 0.9), bar(0.1, 1, 0.8)
    detections = detect(saying([a], [b], num_classes=3), **SETTINGS)
    assert (found(detections, 0), found(detections, 1)) == ([a], [b])


@pytest.mark.parametrize(("nms_iou", "survivors"), [(0.59, 1), (0.61, 2)])
def test_nms_threshold(nms_iou: float, survivors: int) -> None:
    candidates = [bar(0, 1, 0.9), bar(0.1, 1, 0.8)]  # IoU 0.6
    detections = detect(saying(candidates, num_classes=2), **{**SETTINGS, "nms_iou": nms_iou})
    assert found(detections) == candidates[:survivors]


@pytest.mark.parametrize(("nms_iou", "survivors"), [(0.99, 1), (1.0, 2)])
def test_a_box_falls_only_above_the_nms_threshold(nms_iou: float, survivors: int) -> None:
    candidates = [((0.1, 0.2, 0.5, 0.8), 1, 0.9), ((0.1, 0.2, 0.5, 0.8), 1, 0.8)]
    detections = detect(saying(candidates, num_classes=2), **{**SETTINGS, "nms_iou": nms_iou})
    assert found(detections) == candidates[:survivors]


@pytest.mark.parametrize(("score_threshold", "count"), [(0.5, 0), (0.499, 1)])
def test_a_score_must_exceed_its_threshold(score_threshold: float, count: int) -> None:
    # Of two equal logits the softmax is exactly 1/2.
    predictions = saying([((0.1, 0.2, 0.5, 0.8), 1, 0.5)], num_classes=2)
    detections = detect(predictions, **{**SETTINGS, "score_threshold": score_threshold})
    assert detections.counts.tolist() == [count]


def test_one_box_can_be_of_two_classes() -> None:
    predictions = saying([((0.1, 0.2, 0.5, 0.8), 1, 0.6)], num_classes=3)
    predictions.logits[0, 1000] = torch.tensor([0.1, 0.6, 0.3]).log()
    assert found(detect(predictions, **SETTINGS)) == [((0.1, 0.2, 0.5, 0.8), 1, 0.6), ((0.1, 0.2, 0.5, 0.8), 2, 0.3)]


def test_max_per_class_limits_what_enters_nms() -> None:
    # B falls to A, so two of the class's three remain; but with two admitted, C never enters.
    a, b, c, d = bar(0, 1, 0.9), bar(0.1, 1, 0.8), bar(0.5, 1, 0.7), bar(0.5, 2, 0.6)
    assert found(detect(saying([a, b, c, d], num_classes=3), **SETTINGS)) == [a, c, d]
    detections = detect(saying([a, b, c, d], num_classes=3), **{**SETTINGS, "max_per_class": 2})
    assert found(detections) == [a, d]


def test_max_per_image_keeps_the_best_of_all_classes() -> None:
    a, b, c, d = bar(0, 1, 0.6), bar(0.5, 1, 0.9), bar(0, 2, 0.8), bar(0, 3, 0.7)
    predictions = saying([a, b, c, d], [a], num_classes=4)
    detections = detect(predictions, **{**SETTINGS, "max_per_image": 3})
    assert detections.scores.shape == (2, 3)
    assert (found(detections, 0), found(detections, 1)) == ([b, c, d], [a])


def test_boxes_are_clipped_to_the_image() -> None:
    predictions = saying([((-0.2, 0.1, 0.5, 1.4), 1, 0.9), ((0.75, -0.5, 1.25, 0.25), 1, 0.8)], num_classes=2)
    assert found(detect(predictions, **SETTINGS)) == [((0, 0.1, 0.5, 1), 1, 0.9), ((0.75, 0, 1, 0.25), 1, 0.8)]


def test_nms_sees_the_uncut_boxes() -> None:
    # Uncut they share 0.5 of 2.5: IoU 0.2. Within the image both are its left half.
    predictions = saying([((-2.0, 0, 0.5, 1), 1, 0.9), ((0.0, 0, 0.5, 1), 1, 0.8)], num_classes=2)
    assert found(detect(predictions, **SETTINGS)) == [((0, 0, 0.5, 1), 1, 0.9), ((0, 0, 0.5, 1), 1, 0.8)]


def test_boxes_without_area_overlap_nothing() -> None:
    candidates: list[Candidate] = [((0.5, 0.5, 0.5, 0.5), 1, 0.9), ((0.5, 0.5, 0.5, 0.5), 1, 0.8)]
    assert found(detect(saying(candidates, num_classes=2), **SETTINGS)) == candidates


def test_infinite_sizes_stay_in_the_image() -> None:
    predictions = saying([((0.1, 0.1, 0.5, 0.5), 1, 0.9)], num_classes=2)
    predictions.offsets[0, 1000, 2:] = 1000  # exp(0.2 x 1000) overflows float32
    assert found(detect(predictions, **SETTINGS)) == [((0, 0, 1, 1), 1, 0.9)]


# Padding


def is_padding(detections: Detections, image: int) -> bool:
    count = int(detections.counts[image])
    return not any(part[image, count:].any() for part in (detections.boxes_ltrb, detections.scores, detections.labels))


def test_no_candidates_at_all() -> None:
    detections = detect(saying([], [], [], num_classes=5), **SETTINGS)
    assert detections.counts.tolist() == [0, 0, 0]
    assert detections.boxes_ltrb.shape == (3, 200, 4)
    assert all(is_padding(detections, image) for image in range(3))


def test_an_image_without_candidates_between_others() -> None:
    a, b = bar(0, 1, 0.9), bar(0.5, 2, 0.8)
    detections = detect(saying([], [a, b], [], [b], [], num_classes=3), **SETTINGS)
    assert detections.counts.tolist() == [0, 2, 0, 1, 0]
    assert [found(detections, image) for image in range(5)] == [[], [a, b], [], [b], []]
    assert all(is_padding(detections, image) for image in range(5))


# Against loops


def slow_detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes, scores and labels of each image, unpadded."""
    images = []
    for offsets, logits in zip(*predictions, strict=True):
        boxes_ltrb = decode(offsets.float(), default_boxes_cxcywh())
        probabilities = logits.float().softmax(dim=1)
        boxes_of, scores_of, labels_of = [], [], []
        for label in range(1, logits.shape[1]):
            candidates = torch.nonzero(probabilities[:, label] > score_threshold).squeeze(1)
            order = probabilities[candidates, label].argsort(descending=True, stable=True)[:max_per_class]
            boxes, scores = boxes_ltrb[candidates[order]], probabilities[candidates[order], label]
            keep = nms(boxes, scores, nms_iou)
            boxes_of.append(boxes[keep])
            scores_of.append(scores[keep])
            labels_of.append(torch.full((len(keep),), label))
        boxes, scores, labels = torch.cat(boxes_of), torch.cat(scores_of), torch.cat(labels_of)
        best = scores.argsort(descending=True, stable=True)[:max_per_image]
        images.append((boxes[best].clamp(0, 1), scores[best], labels[best]))
    return images


def random_predictions(images: int, num_classes: int, background: float, seed: int) -> Predictions:
    """A higher logit for background leaves fewer candidates; 0 leaves most default boxes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, NUM_BOXES, num_classes, generator=generator)
    logits[..., 0] += background
    return Predictions(1.5 * torch.randn(images, NUM_BOXES, 4, generator=generator), logits)


def assert_same(detections: Detections, expected: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    assert detections.counts.tolist() == [len(scores) for _, scores, _ in expected]
    for image, (boxes_ltrb, scores, labels) in enumerate(expected):
        count = len(scores)
        assert torch.equal(detections.labels[image, :count], labels)
        # The same operations on the same numbers, though perhaps vectorised otherwise.
        torch.testing.assert_close(detections.scores[image, :count], scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(detections.boxes_ltrb[image, :count], boxes_ltrb, rtol=0, atol=1e-6)
        assert is_padding(detections, image)


@pytest.mark.parametrize(
    ("num_classes", "background", "settings"),
    [
        pytest.param(5, 0, {}, id="both limits reached"),
        pytest.param(5, 12, {}, id="few candidates"),
        pytest.param(5, 6, {"max_per_class": 30}, id="limit of a class"),
        pytest.param(5, 6, {"max_per_image": 10}, id="limit of an image"),
        pytest.param(5, 6, {"max_per_image": 3000}, id="no limit of an image"),
        pytest.param(5, 0, {"max_per_class": 1}, id="one of each class"),
        pytest.param(5, 0, {"max_per_image": 1}, id="one of each image"),
        pytest.param(5, 0, {"nms_iou": 0.0}, id="no overlap at all"),
        pytest.param(5, 0, {"nms_iou": 0.3}, id="little overlap"),
        pytest.param(5, 0, {"nms_iou": 1.0, "max_per_image": 3000}, id="no suppression"),
        pytest.param(5, 0, {"score_threshold": 0.7}, id="sure ones only"),
        pytest.param(2, 0, {"max_per_class": 400, "max_per_image": 300}, id="one class"),
        pytest.param(31, 0, {"max_per_class": 50}, id="thirty classes"),
    ],
)
def test_detect_is_the_slow_detect(num_classes: int, background: float, settings: dict[str, Any]) -> None:
    settings = {**SETTINGS, **settings}
    predictions = random_predictions(2, num_classes, background, seed=1)
    expected = slow_detect(predictions, **settings)
    assert all(len(scores) for _, scores, _ in expected)
    assert_same(detect(predictions, **settings), expected)


def test_the_random_predictions_put_the_limits_to_work() -> None:
    """Else the comparison above would say little."""
    candidates = (random_predictions(2, 5, 0, seed=1).logits.softmax(dim=2)[..., 1:] > 0.05).sum(dim=1)
    assert candidates.min() > 10 * SETTINGS["max_per_class"]
    few = (random_predictions(2, 5, 12, seed=1).logits.softmax(dim=2)[..., 1:] > 0.05).sum(dim=1)
    assert 0 < few.max() < SETTINGS["max_per_class"]
    many = slow_detect(random_predictions(2, 5, 0, seed=1), **{**SETTINGS, "max_per_image": 3000})
    assert all(200 < len(scores) < 4 * 200 for _, scores, _ in many)  # both NMS and the image's limit drop some


def test_batched_equals_single() -> None:
    # Each image with another number of candidates, so that padding differs.
    images = [random_predictions(1, 4, background, seed=2) for background in (0, 12, 40, 8)]
    batch = Predictions(*(torch.cat(parts) for parts in zip(*images, strict=True)))
    singly = [detect(image, **SETTINGS) for image in images]
    batched = detect(batch, **SETTINGS)
    assert batched.counts[2] == 0 and len(set(batched.counts.tolist())) >= 3
    for ours, theirs in zip(batched[:4], zip(*(each[:4] for each in singly), strict=True), strict=True):
        assert torch.equal(ours, torch.cat(theirs))


def test_half_predictions_are_decoded_in_float32() -> None:
    half = Predictions(*(part.half() for part in random_predictions(1, 4, 6, seed=3)))
    in_float32 = detect(Predictions(*(part.float() for part in half)), **SETTINGS)
    assert in_float32.counts[0] > 10
    for ours, theirs in zip(detect(half, **SETTINGS)[:4], in_float32[:4], strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [(NAN, 0, 0, 0), (0, 0, 0, NAN), (INF, 0, INF, 0), (0, -INF, 0, INF)], ids=str)
def test_a_box_of_nan_is_no_detection(bad: tuple[float, ...]) -> None:
    logits, offsets = torch.zeros(1, 8732, 2), torch.zeros(1, 8732, 4)
    logits[..., 0], logits[0, :2, 1] = 20.0, 40.0
    offsets[0, 0] = torch.tensor(bad)
    found = detect(Predictions(offsets, logits), score_threshold=0.5, nms_iou=0.5, max_per_class=9, max_per_image=9)
    assert found.counts.tolist() == [1] and found.boxes_ltrb.isfinite().all()
