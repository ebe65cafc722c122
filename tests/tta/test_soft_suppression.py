"""Soft suppression and votes of boxes are what Detectron's rules, written once more in numpy, say."""

import detectron_by_hand as by_hand
import numpy as np
import pytest
import torch

from ssd.config import Thresholds
from ssd.detectors.detectron.rcnn.rpn import reached
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.torchvision.postprocess import detections_of
from ssd.detectors.tta.rules import SOFT_METHODS, VOTE_SCORES, Suppression
from ssd.detectors.tta.soft_suppression import refined, soft_nms, voted


def crowded(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Closed boxes in pixels, many of which overlap much, and falling scores: some are equal, as are some boxes, and
    some are single pixels or touch others in one."""
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)
    boxes[5] = boxes[4]
    special = [[90, 90, 90, 90], [90, 90, 90, 90], [80, 80, 90, 90], [0, 0, 99, 99], [91, 91, 95, 95]]
    boxes = np.concatenate([boxes, np.array(special, dtype=np.float64)])
    scores = np.sort(rng.uniform(0.05, 1, len(boxes)))[::-1].copy()
    scores[5], scores[11], scores[20:23] = scores[4], scores[10], scores[20]
    return boxes, scores.astype(np.float32)


def half_open(boxes: np.ndarray) -> torch.Tensor:
    return torch.tensor(by_hand.half_open(boxes), dtype=torch.float32)


@pytest.mark.parametrize("method", SOFT_METHODS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_scores_are_softened_one_box_after_the_other(method: str, threshold: float) -> None:
    boxes, scores = crowded()
    groups = torch.tensor([0] * 20 + [1] + [7] * (len(scores) - 21))  # one of them with a single box
    places, found = soft_nms(half_open(boxes), torch.tensor(scores), groups, threshold, method, 0.5)
    for group in (0, 1, 7):
        own = np.flatnonzero(groups.numpy() == group)
        expected = by_hand.soft_nms(boxes[own], scores[own], threshold, method, 0.5)
        is_own = groups[places] == group
        assert (places[is_own] - own[0]).tolist() == [place for place, _ in expected]
        np.testing.assert_allclose(found[is_own], [score for _, score in expected], rtol=1e-4)


def test_nothing_and_boxes_without_area_are_suppressed_without_complaint() -> None:
    places, scores = soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.3, "linear", 0.5)
    assert len(places) == len(scores) == 0
    flat = torch.tensor([[5.0, 5, 5, 20], [5, 5, 5, 20], [0, 0, 30, 30]])
    places, scores = soft_nms(flat, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), 0.3, "hard", 0.5)
    assert places.tolist() == [0, 1, 2] and scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    boxes, scores = voted(flat, scores, torch.zeros(3), flat, scores, torch.zeros(3), Suppression(vote_iou=0.5))
    assert torch.equal(boxes, flat) and scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize("rule", VOTE_SCORES)
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.5])
def test_a_box_becomes_the_mean_of_those_that_overlap_it(rule: str, beta: float) -> None:
    boxes, scores = crowded()
    scores[0] = 1.0  # of which the complement is 0
    groups = torch.tensor([0] * 25 + [3] * (len(scores) - 25))
    suppression = Suppression(votes=True, vote_iou=0.4, vote_score=rule, vote_beta=beta)
    top = torch.tensor([0, 4, 10, 24, 25, 40, 43])
    new_scores = torch.tensor(scores)[top] / 2  # as soft suppression may have left them
    found, found_scores = voted(
        half_open(boxes)[top], new_scores, groups[top], half_open(boxes), torch.tensor(scores), groups, suppression
    )
    moved = 0
    for row, place in enumerate(top.tolist()):
        own = np.flatnonzero(groups.numpy() == int(groups[place]))
        expected = by_hand.voted(
            boxes[place], float(new_scores[row]), boxes[own], scores[own].astype(np.float64), 0.4, rule, beta
        )
        np.testing.assert_allclose(by_hand.closed(found[row].numpy()), expected[:4], rtol=1e-4, atol=1e-4)
        assert float(found_scores[row]) == pytest.approx(expected[4], rel=1e-4)
        moved += bool(np.abs(expected[:4] - boxes[place]).max() > 0.1)
    assert moved >= 2


def candidates() -> tuple[Candidates, torch.Tensor]:
    """Of three images with two classes and background, the second without any; and their limits."""
    boxes, scores = crowded()
    batch = torch.stack([half_open(boxes), half_open(boxes), half_open(boxes[::-1].copy())])
    scores = torch.stack([torch.tensor(scores), torch.zeros(len(scores)), torch.tensor(scores)])
    labels = torch.arange(len(boxes)).remainder(3).expand(3, -1)
    return Candidates(batch, scores, labels), torch.tensor([[[100.0, 100, 100, 100]]]).expand(3, 1, 4)


@pytest.mark.parametrize("most", [3, 200])
def test_without_soft_scores_and_votes_it_is_plain_suppression(most: int) -> None:
    found, limits = candidates()
    thresholds = Thresholds(0.2, 0.5, 200, most)
    hard_iou = reached(0.5)
    ours = refined(found, limits, thresholds, Suppression(), hard_iou=hard_iou)
    plain = detections_of(found, limits, thresholds._replace(nms_iou=hard_iou))
    assert plain.counts.tolist()[1] == 0 and min(plain.counts[0], plain.counts[2]) > 2
    for own, other in zip(ours[:4], plain[:4], strict=True):
        torch.testing.assert_close(own, other)


def test_all_candidates_vote_also_those_that_fell_and_the_asked_score_is_asked_at_the_end() -> None:
    boxes = torch.tensor([[[10.0, 10, 50, 50], [10, 10, 50, 54], [60, 60, 80, 80]]])
    found = Candidates(boxes, torch.tensor([[0.9, 0.3, 0.4]]), torch.ones(1, 3, dtype=torch.int64))
    limits = torch.full((1, 1, 4), 100.0)
    suppression = Suppression(votes=True, vote_iou=0.8, vote_score="AVG")
    thresholds = Thresholds(0.05, 0.5, 200, 10)
    all_of_them = refined(found, limits, thresholds, suppression, hard_iou=0.5)
    assert all_of_them.counts.tolist() == [2]
    torch.testing.assert_close(all_of_them.scores[0, :2], torch.tensor([0.6, 0.4]))
    torch.testing.assert_close(all_of_them.boxes_ltrb[0, 0, 3], torch.tensor((50 * 0.9 + 54 * 0.3) / 1.2 / 100))
    some = refined(found, limits, thresholds, suppression, hard_iou=0.5, least_score=0.5)
    assert some.counts.tolist() == [1] and some.labels[0].tolist()[:2] == [1, 0]
