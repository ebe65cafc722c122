"""An exported detector finds in a file that runs without this program what it finds here."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision_models import NUM_CLASSES, assert_same_detections, batch_of, eval_batch, with_opinions

from ssd.batch import FIELDS_OF_BOXES
from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.postprocess.candidates import PartMaps
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.export import DetectsInGraph, exportable
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.rcnn.parts import boxes_of, keypoints_found
from ssd.detectors.torchvision.rcnn.parts_in_graph import keypoints_in_graph, with_parts
from ssd.images import normalise
from ssd.inference.export import to_program

THRESHOLDS = Thresholds(0.05, 0.5, 300, 20)


@pytest.mark.parametrize("family", ["maskrcnn", "keypointrcnn"])
def test_the_other_r_cnns_are_exported_as_faster_r_cnns(family: str) -> None:
    settings = settings_of(f"{family}_resnet18_fpn")
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    exported = exportable(model, settings, THRESHOLDS)
    module = exported.module
    assert isinstance(module, DetectsInGraph) and module.num_classes == NUM_CLASSES and not module.training
    assert exported.outputs == (*FIELDS_OF_BOXES, "masks" if family == "maskrcnn" else "keypoints")


def random_points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heat maps 2 x 4 x 3 x 14 x 14, boxes 2 x 4 x 4 in an image of 96 x 64, one of them tiny, and which are real."""
    generator = torch.Generator().manual_seed(0)
    left_top = torch.rand(2, 4, 2, generator=generator) * 30
    boxes_ltrb_px = torch.cat([left_top, left_top + torch.rand(2, 4, 2, generator=generator) * 33], dim=2)
    boxes_ltrb_px[0, 1, 2:] = boxes_ltrb_px[0, 1, :2] + 0.1
    boxes_ltrb_px[1, 0] = torch.tensor([0, 0, 96, 64])
    real = torch.tensor([[True, True, False, False], [True, True, True, False]])
    return torch.randn(2, 4, 3, 14, 14, generator=generator), boxes_ltrb_px, real


def test_points_in_a_graph_are_those_of_interpolated_maps() -> None:
    heatmaps, boxes_ltrb_px, real = random_points()
    found = keypoints_in_graph(heatmaps, boxes_ltrb_px, real, (64, 96))
    expected = keypoints_found(heatmaps, boxes_ltrb_px, real)
    assert torch.equal(found[..., :2], expected[..., :2])
    torch.testing.assert_close(found[..., 2], expected[..., 2], rtol=0, atol=1e-5)
    assert (found[~real] == 0).all() and (found[real] != 0).all()


def test_masks_are_of_real_boxes_and_points_of_those_that_have_them() -> None:
    heatmaps, boxes_ltrb_px, real = random_points()
    have_points = real & torch.tensor([True, False, True, True])
    limits = torch.tensor([[[96, 64, 96, 64]], [[96.0, 64, 96, 64]]])
    logits = torch.full((2, 4, 5, 5), 2.0)
    said = PartMaps(logits, heatmaps)
    found = with_parts({"labels": real.to(torch.int64)}, said, have_points, boxes_ltrb_px, limits, (64, 96))
    torch.testing.assert_close(found["masks"][real], torch.full((5, 5, 5), 1 / (1 + math.exp(-2))))
    assert (found["masks"][~real] == 0).all()
    expected = keypoints_found(heatmaps, boxes_ltrb_px, have_points)[..., :2] / torch.tensor([96, 64])
    torch.testing.assert_close(found["keypoints"][..., :2], expected)
    assert (found["keypoints"][~have_points] == 0).all()


def program_of(exported: Exportable) -> Callable[[Tensor, Tensor], list[np.ndarray]]:
    program = to_program(exported).module()

    def detects(images: Tensor, sizes_px: Tensor) -> list[np.ndarray]:
        found = program(images, sizes_px)
        return [found[name].numpy() for name in exported.outputs]

    return detects


def session_of(exported: Exportable, folder: Path, *, optimize: bool) -> Callable[[Tensor, Tensor], list[np.ndarray]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = to_program(exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, input_names=list(exported.inputs), output_names=list(exported.outputs), optimize=optimize
        )
    assert converted is not None
    converted.save(folder / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images, sizes_px: session.run(None, {"images": images.numpy(), "sizes_px": sizes_px.numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["retinanet", "fcos", "maskrcnn"])
@torch.no_grad()
def test_the_graph_takes_any_number_and_size_of_images(family: str, tmp_path: Path) -> None:
    """In onnxruntime. FCOS, whose graph has RetinaNet's operations, as torch's program, and Mask R-CNN's as it was
    converted, without onnxscript's optimiser: both take half a minute each."""
    settings = settings_of(f"{family}_resnet18_fpn")
    torch.manual_seed(0)
    model = with_opinions(build(settings, NUM_CLASSES).eval(), batch_of().images)
    if family == "maskrcnn":  # a tenth of its work
        model.numbers = replace(model.numbers, before_nms=(0, 150), after_nms=(0, 100))
        # Masks that are neither sure nor all alike.
        one_box = boxes_of(torch.tensor([[[10.0, 10, 90, 90]]]), torch.ones(1, 1, dtype=torch.int64), None)
        said = model(list(model.backbone(batch_of((1,)).images).values()), one_box).masks
        model.roi_heads["mask_predictor"].mask_fcn_logits.weight.div_(said.std())
    exported = exportable(model, settings, THRESHOLDS)
    detects = (
        program_of(exported) if family == "fcos" else session_of(exported, tmp_path, optimize=family != "maskrcnn")
    )
    for counts, height_px, width_px in (((1,), 160, 224), ((1, 1), 192, 160)):
        batch = batch_of(counts, height_px, width_px)
        images = torch.randint(256, batch.images.shape, dtype=torch.uint8)
        found = detects(images, batch.sizes_px)
        found, parts = found[: len(FIELDS_OF_BOXES)], found[len(FIELDS_OF_BOXES) :]
        finished = normalise(images)
        for image, (width, height) in zip(finished, batch.sizes_px.tolist(), strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        expected = TORCHVISION.detect(settings, THRESHOLDS)(model, eval_batch(batch._replace(images=finished)))
        assert_same_detections(found, expected)
        if expected.masks is not None:
            masks = torch.from_numpy(parts[0])
            assert masks.shape == expected.masks.shape and expected.masks.std() > 0.05
            # Where scores are equal, another may come first. Boxes differ by 1e-3 pixels, and so does what masks see.
            same = (torch.from_numpy(found[0]) - expected.boxes_ltrb).abs().amax(dim=2) < 1e-5
            assert same.float().mean() > 0.9
            torch.testing.assert_close(masks[same], expected.masks[same], rtol=0, atol=5e-4)
