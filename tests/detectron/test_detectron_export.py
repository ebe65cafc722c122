"""An exported R-CNN of Detectron finds in a file that runs without this program what it finds here."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron_models import NUM_CLASSES, small

from ssd.batch import FIELDS_OF_BOXES, Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.export import DetectsInGraph, exportable
from ssd.images import normalise
from ssd.inference.export import to_program

THRESHOLDS = Thresholds(0.05, 0.5, 300, 20)


@pytest.mark.parametrize("kind", ["mask", "keypoints", "C4", "proposals"])
def test_every_kind_is_made_a_graph_of(kind: str) -> None:
    settings = small(kind)
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    module = exportable(model, settings, THRESHOLDS).module
    assert isinstance(module, DetectsInGraph) and not module.training
    assert module.classes == (1 if kind == "proposals" else NUM_CLASSES - 1)
    assert module.thresholds.nms_iou == 1.0 if kind == "proposals" else 0.49 < module.thresholds.nms_iou < 0.5


@pytest.mark.slow
@torch.no_grad()
def test_the_graph_takes_any_number_and_size_of_images(tmp_path: Path) -> None:
    """With masks and points: of one map, whose graph is the smallest."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = replace(small("C4 v0upshare"), finds_keypoints=True)
    torch.manual_seed(0)
    model = build(settings, NUM_CLASSES).eval()
    model.roi_heads["box_predictor"].cls_score.weight.mul_(300)  # type: ignore[union-attr, operator]
    exported = exportable(model, settings, THRESHOLDS)
    assert exported.outputs == (*FIELDS_OF_BOXES, "masks", "keypoints")
    program = to_program(exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, input_names=list(exported.inputs), output_names=list(exported.outputs), verbose=False
        )
    assert converted is not None
    converted.save(tmp_path / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    view = DETECTRON.view(settings)
    for batch_size, height, width in ((1, 160, 224), (2, 192, 160)):
        images = torch.randint(256, (batch_size, 3, height, width), dtype=torch.uint8)
        sizes_px = torch.tensor([[width, height], [width - 20, height - 32]][:batch_size])
        outputs = session.run(None, {"images": images.numpy(), "sizes_px": sizes_px.numpy()})
        found = Detections(**dict(zip(exported.outputs, map(torch.from_numpy, outputs), strict=True)))
        finished = normalise(images, view.mean, view.std)
        for image, (right, bottom) in zip(finished, sizes_px.tolist(), strict=True):
            image[:, bottom:] = 0
            image[:, :, right:] = 0
        placed = torch.cat([torch.zeros_like(sizes_px), sizes_px], dim=1)
        expected = DETECTRON.detect(settings, THRESHOLDS)(model, EvalBatch(finished, placed, torch.arange(batch_size)))
        assert found.counts.tolist() == expected.counts.tolist() and found.counts.min() > 3
        assert found.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        pixels = sizes_px.repeat(1, 2).unsqueeze(1)
        torch.testing.assert_close(found.boxes_ltrb * pixels, expected.boxes_ltrb * pixels, rtol=0, atol=1e-3)
        assert found.masks is not None and expected.masks is not None
        assert expected.masks[expected.labels > 0].std() > 0.02
        torch.testing.assert_close(found.masks, expected.masks, rtol=0, atol=1e-4)
        assert found.keypoints is not None and expected.keypoints is not None
        a, b = (each.keypoints[..., :2] * pixels[:, :, None, :2] for each in (found, expected))  # type: ignore[index]
        # Of two cells that are nearly as high either may be the highest.
        assert ((a - b).abs().amax(dim=3) < 1e-2).float().mean() > 0.95
        torch.testing.assert_close(found.keypoints[..., 2], expected.keypoints[..., 2], rtol=1e-3, atol=1e-2)
