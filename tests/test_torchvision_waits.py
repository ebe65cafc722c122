"""The host does not wait for the device in what stands here in the place of torchvision's matching and losses."""

from typing import Any

import pytest
import torch
from fake_gpu import Waits, pretend, pretended_gpu, values
from torch import Tensor
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision_models import NUM_CLASSES, batch_of, their_targets

from ssd.detectors.torchvision.boxes import anchors_ltrb_px
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.dense import fcos, retinanet
from ssd.detectors.torchvision.names import settings_of
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
