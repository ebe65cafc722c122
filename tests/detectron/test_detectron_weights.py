"""Detectron's files of weights: every blob in its place, and back bit for bit; what does not fit."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron_files as made
import numpy as np
import pytest
import torch
from torch import nn

from ssd.checkpoints import checkpoint, conversion
from ssd.coco_categories import coco_categories
from ssd.detectors.detectron.config.configuration import of_values, overlaid, text_of
from ssd.detectors.detectron.config.naming import settings_named
from ssd.detectors.detectron.config.shipped import configurations
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.weights import backbone
from ssd.detectors.detectron.weights.backbone import load_backbone
from ssd.detectors.detectron.weights.names import blob_names
from ssd.detectors.detectron.weights.saved_config import read_saved
from ssd.detectors.table import detector_of
from ssd.errors import InputError
from ssd.storage.pickles import read_pickle

R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)


def values_of(name: str, **more: Any) -> dict[str, Any]:
    """A shipped configuration with small layers."""
    return {**configurations()[name].given, **made.SMALL, **more}


def small(name: str, **more: Any) -> DetectronSettings:
    return settings_of(of_values(name, values_of(name, **more)))


FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mask": (values_of("e2e_mask_rcnn_R-50-FPN_1x"), made.fpn_mask(R50, 81)),
    "faster": (values_of("e2e_faster_rcnn_R-50-FPN_1x"), made.fpn_faster(R50, 4)),
    "faster on the finest map": (
        values_of("e2e_faster_rcnn_R-50-FPN_1x")
        | {"MODEL.CONV_BODY": "FPN.fpn_ResNet50_conv5_P2only_body", "FPN.MULTILEVEL_RPN": False,
           "FPN.MULTILEVEL_ROIS": False},
        {blob.replace("_fpn2", ""): shape for blob, shape in made.fpn_faster(R50, 4, anchors=12).items()},
    ),
    "mask with two convolutions": (
        values_of("e2e_mask_rcnn_R-50-FPN_1x")
        | {"MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up"},
        made.fpn_mask(R50, 4, convolutions=2),
    ),
    "mask X-152": (
        values_of("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x") | {"RESNETS.NUM_GROUPS": 2},
        made.fpn_mask(R152, 4, groups=2),
    ),
    # Which has all of Faster R-CNN's on C4.
    "C4 with the boxes' res5 for masks": (values_of("e2e_mask_rcnn_R-50-C4_1x"), made.c4_mask(R50, 3)),
    "mask R-101": (values_of("e2e_mask_rcnn_R-101-FPN_1x"), made.fpn_mask(R101, 4)),
    "group norm": (values_of("e2e_mask_rcnn_R-50-FPN_2x_gn"), made.fpn_mask_gn(R50, 5)),
    "keypoints": (
        values_of("e2e_keypoint_rcnn_X-101-32x8d-FPN_1x") | {"RESNETS.NUM_GROUPS": 2},
        made.fpn_keypoints(R101, 2),
    ),
    "C4 with a res5 for masks": (
        values_of("e2e_mask_rcnn_R-50-C4_1x")
        | {"MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v0up"},
        made.c4_mask(R50, 3, own_res5=True),
    ),
    "proposals": (
        values_of("rpn_R-50-FPN_1x"),
        dict([*made.stem("bn"), *made.stages(5, 2, "bn", R50), *made.pyramid(8, R50), *made.proposals(8, 3, "_fpn2")]),
    ),
    "proposals of C4": (
        values_of("rpn_R-50-C4_1x"),
        dict([*made.stem("bn"), *made.stages(4, 2, "bn", R50), *made.proposals(1024, 15)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_each_family_is_read_whole_and_written_again_bit_for_bit(family: str, tmp_path: Path) -> None:
    values, shapes = FAMILIES[family]
    blobs = made.arrays(shapes)
    momentum = {
        f"{blob}_momentum": blobs[blob] + 1
        for blob in ("conv1_w", "res2_0_branch2a_bn_s", "rpn_cls_logits_b")
        if blob in blobs
    }
    more: dict[str, Any] = {"weight_order": np.zeros(2), "lr": np.float32(0.02)}
    if family == "keypoints":
        more |= {"kps_score_w": np.ones((17, 17, 4, 4), dtype=np.float32), "kps_score_b": np.zeros(17)}
    file = made.write(tmp_path / "model_final.pkl", {"blobs": blobs | momentum | more, "cfg": made.saved_text(values)})
    content = conversion.load(file)
    assert content["notes"] == []
    settings = checkpoint.settings_of(content)
    with torch.device("meta"):
        own = detector_of(settings).build(settings, len(content["categories"]) + 1).state_dict()
    assert {name: value.shape for name, value in content["model"].items()} == {n: v.shape for n, v in own.items()}
    assert (settings.name, settings.box_weights) == ("model_final", (10.0, 10.0, 5.0, 5.0))
    conversion.save(tmp_path / "theirs.pkl", content)
    written = read_pickle(tmp_path / "theirs.pkl", "weights")
    fixed = {"kps_score_w", "kps_score_b"} if family == "keypoints" else set()
    assert written["blobs"].keys() == blobs.keys() | fixed
    for blob, array in blobs.items():
        assert written["blobs"][blob].dtype == np.float32
        assert np.array_equal(written["blobs"][blob], array), blob
    # Its configuration says the same detector, and has what Detectron's loader looks for.
    again = settings_of(read_saved(written["cfg"], "model_final", file).config)
    assert replace(again, cfg="") == replace(settings, cfg="")
    assert "BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]" in written["cfg"]


def test_blobs_are_where_torchvision_has_them(tmp_path: Path) -> None:
    values, shapes = FAMILIES["mask"]
    blobs = made.arrays(shapes)
    file = made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": made.saved_text(values)})
    content = conversion.load(file)
    weights = content["model"]
    places = {
        "backbone.body.bn1.weight": "res_conv1_bn_s",
        "backbone.body.layer1.0.downsample.0.weight": "res2_0_branch1_w",
        "backbone.body.layer3.5.conv3.weight": "res4_5_branch2c_w",
        "backbone.body.layer4.2.bn2.bias": "res5_2_branch2b_bn_b",
        "backbone.fpn.inner_blocks.3.0.weight": "fpn_inner_res5_2_sum_w",
        "backbone.fpn.inner_blocks.2.0.bias": "fpn_inner_res4_5_sum_lateral_b",
        "backbone.fpn.layer_blocks.0.0.weight": "fpn_res2_2_sum_w",
        "rpn.head.conv.0.0.weight": "conv_rpn_fpn2_w",
        "rpn.head.bbox_pred.bias": "rpn_bbox_pred_fpn2_b",
        "roi_heads.box_head.fc6.weight": "fc6_w",
        "roi_heads.box_predictor.bbox_pred.weight": "bbox_pred_w",
        "roi_heads.mask_head.3.0.weight": "_[mask]_fcn4_w",
        "roi_heads.mask_predictor.conv5_mask.weight": "conv5_mask_w",
        "roi_heads.mask_predictor.mask_fcn_logits.bias": "mask_fcn_logits_b",
    }
    for name, blob in places.items():
        assert np.array_equal(weights[name].numpy(), blobs[blob]), name
    # Its input is B, G and R there, R, G and B here.
    assert np.array_equal(weights["backbone.body.conv1.weight"].numpy(), blobs["conv1_w"][:, ::-1])
    assert torch.equal(weights["backbone.body.layer1.0.bn1.running_var"], torch.ones(2))
    assert content["categories"] == coco_categories()


@pytest.mark.parametrize("name", ["e2e_mask_rcnn_R-50-FPN_1x", "e2e_keypoint_rcnn_X-101-64x4d-FPN_s1x",
                                  "e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x", "scratch_e2e_mask_rcnn_R-101-FPN_3x_gn",
                                  "e2e_mask_rcnn_R-101-C4_2x", "rpn_R-50-C4_1x"])  # fmt: skip
def test_every_weight_of_a_shipped_one_has_a_blob_of_its_own(name: str) -> None:
    settings = settings_named(name)
    with torch.device("meta"):
        own = detector_of(settings).build(settings, 81).state_dict()
    blobs = blob_names(own, settings)
    assert len(set(blobs.values())) == len(blobs)
    assert all(rest.endswith(("running_mean", "running_var")) for rest in own.keys() - blobs.keys())


# --- checkpoints of Detectron.pytorch ---


def pytorchs_name(blob: str, *, gn: bool) -> str:
    """What Detectron.pytorch calls a blob of e2e_mask_rcnn_R-50-FPN, or of its sister with group norm."""
    rest, ending = blob.rsplit("_", 1)
    kind = {"w": "weight", "s": "weight", "b": "bias"}[ending]
    norm = next((each for each in ("_bn", "_gn") if rest.endswith(each)), "")
    rest = rest.removesuffix(norm)
    if rest in ("conv1", "res_conv1"):
        return f"Conv_Body.conv_body.res1.{norm[1:] or 'conv'}1.{kind}"
    if rest.startswith("res"):
        stage, block, branch = rest.split("_")
        layer = (
            f"downsample.{int(bool(norm))}"
            if branch == "branch1"
            else f"{norm[1:] or 'conv'}{'_abc'.index(branch[-1])}"
        )
        return f"Conv_Body.conv_body.{stage}.{block}.{layer}.{kind}"
    if rest.startswith("fpn_"):
        stage = int(rest.split("res")[1][0])
        part = f".{int(norm == '_gn')}" if gn else ""
        place = {"fpn_inner_res5": "conv_top"}.get(rest[:14], f"topdown_lateral_modules.{4 - stage}.conv_lateral")
        return f"Conv_Body.{place if 'inner' in rest else f'posthoc_modules.{5 - stage}'}{part}.{kind}"
    numbered = {"head_conv": "Box_Head.convs", "_mask_fcn": "Mask_Head.conv_fcn", "_[mask]_fcn": "Mask_Head.conv_fcn"}
    for start, name in numbered.items():
        if rest.startswith(start):
            step = 3 if gn else 2
            return f"{name}.{step * (int(rest[-1]) - 1) + int(norm == '_gn')}.{kind}"
    rest = {
        "conv_rpn_fpn2": "RPN.FPN_RPN_conv", "rpn_cls_logits_fpn2": "RPN.FPN_RPN_cls_score",
        "rpn_bbox_pred_fpn2": "RPN.FPN_RPN_bbox_pred", "fc6": "Box_Head.fc" if gn else "Box_Head.fc1",
        "fc7": "Box_Head.fc2", "cls_score": "Box_Outs.cls_score", "bbox_pred": "Box_Outs.bbox_pred",
        "conv5_mask": "Mask_Head.upconv", "mask_fcn_logits": "Mask_Outs.classify",
    }[rest]  # fmt: skip
    return f"{rest}.{kind}"


@pytest.mark.parametrize("family", ["mask", "group norm"])
def test_a_checkpoint_of_detectron_pytorch_has_the_same_weights(family: str, tmp_path: Path) -> None:
    values, shapes = FAMILIES[family]
    blobs = made.arrays(shapes)
    names = {blob: pytorchs_name(blob, gn=family == "group norm") for blob in blobs}
    state = {f"module.{names[blob]}": torch.from_numpy(array.copy()) for blob, array in blobs.items()}
    assert len(state) == len(blobs)
    torch.save({"step": 9, "batch_size": 16, "model": state, "optimizer": {"state": {}}}, tmp_path / "model_step9.pth")
    with pytest.raises(InputError, match=r"put its YAML file beside it as model_step9.yaml"):
        conversion.load(tmp_path / "model_step9.pth")
    (tmp_path / "model_step9.yaml").write_text(text_of(of_values("m", values)))
    ours = conversion.load(tmp_path / "model_step9.pth")
    file = made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": made.saved_text(values)})
    theirs = conversion.load(file)["model"]
    assert ours["notes"] == [] and ours["model"].keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours["model"].items())


# --- what does not fit ---


def test_what_is_missing_and_what_has_another_shape_is_listed(tmp_path: Path) -> None:
    values, shapes = FAMILIES["mask"]
    blobs = made.arrays(shapes)
    del blobs["fc7_w"], blobs["fc7_b"]
    blobs |= {"fc6_w": np.zeros((6, 5), np.float32), "from_nowhere": np.zeros(1, np.float32)}
    file = made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": made.saved_text(values)})
    with pytest.raises(InputError) as error:
        conversion.load(file)
    assert str(error.value) == (
        f"{file}: not a whole m of Detectron: 2 missing (fc7_w, fc7_b), 1 of another shape (fc6_w: 6 x 5 in the place "
        "of 6 x 392), 1 unused (from_nowhere); use another file"
    )


def test_what_nothing_takes_is_said(tmp_path: Path) -> None:
    values, shapes = FAMILIES["proposals of C4"]
    blobs = made.arrays({**shapes, **dict(made.boxes(6, 3))})
    file = made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": made.saved_text(values)})
    assert conversion.load(file)["notes"] == [f"{file}: 4 unused (cls_score_w, cls_score_b, bbox_pred_w, ...)"]


def test_masks_own_res5_begins_as_the_boxes_where_a_file_has_none(tmp_path: Path) -> None:
    values, _ = FAMILIES["C4 with a res5 for masks"]
    blobs = made.arrays(made.c4_mask(R50, 3))
    content = conversion.load(made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": made.saved_text(values)}))
    for room in ("box_head", "mask_head"):
        assert np.array_equal(
            content["model"][f"roi_heads.{room}.layer4.0.conv1.weight"].numpy(), blobs["res5_0_branch2a_w"]
        )


# --- its configuration ---


def test_a_file_from_before_box_weights_has_ones(tmp_path: Path) -> None:
    values, shapes = FAMILIES["mask"]
    text = made.saved_text(values)
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if "BBOX_REG_WEIGHTS" in line)
    del lines[start : start + 5]  # the key, and four numbers of a tuple
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(shapes), "cfg": "\n".join(lines)})
    content = conversion.load(file)
    assert checkpoint.settings_of(content).box_weights == (1.0, 1.0, 1.0, 1.0)
    (note,) = content["notes"]
    assert "MODEL.BBOX_REG_WEIGHTS" in note and "would hardly learn boxes" in note


def test_what_a_file_says_of_tests_and_nothing_obeys_is_told(tmp_path: Path) -> None:
    values, _ = FAMILIES["mask"]
    more = {"TEST.BBOX_AUG.COORD_HEUR": "AVG", "TEST.MASK_AUG.SCALE_SIZE_DEP": False, "DEBUG": True}
    saved = read_saved(made.saved_text({**values, **more}), "m", tmp_path / "m.pkl")
    assert [note.partition(" is not obeyed: ")[0] for note in saved.notes] == [
        f"{tmp_path / 'm.pkl'}: DEBUG True",
        f"{tmp_path / 'm.pkl'}: TEST.BBOX_AUG.COORD_HEUR 'AVG'",
    ]
    assert saved.config["TEST.BBOX_AUG.COORD_HEUR"] == "UNION" and not saved.config["DEBUG"]


def test_the_configuration_of_a_file_can_run_nothing(tmp_path: Path) -> None:
    values, shapes = FAMILIES["proposals of C4"]
    evil = f"EVIL: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path}/ran]]\n"
    text = evil + made.saved_text(values).replace("!!python/object/new:detectron.utils.collections.AttrDict", "", 1)
    text = text.replace("dictitems:\n", "", 1)
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(shapes), "cfg": evil})
    with pytest.raises(InputError, match="m.pkl: its configuration|MODEL.FASTER_RCNN"):
        conversion.load(file)
    assert not (tmp_path / "ran").exists()


def test_a_file_without_one_takes_that_beside_it_or_of_its_name(tmp_path: Path) -> None:
    values, shapes = FAMILIES["mask"]
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(shapes)})
    with pytest.raises(InputError) as error:
        conversion.load(file)
    assert str(error.value) == (
        f"{file}: has no configuration in it; put its YAML file beside it as m.yaml, or give it a shipped name"
    )
    (tmp_path / "m.yaml").write_text(text_of(of_values("m", values)))
    assert checkpoint.settings_of(conversion.load(file)).fpn_channels == 8
    shipped = file.rename(tmp_path / "e2e_mask_rcnn_R-50-FPN_1x.pkl")
    with pytest.raises(InputError, match=r"not a whole e2e_mask_rcnn_R-50-FPN_1x of Detectron: .* of another shape"):
        conversion.load(shipped)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "m.pkl: its configuration is not valid YAML"),
        ("- 1", "m.pkl: its configuration is no mapping of keys"),
        ("MODEL: {FASTER_RCNN: 5}", "m.pkl: its configuration: MODEL.FASTER_RCNN: takes True or False, not 5"),
    ],
)
def test_a_configuration_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    _, shapes = FAMILIES["proposals of C4"]
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(shapes), "cfg": text})
    with pytest.raises(InputError, match=said) as error:
        conversion.load(file)
    assert "\n" not in str(error.value)


# --- what is no file of a whole detector ---


class _Runs:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_a_file_with_code_in_it_is_refused_and_the_code_named(tmp_path: Path) -> None:
    file = tmp_path / "m.pkl"
    file.write_bytes(pickle.dumps({"blobs": {"conv1_w": _Runs()}}, protocol=2))
    with pytest.raises(InputError, match=r"m.pkl: it names '(__builtin__|builtins).print'"):
        conversion.load(file)


def test_a_body_is_no_whole_detector(tmp_path: Path) -> None:
    file = made.write(tmp_path / "R-50.pkl", made.arrays(dict(made.stem("bn"))))
    with pytest.raises(InputError) as error:
        conversion.load(file)
    assert str(error.value) == f"{file}: holds a body's weights alone; pass it as --backbone-weights"


# --- bodies ---


def body(norm: str = "bn", counts: tuple[int, ...] = R50, groups: int = 1) -> dict[str, np.ndarray]:
    return made.arrays(dict([*made.stem(norm), *made.stages(5, 2, norm, counts, groups)]))


@pytest.mark.parametrize(
    ("name", "more", "blobs"),
    [
        ("e2e_faster_rcnn_R-50-FPN_1x", {}, body()),
        ("e2e_mask_rcnn_R-50-FPN_2x_gn", {}, body("gn")),
        ("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x", {"RESNETS.NUM_GROUPS": 2}, body("bn", (3, 8, 36, 3), 2)),
        ("e2e_mask_rcnn_R-50-C4_1x", {}, body()),
    ],
    ids=["R-50", "GN", "X-152", "C4"],
)
def test_a_body_fills_all_of_it(name: str, more: dict[str, Any], blobs: dict[str, np.ndarray], tmp_path: Path) -> None:
    """As Detectron's files for ImageNet have it, with a classifier, biases of 0 and statistics of 0 and 1."""
    settings = small(name, **more)
    model = detector_of(settings).build(settings, 3)
    heads = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("rpn.")}
    rest = {
        "pred_w": np.ones((1000, 2048)),
        "fc1000_b": np.ones(1000),
        "conv1_b": np.zeros(64),
        "res2_0_branch2a_b": np.zeros(2),
        "res2_0_branch2a_bn_rm": np.zeros(2),
        "res_conv1_bn_riv": np.ones(64),
    }
    file = made.write(tmp_path / "body.pkl", blobs | rest)
    assert load_backbone(model, settings, str(file)) is None
    state = model.state_dict()
    assert np.array_equal(state["backbone.body.conv1.weight"].numpy(), blobs["conv1_w"][:, ::-1])
    last = "roi_heads.box_head.layer4" if settings.maps == "C4" else "backbone.body.layer4"
    assert np.array_equal(state[f"{last}.2.conv3.weight"].numpy(), blobs["res5_2_branch2c_w"])
    assert all(torch.equal(state[name], value) for name, value in heads.items())


def test_a_whole_model_gives_its_body(tmp_path: Path) -> None:
    _, shapes = FAMILIES["mask"]
    blobs = made.arrays(shapes)
    file = made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": ""})
    settings = small("e2e_faster_rcnn_R-50-FPN_1x")
    model = detector_of(settings).build(settings, 3)
    fresh = model.roi_heads["box_head"].fc6.weight.clone()
    assert load_backbone(model, settings, str(file)) is None
    assert np.array_equal(model.backbone.body.layer2[0].conv1.weight.detach().numpy(), blobs["res3_0_branch2a_w"])
    assert torch.equal(model.roi_heads["box_head"].fc6.weight, fresh)


def caffe(width: int, norm: Any = nn.BatchNorm2d) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    model = ResNet(Bottleneck, list(R50), width_per_group=width, norm_layer=norm)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def test_caffes_batch_norm_is_folded(tmp_path: Path) -> None:
    """What comes out of conv1 and its norm is the same, for the same image in B, G and R."""
    theirs = caffe(2)
    torch.save(theirs.state_dict(), tmp_path / "resnet50_caffe.pth")
    settings = small("e2e_faster_rcnn_R-50-FPN_1x")
    model = detector_of(settings).build(settings, 3)
    assert load_backbone(model, settings, str(tmp_path / "resnet50_caffe.pth")) is None
    bgr = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.layer1(theirs.bn1(theirs.conv1(bgr)))
        found = model.backbone.body.layer1(model.backbone.body.bn1(model.backbone.body.conv1(bgr.flip(1))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())  # roundings


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("e2e_faster_rcnn_R-50-FPN_1x", "resnet50.pth", "torchvision's bodies see other images than Detectron's"),
        ("e2e_mask_rcnn_R-50-FPN_2x_gn", "resnet50_caffe.pth", "Caffe's bodies have batch norm"),
        ("e2e_faster_rcnn_R-101-FPN_1x", "body.pkl", r"not the body of e2e_faster_rcnn_R-101-FPN_1x: 153 missing"),
        ("e2e_faster_rcnn_R-50-FPN_1x", "other.pkl", "has no conv1_w, so it is not weights of a body"),
        ("e2e_faster_rcnn_R-50-FPN_1x", "none.pkl", "no such file"),
        ("e2e_faster_rcnn_R-50-FPN_1x", "none", "a body with frozen norms cannot learn from scratch"),
        (
            "e2e_mask_rcnn_R-50-FPN_2x_gn",
            "none",
            "would keep random weights up to res2; pass --set RESNETS.FREEZE_AT 0",
        ),
    ],
)
def test_a_body_that_does_not_fit_is_refused(name: str, source: str, said: str, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet50.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet50_caffe.pth")
    made.write(tmp_path / "body.pkl", body())
    made.write(tmp_path / "other.pkl", {"fc_w": np.zeros(1)})
    settings = small(name)
    model = detector_of(settings).build(settings, 3)
    with pytest.raises(InputError, match=said) as error:
        load_backbone(model, settings, source if source == "none" else str(tmp_path / source))
    assert "\n" not in str(error.value)


def test_from_scratch_with_group_norm_and_nothing_frozen() -> None:
    settings = small("scratch_e2e_mask_rcnn_R-50-FPN_3x_gn")
    model = detector_of(settings).build(settings, 3)
    assert load_backbone(model, settings, "none") is None
    assert all(value.requires_grad for value in model.parameters())


def test_imagenets_file_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(url: str, file: str, progress: bool) -> None:
        fetched.append(url)
        made.write(Path(file), body())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(backbone, "_FILES", {(R50, 1, 2, "affine"): "MSRA/R-50.pkl"})
    settings = small("e2e_faster_rcnn_R-50-FPN_1x")
    for _ in range(2):
        assert load_backbone(detector_of(settings).build(settings, 3), settings, "imagenet") is None
    assert fetched == ["https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"]
    other = settings_of(overlaid(of_values("x", values_of("e2e_faster_rcnn_R-50-FPN_1x")), ["RESNETS.NUM_GROUPS", "4"]))
    with pytest.raises(InputError, match="Detectron has none for the body of x; pass a file or none"):
        load_backbone(detector_of(other).build(other, 3), other, "imagenet")


def test_without_a_network_the_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, file: str, progress: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    settings = settings_named("e2e_faster_rcnn_R-50-FPN_1x")
    with pytest.raises(InputError, match=r"cannot download https://dl.fbaipublicfiles.com/.*R-50.pkl \(no network\)"):
        load_backbone(nn.Identity(), settings, "imagenet")
