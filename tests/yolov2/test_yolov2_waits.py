"""The host does not wait for the device in YOLOv2's loss and colours, and twice in its detections."""

import pytest
import torch
from fake_gpu import GPU, pretend, pretended_gpu, values
from test_region_loss import REGION, batch_of

from pipelines.ragged.draws import Sample
from pipelines.ragged.shown import distorted
from ssd.batch import EvalBatch, RaggedBatch, whole
from ssd.config import Thresholds
from ssd.detectors.yolov2 import postprocess
from ssd.detectors.yolov2.darknet.model import Raw
from ssd.detectors.yolov2.loss import region_losses

IMAGES = [[(1, 0.7, 0.3, 0.5, 0.25), (0, 0.2, 0.6, 0.3, 0.3)], [], [(1, 0.4, 0.4, 0.6, 0.6)]]


def on_gpu(batch: RaggedBatch) -> RaggedBatch:
    there = {name: pretend(getattr(batch, name)) for name in ("images", "boxes_ltrb_px", "labels")}
    return batch._replace(**there)


@torch.no_grad()
@pytest.mark.parametrize("form", ["darknet", "square-root"])
@pytest.mark.parametrize("bias_match", [True, False])
def test_the_loss_waits_for_nothing(form: str, bias_match: bool) -> None:
    region = REGION._replace(bias_match=bias_match)
    said = torch.randn(3, 14, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = region_losses(Raw(said, torch.tensor(0)), batch_of(IMAGES), region, form)
    with pretended_gpu() as waits:
        raw, there = Raw(pretend(said), pretend(torch.tensor(0))), on_gpu(batch_of(IMAGES))
        region_losses(raw, there, region, form)  # constants are copied once
        waits.found.clear()
        found = region_losses(raw, there, region, form)
        assert waits.found == []
    for name, loss in found.items():
        torch.testing.assert_close(values(loss), expected[name])


@torch.no_grad()
@pytest.mark.parametrize("is_whole", [True, False])
def test_detections_wait_twice(is_whole: bool) -> None:
    said = torch.randn(2, 14, 4, 4, generator=torch.Generator().manual_seed(0))
    images, thresholds = torch.zeros(2, 3, 64, 64), Thresholds(0.05, 0.45, 50, 20)
    placed = whole(images) if is_whole else torch.tensor([[0, 8, 64, 56]] * 2)
    batch = EvalBatch(images, placed, torch.arange(2))
    expected = postprocess.detections_of(said, REGION, batch, thresholds)
    with pretended_gpu() as waits:
        there = batch._replace(images=pretend(images))
        postprocess.detections_of(pretend(said), REGION, there, thresholds)
        waits.found.clear()
        found = postprocess.detections_of(pretend(said), REGION, there, thresholds)
        assert len(waits.found) <= 2
    assert values(found.counts).tolist() == expected.counts.tolist() and expected.counts.min() > 5
    torch.testing.assert_close(values(found.scores), expected.scores)
    torch.testing.assert_close(values(found.boxes_ltrb), expected.boxes_ltrb)


@torch.no_grad()
def test_colours_wait_for_nothing() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = [Sample(0, (8, 8), False, None, (0.1, 1.2, 0.9)), Sample(1, (8, 8), False, None, (-0.1, 0.8, 1.3))]
    expected = distorted(pixels, samples)
    with pretended_gpu() as waits:
        found = distorted(pretend(pixels), samples)
        assert found.device == GPU and waits.found == []
    torch.testing.assert_close(values(found), expected)
