"""From a YOLOv2's output to detections: by hand, beside torchvision's suppression, and in an exported file."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from darknet_networks import TINY
from torchvision.ops import batched_nms

from ssd.batch import EvalBatch, whole
from ssd.config import Thresholds
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Region
from ssd.detectors.yolov2.detector import YOLOV2
from ssd.detectors.yolov2.postprocess import detections_of, region_of, scored
from ssd.detectors.yolov2.settings import YOLOv2Settings, network_of
from ssd.inference.export import to_program

SETTINGS = YOLOv2Settings("tiny.cfg", TINY)
REGION = Region(anchors=(1.0, 1.0, 1.5, 2.5), num=2, classes=2, softmax=True)
THRESHOLDS = Thresholds(score_threshold=0.005, nms_iou=0.45, max_per_class=200, max_per_image=100)


def batch_of(values: torch.Tensor, placed: list[int] | None = None) -> EvalBatch:
    images = torch.zeros(len(values), 3, 64, 64)
    where = whole(images) if placed is None else torch.tensor([placed] * len(values))
    return EvalBatch(images, where, torch.arange(len(values)))


def one_box() -> torch.Tensor:
    """4 x 4 cells. In row 1, column 2, the second anchor (1.5 x 2.5 cells) says: centre in the middle, as wide as the
    anchor, half as high; objectness 3/4, class 2 nine times as likely as class 1."""
    values = torch.zeros(1, 14, 4, 4)
    values[0, [4, 11]] = -20
    values[0, 7:, 1, 2] = torch.tensor([0.0, 0.0, 0.0, np.log(0.5), np.log(3), 0.0, np.log(9)])
    return values


def test_a_box_by_hand() -> None:
    found = detections_of(one_box(), REGION, batch_of(one_box()), THRESHOLDS)
    assert found.counts.tolist() == [2]
    torch.testing.assert_close(found.scores[0, :2], torch.tensor([0.675, 0.075]))
    assert found.labels[0, :3].tolist() == [2, 1, 0]
    centre_x, centre_y, width, height = 2.5 / 4, 1.5 / 4, 1.5 / 4, 1.25 / 4
    box = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    torch.testing.assert_close(found.boxes_ltrb[0, 0], torch.tensor(box))
    assert torch.equal(found.boxes_ltrb[0, 0], found.boxes_ltrb[0, 1])


def test_boxes_go_back_to_an_image_that_fills_a_part_of_the_input() -> None:
    """In the middle 32 of 64 rows, with 16 above."""
    whole_image = detections_of(one_box(), REGION, batch_of(one_box()), THRESHOLDS).boxes_ltrb[0, 0]
    found = detections_of(one_box(), REGION, batch_of(one_box(), [0, 16, 64, 48]), THRESHOLDS).boxes_ltrb[0, 0]
    left, top, right, bottom = whole_image.tolist()
    expected = [left, max(0, (64 * top - 16) / 32), right, min(1, (64 * bottom - 16) / 32)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_infinite_or_broken_box_is_no_detection() -> None:
    values = one_box()
    values[0, 9, 1, 2] = torch.nan
    assert detections_of(values, REGION, batch_of(values), THRESHOLDS).counts.tolist() == [0]
    values[0, 9, 1, 2] = 1e4
    found = detections_of(values, REGION, batch_of(values), THRESHOLDS)
    assert found.counts.tolist() == [2] and found.boxes_ltrb[0, 0, [0, 2]].tolist() == [0, 1]


@torch.no_grad()
def test_suppression_is_per_class_on_objectness_times_class() -> None:
    """Beside torchvision's, on random outputs of many overlapping boxes."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 14, 6, 6, generator=generator)
    found = detections_of(values, REGION, batch_of(values), THRESHOLDS)
    boxes, scores = scored(values, REGION)
    for image in range(3):
        box, label = (scores[image] > THRESHOLDS.score_threshold).nonzero(as_tuple=True)
        kept = batched_nms(boxes[image][box], scores[image][box, label], label, THRESHOLDS.nms_iou)
        kept = kept[: THRESHOLDS.max_per_image]
        count = int(found.counts[image])
        assert count == len(kept) and 30 < count < len(box)
        torch.testing.assert_close(found.scores[image, :count], scores[image][box, label][kept])
        torch.testing.assert_close(found.boxes_ltrb[image, :count], boxes[image][box][kept].clamp(0, 1))
        assert torch.equal(found.labels[image, :count], label[kept] + 1)


@torch.no_grad()
def test_a_graph_of_fitted_images_says_where_boxes_are_in_them() -> None:
    """As `detect` does, for images that lie each elsewhere in their inputs."""
    torch.manual_seed(0)
    settings = replace(SETTINGS, resize="letterbox")
    assert YOLOV2.view(settings).fits and not YOLOV2.view(SETTINGS).fits  # type: ignore[union-attr]
    model = Darknet(network_of(settings)).eval()
    model.layers[-2].conv.weight.mul_(4)  # type: ignore[union-attr, operator]
    thresholds = THRESHOLDS._replace(max_per_image=60)
    assert YOLOV2.exportable is not None
    exported = YOLOV2.exportable(model, settings, thresholds)
    assert exported.inputs.keys() == {"images", "placed_ltrb_px"} and "gray 128" in exported.input_text
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    placed = torch.tensor([[0, 8, 64, 56], [20, 0, 44, 64]])
    found = exported.module(images, placed)
    expected = YOLOV2.detect(settings, thresholds)(model, EvalBatch(images.float() / 255, placed, torch.arange(2)))
    assert found["counts"].tolist() == expected.counts.tolist() and min(found["counts"]) > 5
    torch.testing.assert_close(found["scores"], expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["boxes_ltrb"], expected.boxes_ltrb, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_file_finds_what_is_found_here(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = Darknet(YOLOV2.build(SETTINGS, 4).network).eval()  # of three classes, where the cfg has two
    model.layers[-2].conv.weight.mul_(4)  # type: ignore[union-attr, operator]
    assert YOLOV2.exportable is not None
    exported = YOLOV2.exportable(model, SETTINGS, THRESHOLDS._replace(max_per_image=60))
    program = to_program(exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, input_names=list(exported.inputs), output_names=["boxes", "scores", "labels", "counts"]
        )
    assert converted is not None
    converted.save(tmp_path / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes, scores, labels, counts = session.run(None, {"images": images.numpy()})
    finished = images.float() / 255
    expected = YOLOV2.detect(SETTINGS, THRESHOLDS._replace(max_per_image=60))(
        model, EvalBatch(finished, whole(finished), torch.arange(3))
    )
    assert counts.tolist() == expected.counts.tolist() and counts.min() > 5
    assert len(set(labels[labels > 0].tolist())) == 3
    torch.testing.assert_close(torch.from_numpy(scores), expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(boxes), expected.boxes_ltrb, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.from_numpy(labels), expected.labels)


def test_the_number_of_classes_is_told_by_the_output() -> None:
    assert region_of(SETTINGS, torch.zeros(1, 2 * (5 + 7), 4, 4)).classes == 7
