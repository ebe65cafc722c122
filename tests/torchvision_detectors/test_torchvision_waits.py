"""The host does not wait for the device in what stands here in the place of torchvision's matching and losses."""

from typing import Any

import pytest
import torch
from fake_gpu import Waits, pretend, pretended_gpu, values
from torch import Tensor
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision_models import NUM_CLASSES, batch_of, their_targets

from ssd.detectors.torchvision.boxes import anchors_ltrb_px
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.dense import fcos, retinanet
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.rcnn import parts, proposals, roi_pooling
from ssd.detectors.torchvision.rcnn.sampling import sample
from ssd.detectors.torchvision.targets import Targets, limits_px, targets_of

GRIDS = ((12, 12), (6, 6), (3, 3), (2, 2), (1, 1))


def on_gpu(targets: Targets) -> Targets:
    return targets._replace(boxes_ltrb_px=pretend(targets.boxes_ltrb_px), labels=pretend(targets.labels))


def outputs_of(family: str, images: Tensor) -> Any:
    """Random ones, on the CPU."""
    torch.manual_seed(0)
    maps = [torch.zeros(1, 1, *grid) for grid in GRIDS]
    cells = retinanet.CELLS if family == "retinanet" else fcos.CELLS
    anchors = anchors_ltrb_px(cells, maps, images)
    per_map = [len(anchors) * height * width // 194 for height, width in GRIDS]
    logits, offsets = torch.randn(2, len(anchors), NUM_CLASSES), torch.rand(2, len(anchors), 4)
    if family == "retinanet":
        return retinanet.Outputs(logits, offsets, anchors, per_map)
    return fcos.Outputs(logits, offsets, torch.randn(2, len(anchors)), anchors, per_map)


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_losses_of_dense_detectors_wait_for_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of((3, 0))
    with torch.device("meta"):
        model: Any = build(settings_of(f"{family}_resnet18_fpn"), NUM_CLASSES)
    outputs = outputs_of(family, batch.images)
    monkeypatch.setattr(model, "outputs", lambda images: outputs)
    with torch.no_grad():
        expected = model(batch.images, targets_of(batch))
    with pretended_gpu() as waits:
        there = type(outputs)(*(pretend(each) if isinstance(each, Tensor) else each for each in outputs))
        monkeypatch.setattr(model, "outputs", lambda images: there)
        losses = model(None, on_gpu(targets_of(batch)))
        assert waits.found == []
    for name, loss in losses.items():
        torch.testing.assert_close(values(loss), expected[name])


def test_losses_of_masks_and_keypoints_wait_for_nothing() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[2.0, 3, 20, 30], [5, 1, 33, 25], [8, 8, 30, 22]])
    masks, windows, matched = torch.ones(2, 22, 22, dtype=torch.uint8), boxes[:2] + 1, torch.tensor([0, 1, -1])
    points = torch.cat([torch.rand(3, 5, 2) * 35, torch.randint(0, 3, (3, 5, 1)).float()], dim=2)
    logits, heatmaps, labels = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 8, 8), torch.tensor([2, 1, 0])
    inputs = (boxes, masks, windows, matched, points, logits, heatmaps, labels, labels > 0)

    def losses(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        boxes, masks, windows, matched, points, logits, heatmaps, labels, counted = inputs
        of_masks = parts.mask_loss(logits, labels, parts.mask_targets(masks, windows, matched, boxes, 8), counted)
        cells, stated = parts.keypoint_targets(points, boxes, 8)
        return of_masks, parts.keypoint_loss(heatmaps, cells, stated & counted.unsqueeze(1))

    expected = losses(*inputs)
    with pretended_gpu() as waits:
        found = losses(*map(pretend, inputs))
        assert waits.found == []
    for loss, value in zip(found, expected, strict=True):
        torch.testing.assert_close(values(loss), value)


def test_torchvisions_own_losses_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instrument sees what is left out here."""
    batch = batch_of((3, 0))
    outputs = outputs_of("retinanet", batch.images)
    with torch.device("meta"):
        model = TheirRetinaNet(build(settings_of("retinanet_resnet18_fpn"), NUM_CLASSES).backbone, NUM_CLASSES)
    with pretended_gpu() as waits:
        assert waits_of(waits, model, outputs, batch) > 5


def waits_of(waits: Waits, model: Any, outputs: retinanet.Outputs, batch: Any) -> int:
    targets = [{name: pretend(value) for name, value in each.items()} for each in their_targets(batch)]
    said = {"cls_logits": pretend(outputs.logits), "bbox_regression": pretend(outputs.offsets)}
    model.compute_loss(targets, said, [pretend(outputs.anchors_ltrb_px)] * 2)
    return len(waits.found)


def test_samples_are_drawn_without_a_wait() -> None:
    labels = torch.tensor([[1, 0, -1, 0, 2, 0], [0, 0, 0, -1, -1, -1]])
    with pretended_gpu() as waits:
        place, counted = sample(pretend(labels), 4, 0.5)
        limits_px(torch.tensor([[4, 5]]), torch.device("cuda", 0))
        assert waits.found == []
    assert values(counted).sum(dim=1).tolist() == [4, 3]
    assert (labels.gather(1, values(place)) >= 0)[values(counted)].all()


def test_proposals_are_suppressed_with_one_wait_to_what_torchvision_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    left_top = torch.rand(2, 60, 2, generator=generator) * 30
    boxes = torch.cat([left_top, left_top + 20 + torch.rand(2, 60, 2, generator=generator) * 10], dim=2)
    scores = torch.rand(2, 60, generator=generator)
    scores[:, ::7] = -1  # no boxes
    level = torch.arange(60).expand(2, -1) % 3
    limits = limits_px(torch.tensor([[64, 64], [60, 64]]), torch.device("cpu"))
    boxes = torch.minimum(boxes, limits)
    expected = proposals._suppressed(boxes, scores, level, 15)
    with pretended_gpu() as waits:
        on_gpu = [pretend(each) for each in (boxes, scores, level, limits)]
        found = proposals.suppressed_at_once(*on_gpu, 60, 15)
        assert len(waits.found) == 1
    counts = expected.real.sum(dim=1)
    assert values(found.real).sum(dim=1).tolist() == counts.tolist() and counts.min() > 5
    for image, count in enumerate(counts.tolist()):
        torch.testing.assert_close(
            values(found.boxes_ltrb_px)[image, :count], expected.boxes_ltrb_px[image, :count], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("chooses_on", [("cpu",), ()], ids=["chooses", "samples all"])
def test_boxes_are_pooled_as_torchvision_does(chooses_on: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_pooling, "_CHOOSES_ON", chooses_on)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 512 // stride, 512 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    sides = torch.tensor([10.0, 60, 120, 200, 300, 460])
    boxes = torch.stack([torch.full_like(sides, 7), torch.full_like(sides, 11), 7 + sides, 11 + sides], dim=1)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(place): each for place, each in enumerate(maps)}
    expected = theirs(named, [boxes, boxes.flip(0)], [(512, 512)] * 2)
    rois = roi_pooling.rois_of(torch.stack([boxes, boxes.flip(0)]))
    assert set(roi_pooling.level_of(boxes, (4, 8, 16, 32)).tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(roi_pooling.pool(maps, (4, 8, 16, 32), rois), expected)
