"""An exported detector finds in a file that runs without this program what it finds here."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision_models import NUM_CLASSES, assert_same_detections, batch_of, eval_batch, with_opinions

from ssd.config import Thresholds
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.export import DetectsInGraph, exportable
from ssd.detectors.torchvision.names import settings_of
from ssd.images import normalise
from ssd.inference.export import to_program

THRESHOLDS = Thresholds(0.05, 0.5, 300, 60)


@pytest.mark.parametrize("family", ["maskrcnn", "keypointrcnn"])
def test_the_other_r_cnns_are_exported_as_faster_r_cnns(family: str) -> None:
    settings = settings_of(f"{family}_resnet18_fpn")
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    module = exportable(model, settings, THRESHOLDS).module
    assert isinstance(module, DetectsInGraph) and module.num_classes == NUM_CLASSES and not module.training


@pytest.mark.slow
@pytest.mark.parametrize("family", ["retinanet", "fcos", "fasterrcnn"])
@torch.no_grad()
def test_the_graph_takes_any_number_and_size_of_images(family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = settings_of(f"{family}_resnet18_fpn")
    torch.manual_seed(0)
    model = with_opinions(build(settings, NUM_CLASSES).eval(), batch_of().images)
    if family == "fasterrcnn":  # a tenth of its work
        model.numbers = replace(model.numbers, before_nms=(0, 150), after_nms=(0, 100))
    exported = exportable(model, settings, THRESHOLDS)
    program = to_program(exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, input_names=list(exported.inputs), output_names=["boxes", "scores", "labels", "counts"]
        )
    assert converted is not None
    converted.save(tmp_path / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for counts, height_px, width_px in (((1,), 160, 224), ((1, 1), 192, 160)):
        batch = batch_of(counts, height_px, width_px)
        images = torch.randint(256, batch.images.shape, dtype=torch.uint8)
        found = session.run(None, {"images": images.numpy(), "sizes_px": batch.sizes_px.numpy()})
        finished = normalise(images)
        for image, (width, height) in zip(finished, batch.sizes_px.tolist(), strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        expected = TORCHVISION.detect(settings, THRESHOLDS)(model, eval_batch(batch._replace(images=finished)))
        assert_same_detections(found, expected)
