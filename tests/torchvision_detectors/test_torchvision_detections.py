"""What torchvision's detectors find here is what torchvision's own models find."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.models.detection as their_models
from torch import Tensor
from torchvision.models.resnet import Bottleneck
from torchvision_models import FAMILIES, NUM_CLASSES, AsItIs, batch_of, eval_batch, their_model, with_opinions

from ssd.batch import Detections, RaggedBatch
from ssd.config import Thresholds
from ssd.detectors.postprocess.candidates import Candidates, best_of_maps
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.postprocess import detections_of

THRESHOLDS = Thresholds(score_threshold=0.05, nms_iou=0.5, max_per_class=5000, max_per_image=60)


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_torchvisions(family: str) -> None:
    batch = batch_of()
    settings = settings_of(f"{family}_resnet18_fpn")
    torch.manual_seed(0)
    ours = with_opinions(build(settings, NUM_CLASSES).eval(), batch.images)
    names = {"fasterrcnn": ("box_score_thresh", "box_nms_thresh", "box_detections_per_img")}
    options: dict[str, Any] = dict(
        zip(names.get(family, ("score_thresh", "nms_thresh", "detections_per_img")), (0.05, 0.5, 60), strict=True)
    )
    theirs = their_model(family, batch, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found = TORCHVISION.detect(settings, THRESHOLDS)(ours, eval_batch(batch))
        expected = theirs(list(batch.images))
    assert found.counts.sum() > 20, "a comparison of nothing"
    assert_equal(found, expected, batch)


def assert_equal(found: Detections, expected: list[dict[str, Tensor]], batch: RaggedBatch) -> None:
    for image, other in enumerate(expected):
        count = int(found.counts[image])
        assert count == len(other["scores"])
        size_px = batch.sizes_px[image].repeat(2)
        torch.testing.assert_close(found.scores[image, :count], other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes_ltrb[image, :count], other["boxes"] / size_px, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.labels[image, :count], other["labels"])
        assert not found.scores[image, count:].any() and not found.labels[image, count:].any()


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ],
)
def test_detections_of_the_other_builders_are_torchvisions(name: str) -> None:
    batch = batch_of()
    settings = settings_of(name, "none")
    torch.manual_seed(0)
    ours = build(settings, NUM_CLASSES).eval()
    with torch.no_grad():
        for module in ours.modules():
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.2)  # activations of a fresh ResNet-50 double with each block
    ours = with_opinions(ours, batch.images)
    thresholds: dict[str, Any] = {"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 60}
    if "rcnn" in name:
        thresholds = {f"box_{each}": value for each, value in thresholds.items()}
        if name.endswith("_v2"):  # a fiftieth of its work
            ours.numbers = replace(ours.numbers, after_nms=(20, 20))
            thresholds["rpn_post_nms_top_n_test"] = 20
    theirs: Any = getattr(their_models, name)(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **thresholds
    ).eval()
    theirs.transform = AsItIs(batch)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found = TORCHVISION.detect(settings, THRESHOLDS)(ours, eval_batch(batch))
        expected = theirs(list(batch.images))
    assert found.counts.sum() > 20, "a comparison of nothing"
    assert_equal(found, expected, batch)


def of(boxes: list[list[float]], scores: list[float], labels: list[int], **thresholds: Any) -> Detections:
    candidates = Candidates(torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels]))
    return detections_of(candidates, torch.tensor([[[100.0, 50.0, 100.0, 50.0]]]), THRESHOLDS._replace(**thresholds))


def test_boxes_are_fractions_of_the_image_and_fall_to_better_ones_of_their_class() -> None:
    found = of([[0, 0, 50, 25], [0, 0, 50, 20], [0, 0, 50, 25], [50, 25, 100, 50]], [0.5, 0.9, 0.4, 0.04], [1, 1, 2, 3])
    assert found.counts.tolist() == [2]
    torch.testing.assert_close(found.boxes_ltrb[0, :2], torch.tensor([[0, 0, 0.5, 0.4], [0, 0, 0.5, 0.5]]))
    assert found.labels[0, :3].tolist() == [1, 2, 0]
    torch.testing.assert_close(found.scores[0, :3], torch.tensor([0.9, 0.4, 0.0]))


def test_only_the_best_of_a_class_are_compared_and_only_the_best_of_an_image_stay() -> None:
    apart = [[10.0 * i, 0, 10.0 * i + 5, 5] for i in range(4)]
    found = of(apart, [0.5, 0.6, 0.7, 0.8], [1, 1, 1, 2], max_per_class=2, max_per_image=2)
    assert found.scores.shape == (1, 2)
    torch.testing.assert_close(found.scores[0], torch.tensor([0.8, 0.7]))
    assert of(apart, [0.5, 0.6, 0.7, 0.8], [1, 1, 1, 2], max_per_class=2).counts.tolist() == [3]


def test_a_box_of_nan_is_no_detection() -> None:
    found = of([[0, 0, float("nan"), 5], [0, 0, 5, 5]], [0.9, 0.5], [1, 1])
    assert found.counts.tolist() == [1] and not found.boxes_ltrb.isnan().any()


def test_the_best_of_each_map_are_named_by_anchor_and_class() -> None:
    scores = torch.zeros(1, 402, 3)
    scores[0, 7, 2], scores[0, 401, 1] = 5, 4
    best, anchor, label = best_of_maps(scores, [400, 2])
    assert best.shape == (1, 2000)
    assert (best[0, 0], anchor[0, 0], label[0, 0]) == (5, 7, 2)
    assert (best[0, 1000], anchor[0, 1000], label[0, 1000]) == (4, 401, 1)
    assert best[0, 1006:].isneginf().all() and anchor.max() == 401  # the second map has six pairs
