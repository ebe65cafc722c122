"""An exported R-CNN of Detectron finds in a file that runs without this program what it finds here."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron_models import NUM_CLASSES, small

from ssd.batch import FIELDS_OF_BOXES, Detections, EvalBatch
from ssd.config import Config, Thresholds
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.configuration import overlaid, text_of
from ssd.detectors.detectron.config.naming import configuration_of
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.export import DetectsInGraph, exportable
from ssd.detectors.table import from_dict, to_dict
from ssd.errors import InputError
from ssd.images import normalise
from ssd.inference.export import metadata, to_program
from ssd.keypoints import PERSON, Skeleton

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


@pytest.mark.parametrize(
    ("kind", "words", "named"),
    [
        ("mask", "TEST.MASK_AUG.ENABLED True TEST.MASK_AUG.H_FLIP True", ["MASK_AUG"]),
        ("keypoints", "TEST.KPS_AUG.ENABLED True TEST.KPS_AUG.SCALES (40,)", ["KPS_AUG"]),
        ("mask", "TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True TEST.SOFT_NMS.ENABLED True "
         "TEST.BBOX_VOTE.ENABLED True", ["BBOX_AUG", "SOFT_NMS", "BBOX_VOTE"]),
        ("mask", "TEST.BBOX_AUG.ENABLED True TEST.MASK_AUG.ENABLED True", []),  # of one pass
        ("faster", "TEST.MASK_AUG.ENABLED True TEST.MASK_AUG.H_FLIP True", []),  # that finds no masks
        ("proposals", "TEST.SOFT_NMS.ENABLED True TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True", []),
    ],
)  # fmt: skip
def test_what_a_graph_does_not_do_is_refused_with_all_its_keys(kind: str, words: str, named: list[str]) -> None:
    settings = small(kind)
    settings = replace(settings, cfg=text_of(overlaid(configuration_of(settings), words.split())))
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    if not named:
        assert isinstance(exportable(model, settings, THRESHOLDS).module, DetectsInGraph)
        return
    with pytest.raises(InputError) as error:
        exportable(model, settings, THRESHOLDS)
    assert str(error.value).endswith("pass --set " + " ".join(f"TEST.{key}.ENABLED False" for key in named))


def test_a_file_names_the_points_of_a_detector_whose_settings_name_none() -> None:
    """As many as the head's rows of points, and with their links, so that the file's settings draw them."""
    settings = small("keypoints")
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    about = metadata(exportable(model, settings, THRESHOLDS), settings, [(1, "person")], Config(detector=settings))
    assert settings.keypoints == () and about["keypoints"] == PERSON.names
    own = {name: value for name, value in json.loads(json.dumps(about)).items() if name in to_dict(settings)}
    assert from_dict(own).skeleton == PERSON
    rows = model.roi_heads["keypoint_predictor"].kps_score_lowres.weight.shape[1]  # type: ignore[union-attr, index]
    assert len(about["keypoints"]) == rows == 17
    other = Skeleton(("tip", "tail"), ((0, 1),), (2,))
    named = DETECTRON.with_skeleton(settings, other)  # type: ignore[misc]
    with torch.device("meta"):
        model = build(named, NUM_CLASSES)
    about = metadata(exportable(model, named, THRESHOLDS), named, [(1, "a")], Config(detector=named))
    assert (about["keypoints"], about["keypoint_links"], about["keypoint_labels"]) == other
    without = small("faster")
    with torch.device("meta"):
        model = build(without, NUM_CLASSES)
    about = metadata(exportable(model, without, THRESHOLDS), without, [(1, "a")], Config(detector=without))
    assert about["keypoints"] == ()


@pytest.mark.slow
@torch.no_grad()
def test_the_graph_takes_any_number_and_size_of_images(tmp_path: Path) -> None:
    """With masks, and with the points of one class: of one map, whose graph is the smallest."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = replace(small("C4 v0upshare"), finds_keypoints=True)
    settings = DETECTRON.with_skeleton(settings, PERSON._replace(labels=(1,)))  # type: ignore[misc]
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
    about = metadata(exported, settings, [(1, "a"), (2, "b"), (3, "c")], Config(detector=settings))
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
        assert found.keypoints.shape[2] == len(about["keypoints"])
        a, b = (each.keypoints[..., :2] * pixels[:, :, None, :2] for each in (found, expected))  # type: ignore[index]
        # Of two cells that are nearly as high either may be the highest.
        assert ((a - b).abs().amax(dim=3) < 1e-2).float().mean() > 0.95
        torch.testing.assert_close(found.keypoints[..., 2], expected.keypoints[..., 2], rtol=1e-3, atol=1e-2)
