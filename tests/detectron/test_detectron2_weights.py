"""R-CNNs of detectron2's files: every weight in its place, detections as detectron2 has them, and what does not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2_by_hand as by_hand
import detectron2_files as made
import numpy as np
import pytest
import torch
from detectron_files import write

from ssd.batch import EvalBatch
from ssd.checkpoints import checkpoint, conversion
from ssd.coco_categories import coco_categories
from ssd.config import Thresholds
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.postprocess import suppress
from ssd.detectors.detectron.rcnn.boxes import anchors_ltrb_px, cells_of, closed, cut, exact_anchors_of_cell, scaled
from ssd.detectors.detectron.rcnn.rpn import is_worth_a_look
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.weights.detectron2 import foreign_detectron2
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.tta.rules import Suppression
from ssd.errors import InputError
from ssd.images import normalise

R50 = (3, 4, 6, 3)


def loaded(kind: str, **changes: np.ndarray) -> dict[str, Any]:
    content = foreign_detectron2({"model": made.arrays(made.ZOO[kind]) | changes}, Path("model_final.pkl"))
    assert content is not None
    return content


EXPECTED: dict[str, dict[str, Any]] = {
    "faster FPN": {"maps": "FPN", "box_head": "mlp", "rpn_before_nms": (2000, 1000), "rpn_after_nms": (1000, 1000)},
    "faster FPN R-101": {"blocks": (3, 4, 23, 3), "stride_in_1x1": True},
    "faster FPN X-101": {"groups": 4, "width_per_group": 2, "stride_in_1x1": False},
    "faster C4": {"maps": "C4", "box_head": "res5", "rpn_before_nms": (12000, 6000), "rpn_after_nms": (2000, 1000)},
    "mask FPN": {"mask_head": "v1up4convs", "mask_side": 28, "mask_sampling": 0},
    "mask C4": {"mask_head": "v0upshare", "mask_side": 14},
    "mask FPN GN": {"norm": "group", "fpn_group_norm": True, "box_head": "convs", "mask_head_group_norm": True},
    "keypoint FPN": {"finds_keypoints": True, "keypoint_side": 56, "rpn_after_nms": (1500, 1000)},
    "RPN FPN": {"rpn_only": True, "rpn_after_nms": (1000, 2000)},
    "RPN C4": {"rpn_only": True, "maps": "C4", "rpn_before_nms": (12000, 12000)},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_file_of_each_family_is_read_whole(kind: str) -> None:
    content = loaded(kind)
    values = {
        name: tuple(v) if isinstance(v, list) else v for name, v in content["detector"].items() if name != "family"
    }
    settings = DetectronSettings(**values)
    with torch.device("meta"):
        own = DETECTRON.build(settings, len(content["categories"]) + 1).state_dict()
    assert {name: value.shape for name, value in content["model"].items()} == {n: v.shape for n, v in own.items()}
    assert settings.rules == "detectron2" and settings.straddle_px == -1 and settings.box_pooling == "align v2"
    assert {name: getattr(settings, name) for name in EXPECTED[kind]} == EXPECTED[kind]
    assert "training on is by Detectron's" in content["notes"][0] and len(content["notes"]) == 2
    assert "COCO-* configurations: images of 800 px on the short side and 1333 px at most" in content["notes"][1]


@pytest.mark.slow
def test_a_dilated_conv5_body_is_read_whole() -> None:
    content = loaded("faster DC5")
    detector = content["detector"]
    assert (detector["maps"], detector["res5_dilation"], detector["box_head"]) == ("C5", 2, "mlp")
    assert content["categories"] == coco_categories()


def test_classes_and_colours_are_turned_and_norms_folded(tmp_path: Path) -> None:
    arrays = made.arrays(made.ZOO["mask FPN"])
    arrays["pixel_std"] = np.array([2.0, 4.0, 8.0], dtype=np.float32).reshape(3, 1, 1)
    arrays["pixel_mean"] += 1
    arrays["sem_seg_head.predictor.weight"] = np.zeros((3, 3), dtype=np.float32)
    content = conversion.load(write(tmp_path / "model_final_f10217.pkl", {"model": arrays, "__author__": "Detectron2"}))
    model = content["model"]
    theirs = arrays["roi_heads.box_predictor.cls_score.weight"]
    ours = model["roi_heads.box_predictor.cls_score.weight"].numpy()
    assert np.array_equal(ours[0], theirs[-1]) and np.array_equal(ours[1:], theirs[:-1])
    for name, theirs_name, rows in (
        ("roi_heads.box_predictor.bbox_pred", "roi_heads.box_predictor.bbox_pred", 4),
        ("roi_heads.mask_predictor.mask_fcn_logits", "roi_heads.mask_head.predictor", 1),
    ):
        for kind in ("weight", "bias"):
            ours, theirs = model[f"{name}.{kind}"].numpy(), arrays[f"{theirs_name}.{kind}"]
            assert (ours[:rows] == 0).all() and np.array_equal(ours[rows:], theirs)
    first = model["backbone.body.conv1.weight"].numpy()
    in_bgr = arrays["backbone.bottom_up.stem.conv1.weight"] / np.array([2, 4, 8.0], dtype=np.float32).reshape(
        1, 3, 1, 1
    )
    np.testing.assert_array_equal(first, in_bgr[:, ::-1])
    assert content["detector"]["mean_bgr"] == pytest.approx([104.53, 117.28, 124.675])
    norm = "backbone.bottom_up.res3.0.shortcut.norm"
    weight, bias, mean, var = (arrays[f"{norm}.{kind}"] for kind in made.NORM)
    ours_norm = "backbone.body.layer2.0.downsample.1"
    scale = weight / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(model[f"{ours_norm}.weight"], scale, rtol=1e-6)
    np.testing.assert_allclose(model[f"{ours_norm}.bias"], bias - mean * scale, rtol=1e-5, atol=1e-7)
    assert (model[f"{ours_norm}.running_var"] == 1).all() and (model[f"{ours_norm}.running_mean"] == 0).all()
    assert content["categories"] == [(label, f"class {label}") for label in range(1, 6)]
    assert content["notes"][2].endswith("1 weights of sem_seg_head are left out (sem_seg_head.predictor.weight, ...)")
    with pytest.raises(InputError, match="would find nothing as Detectron's .pkl; write a .pt"):
        conversion.save(tmp_path / "theirs.pkl", content)


@pytest.mark.parametrize("kind", ["mask FPN", "keypoint FPN"])
@torch.no_grad()
def test_detections_are_detectron2s(kind: str) -> None:
    classes = 1 if kind == "keypoint FPN" else 5
    arrays = made.arrays(made.ZOO[kind])
    # Scores that differ, of boxes that do not all become one.
    arrays["roi_heads.box_predictor.cls_score.weight"] *= 0.3 if kind == "keypoint FPN" else 0.1
    arrays["roi_heads.box_predictor.bbox_pred.weight"] *= 0.05
    weights = by_hand.tensors(arrays)
    content = foreign_detectron2({"model": arrays}, Path("model_final.pkl"))
    assert content is not None
    model = checkpoint.build_model({"format": checkpoint.FORMAT, **content}, Path("model_final.pkl")).eval()
    settings = checkpoint.settings_of(content)
    width, height = 160, 128
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    view = DETECTRON.view(settings)
    images = normalise(pixels.permute(2, 0, 1).unsqueeze(0), view.mean, view.std)
    batch = EvalBatch(images, torch.tensor([[0, 0, width, height]]), torch.arange(1))
    found = DETECTRON.detect(settings, Thresholds(0.05, 0.5, 1000, 20))(model, batch)
    maps = by_hand.pyramid(weights, pixels, R50)
    boxes, scores, label = by_hand.detections(weights, maps, (width, height), classes, most=20)
    assert found.counts.tolist() == [len(boxes)] and len(boxes) > 5
    sides = torch.tensor([width, height] * 2)
    torch.testing.assert_close(found.boxes_ltrb[0, : len(boxes)] * sides, boxes, rtol=0, atol=2e-2)
    torch.testing.assert_close(found.scores[0, : len(boxes)], scores, rtol=0, atol=1e-4)
    assert found.labels[0, : len(boxes)].tolist() == (label + 1).tolist()
    if found.masks is not None:
        torch.testing.assert_close(
            found.masks[0, : len(boxes)], by_hand.masks(weights, maps, boxes, label), rtol=0, atol=1e-3
        )
    else:
        assert found.keypoints is not None
        points = by_hand.points(by_hand.heatmaps(weights, maps, boxes), boxes)
        near = (found.keypoints[0, : len(boxes), :, :2] * sides[:2] - points).abs().amax(dim=2) < 1e-2
        assert near.float().mean() > 0.98  # of two cells that are nearly as high either may be the highest


def test_anchors_and_boxes_by_hand() -> None:
    assert exact_anchors_of_cell(16, (32,), (0.5, 1.0)) == [
        pytest.approx((-22.627417, -11.313708, 22.627417, 11.313708)), (-16, -16, 16, 16),
    ]  # fmt: skip
    settings = checkpoint.settings_of(loaded("RPN C4"))
    anchors = anchors_ltrb_px(cells_of(settings), [torch.zeros(1, 1, 2, 3)])
    assert anchors.shape == (2 * 3 * 15, 4)
    torch.testing.assert_close(anchors[15 + 1], torch.tensor([0.0, -16, 32, 16]))  # the second cell begins at 16
    boxes = torch.tensor([[[-4.0, 3, 20, 9], [12, 2, 14, 6]]])
    limits = torch.tensor([[[0, 0, 10.0, 8]]])
    assert cut(boxes, limits, 0).tolist() == [[[0, 3, 10, 8], [10, 2, 10, 6]]]
    assert is_worth_a_look(cut(boxes, limits, 0), limits, 0.0).tolist() == [[True, False]]
    assert torch.equal(closed(boxes, 0), boxes) and torch.equal(scaled(boxes, 2.0, 0), 2 * boxes)


REFUSED = {
    "deformable": ({"backbone.bottom_up.res3.0.conv2_offset.weight": (18, 4, 3, 3)}, "deformable convolutions"),
    "cascade": ({"roi_heads.box_predictor.0.cls_score.weight": (6, 6)}, "a cascade of box heads"),
    "batch norm": ({"backbone.bottom_up.stem.conv1.norm.num_batches_tracked": ()}, "batch norm that learns"),
    "unused": ({"roi_heads.extra.weight": (3,)}, r"1 unused \(roi_heads.extra.weight\)"),
    "shape": ({"backbone.fpn_lateral3.weight": (8, 5, 1, 1)}, "fpn_lateral3.weight: 8 x 5 x 1 x 1 in the place of"),
    "anchors": (
        {"proposal_generator.anchor_generator.cell_anchors.0": (9, 4)},
        "its anchors .* are not those of detectron2's model zoo",
    ),
    "boxes": ({"roi_heads.box_predictor.bbox_pred.weight": (7, 6)}, "has 7 rows for 5 classes"),
    "colours": ({"pixel_mean": (4,)}, "pixel_mean is not of blue, green and red"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name(what: str) -> None:
    shapes, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        loaded("mask FPN", **{name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model_final.pkl: ")


def test_what_is_missing_or_no_array_is_refused_by_name() -> None:
    arrays: dict[str, Any] = made.arrays(made.ZOO["mask FPN"])
    for name, message in (
        ("roi_heads.mask_head.deconv.bias", r"1 missing \(roi_heads.mask_head.deconv.bias\)"),
        ("backbone.bottom_up.res2.0.conv1.norm.bias", "lacks backbone.bottom_up.res2.0.conv1.norm.bias"),
        (
            "roi_heads.box_predictor.cls_score.weight",
            "has roi_heads.box_head.fc1.weight and no roi_heads.box_predictor",
        ),
        ("backbone.bottom_up.stem.conv1.weight", "on none of its ResNets"),
        ("backbone.bottom_up.res4.5.conv2.weight", r"has \(3, 4, 5\) blocks in res2 to res4"),
    ):
        with pytest.raises(InputError, match=message):
            foreign_detectron2({k: v for k, v in arrays.items() if k != name}, Path("m.pkl"))
    with pytest.raises(InputError, match="deconv.bias is a str, no array"):
        foreign_detectron2({"model": arrays | {"roi_heads.mask_head.deconv.bias": "no"}}, Path("m.pkl"))
    assert foreign_detectron2({"model": {"conv1.weight": np.zeros(3)}}, Path("m.pkl")) is None


def test_anchors_of_the_zoo_are_taken() -> None:
    stated = {
        f"proposal_generator.anchor_generator.cell_anchors.{level}": np.array(
            exact_anchors_of_cell(4 * 2**level, (32 * 2**level,), (0.5, 1.0, 2.0)), dtype=np.float32
        )
        for level in range(5)
    }
    assert loaded("RPN FPN", **stated)["categories"] == [(1, "object")]


def test_torchvisions_weights_are_refused_where_detectrons_are_meant(
    tmp_path: Path, refusal: Callable[..., str]
) -> None:
    from ssd.detectors.torchvision.builders import build
    from ssd.detectors.torchvision.names import settings_of

    file = tmp_path / "maskrcnn.pth"
    torch.save(build(settings_of("maskrcnn_resnet18_fpn"), 3).state_dict(), file)
    said = refusal("--detector", "e2e_mask_rcnn_R-50-FPN_1x", "--checkpoint", file, "--data", "demo")
    assert "the checkpoint holds a maskrcnn_resnet18_fpn; leave --detector out, or pass that" in said


def test_a_run_by_other_rules_does_not_start_from_it() -> None:
    content = loaded("mask FPN")
    settings = checkpoint.settings_of(content)
    checkpoint.require_detector(content, "--checkpoint x.pkl", settings)
    with pytest.raises(InputError, match="x.pkl: works by detectron2's rules, and this run by detectron's; leave"):
        checkpoint.require_detector(content, "--checkpoint x.pkl", replace(settings, rules="detectron"))


def test_boxes_of_nothing_are_no_detections_in_any_pass() -> None:
    settings = checkpoint.settings_of(loaded("faster FPN"))
    boxes = torch.tensor([[[5.0, 5, 5, 9], [2, 3, 20, 30], [7, 8, 9, 8]]])
    candidates = Candidates(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.ones(1, 3, dtype=torch.int64))
    found = suppress(settings, Thresholds(0.05, 0.5, 100, 10), Suppression())(
        candidates, torch.tensor([[[64.0] * 4]]), 2
    )
    assert found.counts.tolist() == [1] and found.scores[0, 0] == pytest.approx(0.8)
