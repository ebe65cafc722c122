"""An exported RetinaNet finds in a file that runs without this program what it finds here."""

import warnings
from pathlib import Path

import pytest
import torch
from test_torchvision_detections import eval_batch, with_opinions
from torchvision_models import NUM_CLASSES, batch_of

from ssd.config import Thresholds
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.export import exportable
from ssd.detectors.torchvision.names import settings_of
from ssd.errors import InputError
from ssd.images import normalise
from ssd.inference.export import to_program

THRESHOLDS = Thresholds(0.05, 0.5, 300, 60)


def test_r_cnns_are_refused() -> None:
    settings = settings_of("fasterrcnn_resnet18_fpn")
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    with pytest.raises(InputError, match="Faster R-CNN-resnet18-FPN cannot be exported"):
        exportable(model, settings, THRESHOLDS)


@pytest.mark.slow
@torch.no_grad()
def test_the_graph_takes_any_number_and_size_of_images(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = settings_of("retinanet_resnet18_fpn")
    torch.manual_seed(0)
    model = with_opinions(build(settings, NUM_CLASSES).eval(), batch_of().images)
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
        boxes, scores, labels, found = session.run(None, {"images": images.numpy(), "sizes_px": batch.sizes_px.numpy()})
        finished = normalise(images)
        for image, (width, height) in zip(finished, batch.sizes_px.tolist(), strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        expected = TORCHVISION.detect(settings, THRESHOLDS)(model, eval_batch(batch._replace(images=finished)))
        assert found.tolist() == expected.counts.tolist() and found.min() > 10
        torch.testing.assert_close(torch.from_numpy(scores), expected.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(boxes), expected.boxes_ltrb, rtol=1e-3, atol=1e-3)
        assert torch.equal(torch.from_numpy(labels), expected.labels)
