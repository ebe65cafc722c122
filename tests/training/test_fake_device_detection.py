"""Detection on a device that is no CPU: the same bits as on one, and few waits."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import pretend, pretended_gpu, values
from torch import Tensor
from torchvision.ops import nms

from ssd.batch import Detections, GroundTruth, Predictions, on_host
from ssd.boxes import pairwise_iou
from ssd.detectors.postprocess import suppression
from ssd.detectors.ssd300.anchors import NUM_BOXES, default_boxes_cxcywh, default_boxes_ltrb
from ssd.detectors.ssd300.postprocess import detect
from ssd.evaluation import detect as evaluation
from ssd.images import normalise
from ssd.matching import decode, offsets_of

SETTINGS: dict[str, Any] = {"score_threshold": 0.05, "nms_iou": 0.5, "max_per_class": 200, "max_per_image": 200}


# Detection


def greedy_detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> Detections:
    """Box after box, in plain Python, by the arithmetic of `detect`: what it has to give bit for bit."""
    batch = len(predictions.logits)
    detections = Detections(
        torch.zeros(batch, max_per_image, 4),
        torch.zeros(batch, max_per_image),
        torch.zeros(batch, max_per_image, dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int64),
    )
    for image, (offsets, logits) in enumerate(zip(*predictions, strict=True)):
        boxes_ltrb = decode(offsets.float(), default_boxes_cxcywh())
        probabilities = logits.float().softmax(dim=1)
        found = []
        for label in range(1, logits.shape[1]):
            scores = probabilities[:, label]
            is_box = ~boxes_ltrb.isnan().any(dim=1)
            box = ((scores > score_threshold) & is_box).nonzero().squeeze(1)
            box = box[scores[box].argsort(descending=True, stable=True)][:max_per_class]
            share = (boxes_ltrb[box, 2:] - boxes_ltrb[box, :2]).clamp(min=0).prod(dim=1) * (nms_iou / (1 + nms_iou))
            left, top, right, bottom = boxes_ltrb[box].t()
            stays = torch.ones(len(box), dtype=torch.bool)
            for i in range(len(box)):
                if stays[i]:
                    width = (torch.minimum(right, right[i]) - torch.maximum(left, left[i])).clamp(min=0)
                    height = (torch.minimum(bottom, bottom[i]) - torch.maximum(top, top[i])).clamp(min=0)
                    falls = width * height > share + share[i]
                    stays[i + 1 :] &= ~falls[i + 1 :]
            found += [(float(scores[k]), label, boxes_ltrb[k].clamp(0, 1)) for k in box[stays].tolist()]
        found.sort(key=lambda each: -each[0])  # stable: of equals the one that came first
        for rank, (score, label, box_ltrb) in enumerate(found[:max_per_image]):
            detections.boxes_ltrb[image, rank] = box_ltrb
            detections.scores[image, rank], detections.labels[image, rank] = score, label
        detections.counts[image] = min(len(found), max_per_image)
    return detections


def noise(images: int, num_classes: int, background: float, seed: int = 1) -> Predictions:
    """Dense boxes anywhere. A higher logit for background leaves fewer candidates."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, NUM_BOXES, num_classes, generator=generator)
    logits[..., 0] += background
    return Predictions(1.5 * torch.randn(images, NUM_BOXES, 4, generator=generator), logits)


def ties() -> Predictions:
    """Few different scores, and boxes that are equal or share the same."""
    offsets, logits = noise(2, 4, 6)
    return Predictions(offsets.round(), logits.round())


def crowd() -> Predictions:
    """120 objects of one class in one image, each told by many default boxes; nothing in the other."""
    generator = torch.Generator().manual_seed(2)
    sides = 0.08 + 0.1 * torch.rand(120, 2, generator=generator)
    corners = (1 - sides) * torch.rand(120, 2, generator=generator)
    boxes_ltrb = torch.cat([corners, corners + sides], dim=1)
    iou, box = pairwise_iou(boxes_ltrb, default_boxes_ltrb()).max(dim=0)
    offsets, logits = torch.zeros(2, NUM_BOXES, 4), torch.zeros(2, NUM_BOXES, 5)
    logits[..., 0] = 12
    hit = (iou > 0.3).nonzero().squeeze(1)
    offsets[0, hit] = offsets_of(boxes_ltrb[box[hit]], default_boxes_cxcywh()[hit])
    logits[0, hit, 2] = 8 + 8 * iou[hit]
    return Predictions(offsets, logits)


def chain() -> Predictions:
    """150 boxes of one class, each of which overlaps its neighbours too much and no others: the longest chain."""
    left = torch.arange(150) * 0.25
    boxes_ltrb = torch.stack([left, torch.zeros(150), left + 1, torch.ones(150)], dim=1)
    offsets, logits = torch.zeros(1, NUM_BOXES, 4), torch.zeros(1, NUM_BOXES, 2)
    logits[..., 0] = 20
    here = slice(1000, 1150)
    offsets[0, here] = offsets_of(boxes_ltrb, default_boxes_cxcywh()[here])
    logits[0, here, 1] = 24 - 0.01 * torch.arange(150)
    return Predictions(offsets, logits)


def nothing() -> Predictions:
    return noise(3, 4, 60)


def odd_numbers() -> Predictions:
    """Offsets and logits that are not finite, or whose sizes are not."""
    offsets, logits = noise(2, 4, 8)
    offsets[0, ::3, 2:] = 1000
    offsets[0, ::5] = math.nan
    logits[1, ::7] = math.nan
    return Predictions(offsets, logits)


CASES: list[Any] = [
    pytest.param(lambda: noise(2, 5, 0), {}, id="both limits reached"),
    pytest.param(lambda: noise(3, 5, 12), {}, id="few candidates"),
    pytest.param(lambda: noise(2, 2, 6), {}, id="one class"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_class": 1}, id="one of each class"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_class": 30, "max_per_image": 10}, id="low limits"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_image": 3000}, id="no limit of an image"),
    pytest.param(lambda: noise(1, 3, 6), {"nms_iou": 0.0}, id="no overlap at all"),
    pytest.param(lambda: noise(1, 3, 6), {"nms_iou": 1.0}, id="no suppression"),
    pytest.param(ties, {}, id="ties"),
    pytest.param(crowd, {}, id="crowd"),
    pytest.param(chain, {"nms_iou": 0.45}, id="long chain"),
    pytest.param(nothing, {}, id="nothing"),
    pytest.param(odd_numbers, {}, id="odd numbers"),
]


def on_gpu(predictions: Predictions) -> Predictions:
    return Predictions(*map(pretend, predictions))


def warm_up() -> None:
    """Constants come to the device once."""
    detect(on_gpu(noise(1, 2, 12)), **SETTINGS)
    normalise(pretend(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def same_bits(found: Detections, expected: Detections) -> None:
    assert found[4:] == expected[4:] == (None, None)  # no masks, no keypoints
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("make", "settings"), CASES)
def test_detection_is_the_same_on_both_devices_and_waits_three_times(
    make: Callable[[], Predictions], settings: dict[str, Any]
) -> None:
    predictions, settings = make(), {**SETTINGS, **settings}
    expected = greedy_detect(predictions, **settings)
    same_bits(detect(predictions, **settings), expected)
    with pretended_gpu() as waits:
        warm_up()
        waits.found, waits.launches = [], 0
        found = detect(on_gpu(predictions), **settings)
        assert len(waits.found) <= 3, waits.found
        # Views among them. 150 rounds of two operators and three views each are the worst, and no tenth of what it was.
        assert waits.launches < 1200
        same_bits(Detections(*map(values, found[:4])), expected)


def test_a_crowd_launches_no_more_than_few_objects() -> None:
    launches = []
    with pretended_gpu() as waits:
        for predictions in (noise(2, 5, 12), crowd(), noise(1, 5, 0)):
            warm_up()
            waits.launches = 0
            detect(on_gpu(predictions), **SETTINGS)
            launches.append(waits.launches)
    assert launches[0] == launches[1] == launches[2] < 250


def test_the_long_chain_needs_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the case above would say nothing of it."""
    rounds: list[int] = []
    settle = suppression._settle

    def recording(*arguments: Any) -> Tensor:
        rounds.append(arguments[-1])
        return settle(*arguments)

    monkeypatch.setattr(suppression, "_settle", recording)
    with pretended_gpu():
        found = detect(on_gpu(chain()), **{**SETTINGS, "nms_iou": 0.45})
        assert values(found.counts).tolist() == [75]  # every other one
    assert rounds == [suppression._ROUNDS_BEFORE_LOOKING, 150]


@pytest.mark.parametrize("make", [lambda: noise(1, 3, 8), crowd, chain])
def test_memory_is_bounded_by_comparing_in_parts(
    make: Callable[[], Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, settings = make(), {**SETTINGS, "nms_iou": 0.45}
    monkeypatch.setattr(suppression, "_PAIRS_AT_ONCE", 20_000)
    sizes: list[int] = []
    minimum = torch.minimum

    def recording(a: Tensor, b: Tensor) -> Tensor:
        sizes.append((out := minimum(a, b)).numel())
        return out

    expected = detect(predictions, **settings)
    with pretended_gpu() as waits:
        warm_up()
        waits.found = []
        monkeypatch.setattr(torch, "minimum", recording)
        same_bits(Detections(*map(values, detect(on_gpu(predictions), **settings)[:4])), expected)
        assert len(waits.found) <= 3
    assert len(sizes) > 2 and max(sizes) <= 20_000


@pytest.mark.parametrize("nms_iou", [0.3, 0.5, 0.7])
def test_the_fixed_point_is_torchvisions_nms(nms_iou: float) -> None:
    """On boxes without ties, where the roundings of both say the same."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(1200, 2, generator=generator, dtype=torch.float32)
    boxes_ltrb = torch.cat([corners, corners + 0.05 + 0.3 * torch.rand(1200, 2, generator=generator)], dim=1)
    group = torch.arange(1200) // 150  # 8 groups of 150
    stays = suppression._fixed_point_nms(boxes_ltrb, group, nms_iou, 150)
    for number in range(8):
        kept = nms(boxes_ltrb[group == number], torch.arange(150, 0, -1).float(), nms_iou)
        assert stays[group == number].nonzero().squeeze(1).tolist() == sorted(kept.tolist())


def coco_rows(found: Detections) -> Tensor:
    count = len(found.counts)
    truth = GroundTruth(np.arange(count), np.full((count, 2), 100, dtype=np.int32), [7, 8, 9, 11], list("abcd"), {})
    return evaluation._coco_rows(on_host(found), torch.arange(count), truth)


def test_an_evaluated_batch_waits_four_times() -> None:
    """Three in detection, and once for what was found."""
    predictions = noise(2, 5, 6)
    expected = coco_rows(detect(predictions, **SETTINGS))
    assert len(expected) > 20
    with pretended_gpu() as waits:
        warm_up()
        waits.found = []
        rows = coco_rows(detect(on_gpu(predictions), **SETTINGS))
        assert len(waits.found) <= 4 and waits.found[-1] == "copy to the host"
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("make", [lambda: noise(2, 5, 6), nothing])
def test_detections_come_to_the_host_as_they_are(make: Callable[[], Predictions]) -> None:
    found = detect(make(), **SETTINGS)
    same_bits(on_host(found), found)


# Finishing
