"""What is found in several passes is what those passes find alone, put together by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import detectron_by_hand as by_hand
import numpy as np
import pytest
import torch
from detectron_models import NUM_CLASSES, batch_for, eval_batch_for, small
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.configuration import overlaid, text_of
from ssd.detectors.detectron.config.naming import configuration_of
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.targets import placement_of
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.torchvision.postprocess import detections_of, tta_steps_for_boxes
from ssd.detectors.torchvision.rcnn.parts import boxes_of
from ssd.detectors.tta.detect import detect_several, is_taken, joined_heatmaps, joined_masks, mirrored
from ssd.detectors.tta.passes import TTA, Pass
from ssd.detectors.tta.rules import KEYPOINT_RULES, MASK_RULES, Suppression
from ssd.keypoints import PERSON
from ssd.keypoints import mirrored as mirrored_points
from ssd.views import Look

THRESHOLDS = Thresholds(0.05, 0.5, 1000, 10)
FURTHER = Look((48, 90))


def small_model(kind: str) -> tuple[Any, Any]:
    """A fresh one with opinions, and its settings."""
    settings = small(kind)
    torch.manual_seed(0)
    model: Any = build(settings, NUM_CLASSES).eval()
    with torch.no_grad():
        model.roi_heads["box_predictor"].cls_score.weight.normal_(std=0.3)
    return model, settings


def shrunk(batch: EvalBatch) -> EvalBatch:
    """Another look at the same images: three quarters of the pixels in each direction."""
    sizes_px = (batch.placed_ltrb_px[:, 2:] * 3) // 4
    images = torch.zeros_like(batch.images)
    for place, image, (_, _, right, bottom), (width, height) in zip(
        images, batch.images, batch.placed_ltrb_px.tolist(), sizes_px.tolist(), strict=True
    ):
        seen = torch.nn.functional.interpolate(image[None, :, :bottom, :right], (height, width), mode="bilinear")
        place[:, :height, :width] = seen[0]
    assert batch.scales is not None
    placed = torch.cat([torch.zeros_like(sizes_px), sizes_px], dim=1)
    return batch._replace(images=images, placed_ltrb_px=placed, scales=batch.scales * 0.75)


@pytest.fixture(scope="module")
def with_masks() -> tuple[Any, Any, EvalBatch, EvalBatch]:
    model, settings = small_model("mask")
    batch = eval_batch_for(batch_for(settings))
    return model, settings, batch, shrunk(batch)


def several(model: Any, settings: Any, tta: TTA, batches: Sequence[EvalBatch]) -> Detections:
    with torch.no_grad():
        return detect_several(DETECTRON.tta_steps(settings, THRESHOLDS, tta.suppression), tta)(model, batches)  # type: ignore[misc]


def test_one_pass_is_plain_detection(with_masks: Any) -> None:
    model, settings, batch, _ = with_masks
    with torch.no_grad():
        plain = DETECTRON.detect(settings, THRESHOLDS)(model, batch)
    found = several(model, settings, TTA(), [batch])
    assert plain.counts.min() > 5
    for own, other in zip(found[:5], plain[:5], strict=True):
        torch.testing.assert_close(own, other)


def test_passes_are_joined_as_by_hand(with_masks: Any) -> None:
    """Detectron's order of things, with its closed boxes in pixels of the file."""
    model, settings, batch, other = with_masks
    passes = (Pass(), Pass(flip=True), Pass(FURTHER), Pass(FURTHER, flip=True))
    found = several(model, settings, TTA(passes, passes), [batch, other])
    limits = placement_of(batch, settings).stated_limits_px
    boxes, scores, labels = [], [], []
    seen = [(batch, False), (batch, True), (other, False), (other, True)]
    for each, flip in seen:
        with torch.no_grad():
            said = model((mirrored(each) if flip else each).images, placement_of(each, settings))
        closed = by_hand.closed(said.candidates.boxes_ltrb_px.numpy().astype(np.float64))
        if flip:
            width = (each.placed_ltrb_px[:, 2] / each.scales).numpy()[:, None]
            closed = np.stack(
                [width - closed[..., 2] - 1, closed[..., 1], width - closed[..., 0] - 1, closed[..., 3]], axis=2
            )
        boxes.append(torch.tensor(by_hand.half_open(closed), dtype=torch.float32))
        scores.append(said.candidates.scores)
        labels.append(said.candidates.labels)
    joined = Candidates(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1))
    nms_iou = float(np.nextafter(np.float32(0.5), np.float32(0)))
    expected = detections_of(joined, limits, THRESHOLDS._replace(nms_iou=nms_iou, max_per_class=4000))
    for own, by_parts in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(own, by_parts, rtol=1e-4, atol=1e-5)

    # The masks of what was found, in each pass.
    masks = []
    for each, flip in seen:
        boxes_px = (expected.boxes_ltrb * limits).numpy().astype(np.float64) - np.array([0, 0, 1, 1])
        if flip:
            width = (each.placed_ltrb_px[:, 2] / each.scales).numpy()[:, None]
            left, top, right, bottom = np.moveaxis(boxes_px, 2, 0)
            boxes_px = np.stack([width - right - 1, top, width - left - 1, bottom], axis=2)
        rois = torch.tensor(boxes_px * each.scales.numpy()[:, None, None] + np.array([0, 0, 1, 1]), dtype=torch.float32)
        with torch.no_grad():
            maps = list(model.backbone((mirrored(each) if flip else each).images).values())
            probabilities = model(maps, boxes_of(rois, expected.labels, None)).masks.sigmoid()
        masks.append(probabilities.flip(3) if flip else probabilities)
    real = (expected.labels > 0).unsqueeze(2).unsqueeze(3)
    torch.testing.assert_close(found.masks, torch.stack(masks).mean(0) * real, rtol=1e-3, atol=1e-4)


def test_a_mirrored_image_has_mirrored_points_of_the_other_side() -> None:
    """A network that finds anything does so here: with both passes, what it finds of an image's mirror image is the
    mirror image of what it finds, left and right exchanged."""
    model, settings = small_model("keypoints")
    batch = eval_batch_for(batch_for(settings))
    # Of exactly one scale, so that the mirror's axis is the image's.
    sizes_px = batch.placed_ltrb_px[:, 2:]
    scales = torch.tensor([1.0, 0.5], dtype=torch.float64)
    batch = batch._replace(scales=scales, stated_px=sizes_px * torch.tensor([[1], [2]]))
    both = (Pass(), Pass(flip=True))
    tta = TTA(both, keypoints=both)
    found, other = (several(model, settings, tta, [each]) for each in (batch, mirrored(batch)))
    assert found.counts.min() > 3 and torch.equal(found.counts, other.counts)
    torch.testing.assert_close(found.scores, other.scores, rtol=1e-4, atol=1e-5)
    left, top, right, bottom = other.boxes_ltrb.unbind(2)
    real = found.labels > 0
    torch.testing.assert_close(
        found.boxes_ltrb[real], torch.stack([1 - right, top, 1 - left, bottom], dim=2)[real], rtol=1e-3, atol=1e-3
    )
    assert found.keypoints is not None and other.keypoints is not None
    swapped = other.keypoints[:, :, mirrored_points(PERSON.names)]
    torch.testing.assert_close(found.keypoints[real][..., 2], swapped[real][..., 2], rtol=1e-3, atol=1e-4)


class Finds:
    """A box about each blot, however large the image is: B x 3 x H x W of zeros but for columns and rows of ones."""

    def __call__(self, images: Tensor, limits: Tensor) -> Candidates:
        boxes = torch.zeros(len(images), 2, 4)
        for row, image in enumerate(images[:, 0]):
            columns = image.amax(dim=0).nonzero().flatten()
            rows = image.amax(dim=1).nonzero().flatten()
            boxes[row, 0] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        boxes[:, 1] = boxes[:, 0] + torch.tensor([-4.0, 0, 0, 0])  # and one that reaches farther left
        return Candidates(boxes, torch.tensor([[0.9, 0.5]]).expand(len(images), -1), torch.ones(len(images), 2).long())


def blot(size_px: tuple[int, int], box: tuple[int, int, int, int], room_px: tuple[int, int]) -> EvalBatch:
    images = torch.zeros(1, 3, room_px[1], room_px[0])
    images[:, :, box[1] : box[3], box[0] : box[2]] = 1
    return EvalBatch(images, torch.tensor([[0, 0, *size_px]]), torch.arange(1))


def test_boxes_of_all_looks_lie_where_they_are_in_the_first() -> None:
    first, second = blot((40, 30), (10, 6, 20, 12), (48, 32)), blot((80, 60), (20, 12, 40, 24), (80, 64))
    tta = TTA((Pass(), Pass(flip=True), Pass(FURTHER), Pass(FURTHER, flip=True)))
    steps = tta_steps_for_boxes(THRESHOLDS._replace(nms_iou=0.99))
    found = detect_several(steps, tta)(Finds(), [first, second])
    assert found.counts.tolist() == [5]  # the four equal ones, and what reached left in each pass
    torch.testing.assert_close(found.boxes_ltrb[0, 0] * torch.tensor([40, 30, 40, 30]), torch.tensor([10.0, 6, 20, 12]))
    edges = (found.boxes_ltrb[0, 1:5, 0::2] * 40).round(decimals=3).tolist()
    # 4 pixels farther to the left, or in a mirror image to the right; of the look of twice the size, 2 pixels.
    assert sorted(edges) == [[6, 20], [8, 20], [10, 22], [10, 24]]


def test_a_symmetric_image_is_found_symmetrically() -> None:
    batch = blot((40, 30), (15, 6, 25, 12), (48, 32))
    found = detect_several(tta_steps_for_boxes(THRESHOLDS._replace(nms_iou=0.99)), TTA((Pass(), Pass(flip=True))))(
        Finds(), [batch]
    )
    count = int(found.counts)
    edges = (found.boxes_ltrb[0, :count, 0::2] * 40).round()
    assert count == 3
    assert sorted(edges.tolist()) == sorted((40 - edges).flip(1).tolist()) == [[11, 25], [15, 25], [15, 29]]


def test_only_where_an_image_lies_is_it_mirrored() -> None:
    batch = blot((40, 30), (0, 0, 5, 30), (48, 32))
    seen = mirrored(batch).images[0, 0]
    assert seen[:30, 35:40].eq(1).all() and seen.sum() == 5 * 30


@pytest.mark.parametrize("rule", MASK_RULES)
def test_masks_are_joined_by_detectrons_rules(rule: str) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 5, (4, 2, 3, 5, 5)).astype(np.float32)
    logits[0, 0, 0, 0], logits[1, 0, 0, 1], logits[2, 0, 1, 0] = 200, -200, 30  # certain in float32
    soft = torch.tensor(logits).sigmoid().numpy()
    with np.errstate(divide="ignore"):
        of_logits = np.mean([-np.log((1 - each) / np.maximum(each, 1e-20)) for each in soft], axis=0)
    expected = {
        "SOFT_AVG": np.mean(soft, axis=0),
        "SOFT_MAX": np.amax(soft, axis=0),
        "LOGIT_AVG": 1 / (1 + np.exp(-of_logits)),
    }[rule]
    found = joined_masks((torch.tensor(each) for each in logits), rule)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.isfinite(found.numpy()).all()


@pytest.mark.parametrize("rule", KEYPOINT_RULES)
@pytest.mark.parametrize("area_px", [None, 400.0])
def test_points_of_small_and_large_objects_are_joined_by_detectrons_rules(rule: str, area_px: float | None) -> None:
    passes = [Pass(), Pass(Look((600, 2000))), Pass(Look((800, 2000)), flip=True), Pass(Look((1000, 2000)))]
    tta = TTA(keypoint_area_px=area_px, short_side_px=800)
    areas_px = np.array([[100.0, 399.9, 400.0, 5000.0]])
    maps = np.random.default_rng(2).normal(0, 1, (4, 1, 4, 2, 3, 3)).astype(np.float32)
    taken = [is_taken(one, torch.tensor(areas_px), tta) for one in passes]
    found = joined_heatmaps(zip(map(torch.tensor, maps), taken, strict=True), rule)
    for place, area in enumerate(areas_px[0]):
        kept = [0, 1, 2, 3] if area_px is None else [0, 2, 3] if area < area_px else [0, 1, 2]
        join = np.mean if rule == "HM_AVG" else np.amax
        np.testing.assert_allclose(found[0, place], join(maps[kept, 0, place], axis=0), rtol=1e-5, atol=1e-6)


def test_votes_and_soft_scores_of_a_configuration_hold_in_one_pass_too() -> None:
    model, settings = small_model("faster")
    batch = eval_batch_for(batch_for(settings))
    words = ["TEST.SOFT_NMS.ENABLED", "True", "TEST.SOFT_NMS.METHOD", "gaussian", "TEST.BBOX_VOTE.ENABLED", "True"]
    soft = replace(settings, cfg=text_of(overlaid(configuration_of(settings), words)))
    with torch.no_grad():
        found = DETECTRON.detect(soft, THRESHOLDS)(model, batch)
        plain = DETECTRON.detect(settings, THRESHOLDS)(model, batch)
    asked = Suppression(soft="gaussian", votes=True)
    again = several(model, settings, TTA(suppression=asked), [batch])
    assert not torch.equal(found.boxes_ltrb, plain.boxes_ltrb)
    for own, other in zip(found[:4], again[:4], strict=True):
        torch.testing.assert_close(own, other)
