"""Detectron's configuration language: what it takes, what it makes of it, and what it refuses in one line."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssd.detectors.detectron.config.configuration import notes_on, of_values, overlaid, read, text_of
from ssd.detectors.detectron.config.key import ELSEWHERE, FIXED, OBEYED
from ssd.detectors.detectron.config.keys import DEPRECATED, KEYS, RENAMED, SECTIONS
from ssd.detectors.detectron.config.naming import settings_named
from ssd.detectors.detectron.config.shipped import NAMES, configurations
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.config.values import coerced, decoded
from ssd.errors import InputError

FILE = Path("e2e.yaml")

# As Detectron.pytorch writes it, with a comment, a text that is a row, and keys that mean nothing here.
PYTORCH = """
MODEL:
  TYPE: generalized_rcnn
  CONV_BODY: FPN.fpn_ResNet50_conv5_body
  FASTER_RCNN: True
NUM_GPUS: 8
SOLVER:
  WEIGHT_DECAY: 0.0001
  LR_POLICY: steps_with_decay
  BASE_LR: 0.02
  MAX_ITER: 90000
  STEPS: [0, 60000, 80000]
FPN:
  FPN_ON: True
  MULTILEVEL_ROIS: True
  MULTILEVEL_RPN: True
RESNETS:
  IMAGENET_PRETRAINED_WEIGHTS: 'data/pretrained_model/resnet50_caffe.pth'
FAST_RCNN:
  ROI_BOX_HEAD: fast_rcnn_heads.roi_2mlp_head
  ROI_XFORM_METHOD: RoIAlign
  ROI_XFORM_RESOLUTION: 7
  ROI_XFORM_SAMPLING_RATIO: 2
TRAIN:
  SCALES: (800,)
  MAX_SIZE: 1333
  BATCH_SIZE_PER_IM: 512
  RPN_PRE_NMS_TOP_N: 2000  # Per FPN level
TEST:
  SCALE: 800
  MAX_SIZE: 1333
  NMS: 0.5
  RPN_PRE_NMS_TOP_N: 1000
  RPN_POST_NMS_TOP_N: 1000
"""
# The same in Detectron's dialect.
DETECTRON = (
    PYTORCH.replace("fpn_ResNet50", "add_fpn_ResNet50")
    .replace("heads.roi_2mlp", "heads.add_roi_2mlp")
    .replace("  FASTER_RCNN", "  NUM_CLASSES: 81\n  FASTER_RCNN")
    .replace("RESNETS:\n  IMAGENET_PRETRAINED_WEIGHTS: 'data/pretrained_model/resnet50_caffe.pth'\n", "OUTPUT_DIR: .\n")
    .replace("TRAIN:\n", "TRAIN:\n  WEIGHTS: https://host/MSRA/R-50.pkl\n  DATASETS: ('coco_2014_train',)\n")
)


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- values ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(800,)", (800,)),
        ("[0, 60000]", [0, 60000]),
        ("True", True),
        ("1e-5", 1e-5),
        ("-1", -1),
        ("'a'", "a"),
        ("180**2", 32400),
        ("1/16.", 0.0625),
        ("10**4", 10000),
        ("None", None),
        # No literals, so they stay texts, and nothing is run.
        ("data/R-50.pkl", "data/R-50.pkl"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("9**9**9", "9**9**9"),
        ("'a' * 10**9", "'a' * 10**9"),
        ("2*True", "2*True"),
        ("1/0", "1/0"),
        ("(" * 500, "(" * 500),
    ],
)
def test_a_text_is_the_literal_that_it_is(text: str, value: Any) -> None:
    assert decoded(text) == value and type(decoded(text)) is type(value)


@pytest.mark.parametrize(
    ("value", "default", "result"),
    [
        ([800], (600,), (800,)),
        ((0, 1), [], [0, 1]),
        ("(800, 640)", (600,), (800, 640)),
        (5, "", "5"),
        (True, "", "True"),
        ("0.5", 0.3, 0.5),
        ("7", 14, 7),
        (0, -1, 0),
    ],
)
def test_types_are_coerced_as_detectron_does(value: Any, default: Any, result: Any) -> None:
    assert coerced(value, default) == result and type(coerced(value, default)) is type(result)


@pytest.mark.parametrize(
    ("value", "default", "said"),
    [
        (1, 0.001, "takes a number with a point, such as 1.0, not 1; write 1.0"),
        (1.0, 4, "takes a whole number, not 1.0"),
        (1, False, "takes True or False, not 1"),
        (True, 2, "takes a whole number, not True"),
        (600, (600,), "takes a row such as (600,), not 600"),
        (None, 0.5, "takes a number with a point, such as 1.0, not None"),
        ({"A": 1}, "", "takes a text, not keys of its own"),
    ],
)
def test_other_types_are_refused(value: Any, default: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        coerced(value, default)
    assert str(error.value) == said


# --- the language ---


def test_both_dialects_say_the_same_detector() -> None:
    ours, theirs = (settings_of(read(text, FILE)) for text in (PYTORCH, DETECTRON))
    assert replace(ours, cfg="") == replace(theirs, cfg="")
    shipped = settings_named("e2e_faster_rcnn_R-50-FPN_1x")
    assert replace(ours, cfg="", name=shipped.name) == replace(shipped, cfg="")


def test_what_is_not_given_has_its_default() -> None:
    config = read("MODEL:\n  FASTER_RCNN: True\n", FILE)
    assert config["MODEL.FASTER_RCNN"] is True and config["TRAIN.SCALES"] == (600,)
    assert config["BBOX_XFORM_CLIP"] == math.log(1000 / 16)
    with pytest.raises(TypeError):
        config.given["TEST.NMS"] = 0.9  # type: ignore[index]


def test_set_overrules_the_file() -> None:
    config = overlaid(read(PYTORCH, FILE), ["TEST.NMS", "0.7", "TRAIN.SCALES", "[640, 800]", "MODEL.TYPE", "x"])
    assert (config["TEST.NMS"], config["TRAIN.SCALES"], config["TEST.SCALE"]) == (0.7, (640, 800), 800)


def test_what_is_written_is_read_as_the_same_configuration() -> None:
    for config in (read(PYTORCH, FILE), read(DETECTRON, FILE), *configurations().values()):
        assert dict(read(text_of(config), FILE).given) == dict(config.given)


def test_deprecated_keys_are_passed_over_and_said() -> None:
    config = read("MODEL:\n  DILATION: 2\nUSE_GPU_NMS: True\n", FILE)
    assert config.left_out == ("MODEL.DILATION", "USE_GPU_NMS")
    assert [note.split(" is ")[0] for note in notes_on(config)] == ["e2e: MODEL.DILATION", "e2e: USE_GPU_NMS"]


def test_what_decides_nothing_is_said() -> None:
    config = read(DETECTRON + "MRCNN:\n  DILATION: 1\nRPN:\n  STRIDE: 8\n", FILE)
    said = {note.split(":")[1].split(" ")[1]: note for note in notes_on(config)}
    assert set(said) == {
        "MODEL.TYPE", "MODEL.NUM_CLASSES", "OUTPUT_DIR", "TRAIN.DATASETS", "MRCNN.DILATION", "RPN.STRIDE",
    }  # fmt: skip
    assert said["MRCNN.DILATION"] == "e2e: MRCNN.DILATION says nothing: MODEL.MASK_ON is off"
    assert said["RPN.STRIDE"] == "e2e: RPN.STRIDE says nothing: FPN.MULTILEVEL_RPN is on"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shipped_says_nothing_in_vain(name: str) -> None:
    assert notes_on(configurations()[name]) == []


REFUSED = [
    ("  NMS: 0.5", "  NMSS: 0.5", "e2e.yaml:32: there is no key TEST.NMSS; did you mean TEST.NMS?"),
    ("  NMS: 0.5", "  NMS: 1", "e2e.yaml:32: TEST.NMS: takes a number with a point, such as 1.0, not 1; write 1.0"),
    ("  NMS: 0.5", "  NMS: 5%", "e2e.yaml:32: TEST.NMS: takes a number with a point, such as 1.0, not '5%'"),
    ("  NMS: 0.5", "  NMS: .nan", "e2e.yaml:32: TEST.NMS: cannot be nan: that is too much"),
    ("  NMS: 0.5", "  NMS: -0.5", "e2e.yaml:32: TEST.NMS: cannot be -0.5: is less than 0"),
    ("TEST:\n", "TEST: 5\nT:\n", "e2e.yaml:29: TEST: takes keys of its own, not 5"),
    (
        "  NMS: 0.5",
        "  NMS: {A: 1}",
        "e2e.yaml:32: TEST.NMS: takes a number with a point, such as 1.0, not keys of its own",
    ),
    ("(800,)", "(800, big)", "e2e.yaml:25: TRAIN.SCALES: takes a row such as (600,), not '(800, big)'"),
    ("(800,)", "(800, 0)", "e2e.yaml:25: TRAIN.SCALES: cannot be 0: is less than 1"),
    ("(800,)", "('800',)", "e2e.yaml:25: TRAIN.SCALES: takes a row of whole numbers, not ('800',)"),
    ("(800,)", "()", "e2e.yaml:25: TRAIN.SCALES: takes one number at least"),
    ("(800,)", "(1400,)", "e2e.yaml:26: TRAIN.MAX_SIZE: 1333 is less than 1400"),
    (
        "  NMS: 0.5",
        "  SCALES: (800,)",
        "e2e.yaml:32: TEST.SCALES was renamed to TEST.SCALE, which may take a value of another type; write that",
    ),
    (
        "ResNet50_conv5",
        "VGG16_conv5",
        "e2e.yaml:4: MODEL.CONV_BODY: there is no body 'FPN.fpn_VGG16_conv5_body' here; pass "
        "one that ResNet.py or FPN.py of Detectron has, such as FPN.fpn_ResNet50_conv5_body",
    ),
    (
        "  FASTER_RCNN: True\n",
        "",
        "e2e: MODEL.FASTER_RCNN: either it or MODEL.RPN_ONLY has to be True; Fast R-CNN on "
        "files of proposals is not there",
    ),
    ("  FPN_ON: True", "  FPN_ON: False", "e2e.yaml:14: FPN.FPN_ON: has to be True with FPN.fpn_ResNet50_conv5_body"),
    (
        "  MULTILEVEL_ROIS: True",
        "  MULTILEVEL_ROIS: False",
        "e2e.yaml:15: FPN.MULTILEVEL_ROIS: has to be True with FPN.fpn_ResNet50_conv5_body",
    ),
    (
        "roi_2mlp_head",
        "roi_3mlp_head",
        "e2e.yaml:20: FAST_RCNN.ROI_BOX_HEAD: 'fast_rcnn_heads.roi_3mlp_head' is none of "
        "fast_rcnn_heads.roi_2mlp_head, head_builder.roi_2mlp_head, fast_rcnn_heads.roi_Xconv1fc_head, "
        "fast_rcnn_heads.roi_Xconv1fc_gn_head, ResNet.ResNet_roi_conv5_head",
    ),
    (
        "RoIAlign",
        "RoICrop",
        "e2e.yaml:21: FAST_RCNN.ROI_XFORM_METHOD: cannot be 'RoICrop': is none of RoIAlign, RoIPoolF",
    ),
    (
        "RESNETS:\n",
        "RESNETS:\n  STEM_FUNC: basic_gn_stem\n",
        "e2e.yaml:18: RESNETS.STEM_FUNC: TRANS_FUNC, STEM_FUNC, SHORTCUT_FUNC and USE_GN have to mean one norm",
    ),
    (
        "RESNETS:\n",
        "RESNETS:\n  FREEZE_AT: 1\n",
        "e2e.yaml:18: RESNETS.FREEZE_AT: cannot be 1: is none of 0, 2, 3, 4, 5",
    ),
    # Features that do not exist.
    (
        "  FASTER_RCNN: True",
        "  FASTER_RCNN: True\nRETINANET:\n  RETINANET_ON: True",
        "e2e.yaml:7: RETINANET.RETINANET_ON: "
        "cannot be True: RetinaNet by Detectron's configuration is not there; pass --detector retinanet_resnet50_fpn",
    ),
    (
        "  MAX_SIZE: 1333\n  BATCH",
        "  ASPECT_CROPPING: True\n  BATCH",
        "e2e.yaml:26: TRAIN.ASPECT_CROPPING: cannot be True: it mixes boxes of one size with pixels of another",
    ),
    (
        "  NMS: 0.5",
        "  BBOX_AUG:\n    ENABLED: True\n    SCORE_HEUR: AVG",
        "e2e.yaml:34: TEST.BBOX_AUG.SCORE_HEUR: cannot be 'AVG': boxes of a network's own proposals can only be "
        "joined, as in Detectron",
    ),
    (
        "  NMS: 0.5",
        "  PROPOSAL_FILES: ('rpn_proposals.pkl',)",
        "e2e.yaml:32: TEST.PROPOSAL_FILES: cannot be "
        "('rpn_proposals.pkl',): proposals come from the network; training and testing on files of them is not there",
    ),
    # Detectron.pytorch's two files that are no YAML: the key has lost its indent.
    ("  IMAGENET_PRETRAINED", " IMAGENET_PRETRAINED", None),
    (
        "RESNETS:\n  IMAGENET",
        "RESNETS:\n  NUM_GROUPS: 64\n IMAGENET",
        "e2e.yaml:19: not valid YAML (expected <block end>, but found '<block mapping start>'); correct it",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_what_cannot_be_is_refused_by_its_line(old: str, new: str, said: str | None) -> None:
    assert PYTORCH.count(old) >= 1
    text = PYTORCH.replace(old, new, 1)
    if said is None:  # it is all of RESNETS, so the indent does not matter
        assert settings_of(read(text, FILE))
        return
    with pytest.raises(InputError) as error:
        settings_of(read(text, FILE))
    assert one_line(error) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TEST.NMS"], "--set: takes pairs of KEY and VALUE, and TEST.NMS has no value"),
        (["TEST.NSM", "0.5"], "--set: there is no key TEST.NSM; did you mean TEST.NMS?"),
        (["TEST", "0.5"], "--set: TEST: takes keys of its own, such as TEST.WEIGHTS"),
        (["TEST.NMS", "1"], "--set: TEST.NMS: takes a number with a point, such as 1.0, not 1; write 1.0"),
        (
            ["MODEL.ROI_HEAD", "x"],
            "--set: MODEL.ROI_HEAD was renamed to FAST_RCNN.ROI_BOX_HEAD, which may take a value "
            "of another type; write that",
        ),
        (
            ["DEBUG", "True"],
            "--set: DEBUG: cannot be True: it trains on the first 100 images only; pass a split of them",
        ),
    ],
)
def test_set_is_refused_as_a_file_is(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        overlaid(read(PYTORCH, FILE), words)
    assert one_line(error) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "e2e.yaml: has nothing in it; pass a configuration of Detectron"),
        ("- 1", "e2e.yaml: is no mapping of keys; pass a configuration of Detectron"),
        ("A: !!python/object/apply:os.system [ls]", "e2e.yaml:1: has the tag tag:yaml.org,2002:python/object/apply:"
         "os.system, which names no plain value; take it out"),
        ("TEST:\n  NMS: 0.5\n  NMS: 0.4", "e2e.yaml:3: NMS stands here twice; take one out"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(text, FILE)
    assert one_line(error) == said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"A: \xe9")
    with pytest.raises(InputError, match=r"none.yaml: cannot be read \(No such file"):
        settings_named(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"latin.yaml: cannot be read \(not UTF-8\)"):
        settings_named(str(tmp_path / "latin.yaml"))


# --- the table of keys ---


def test_every_key_has_one_fate_and_says_it() -> None:
    assert len(KEYS) == 258
    for name, key in KEYS.items():
        assert key.fate in (OBEYED, FIXED, ELSEWHERE) and key.text, name
        assert not key.text.endswith(".") and len(key.text) < 180, name
        assert not key.switch or key.switch.removeprefix("!") in KEYS, name
    assert not DEPRECATED & KEYS.keys() and not RENAMED.keys() & KEYS.keys()
    assert set(RENAMED.values()) <= KEYS.keys() and not SECTIONS & KEYS.keys()


def test_every_fixed_key_is_refused_where_it_means_something() -> None:
    """One after the other, with the switches that it needs."""
    for name, key in KEYS.items():
        if key.fate != FIXED:
            continue
        other: Any = {bool: not key.default, int: 77, float: 77.5, str: "other", tuple: (7,), list: [7]}[
            type(key.default)
        ]
        values: dict[str, Any] = {}
        above = key.switch
        while above:
            needed = above.removeprefix("!")
            values[needed] = needed == above
            above = KEYS[needed].switch
        switch = key.switch.removeprefix("!")
        with pytest.raises(InputError) as error:
            of_values("x", {**values, name: other})
        assert (KEYS[switch].fate == FIXED) if switch and name not in str(error.value) else True
        assert "cannot be" in one_line(error)


# --- the shipped ones ---

SHIPPED = {
    *(f"e2e_faster_rcnn_R-50-C4_{x}" for x in ("1x", "2x")),
    *(f"e2e_mask_rcnn_R-50-C4_{x}" for x in ("1x", "2x")),
    "e2e_mask_rcnn_R-101-C4_2x",
    *(
        f"e2e_{heads}_rcnn_{body}-FPN_{x}"
        for heads in ("faster", "mask")
        for body in ("R-50", "R-101", "X-101-32x8d", "X-101-64x4d")
        for x in ("1x", "2x")
    ),
    "e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x",
    *(
        f"e2e_keypoint_rcnn_{body}-FPN_{x}"
        for body in ("R-50", "R-101", "X-101-32x8d", "X-101-64x4d")
        for x in ("1x", "s1x")
    ),
    *(f"e2e_mask_rcnn_{body}-FPN_{x}_gn" for body in ("R-50", "R-101") for x in ("2x", "3x")),
    *(f"scratch_e2e_mask_rcnn_{body}-FPN_3x_gn" for body in ("R-50", "R-101")),
    *(f"tutorial_{gpus}gpu_e2e_faster_rcnn_R-50-FPN" for gpus in (1, 2, 4, 8)),
}


def test_all_of_detectron_pytorchs_names_are_there_and_rpns() -> None:
    assert len(SHIPPED) == 40
    assert set(NAMES) == SHIPPED | {f"rpn_{body}_1x" for body in (
        "R-50-C4", "R-50-FPN", "R-101-FPN", "X-101-32x8d-FPN", "X-101-64x4d-FPN")}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_name_is_what_it_says(name: str) -> None:
    settings = settings_named(name)
    assert settings.name == name
    assert settings.blocks == ((3, 8, 36, 3) if "152" in name else (3, 4, 23, 3) if "101" in name else (3, 4, 6, 3))
    widths = {"32x8d": (32, 8), "64x4d": (64, 4)}
    assert (settings.groups, settings.width_per_group) == next((w for x, w in widths.items() if x in name), (1, 64))
    assert settings.stride_in_1x1 == ("X-1" not in name and not name.endswith("_gn"))
    assert settings.norm == ("group" if name.endswith("_gn") else "affine")
    assert settings.maps == ("C4" if "C4" in name else "FPN")
    assert bool(settings.mask_head) == ("mask" in name) and settings.finds_keypoints == ("keypoint" in name)
    assert settings.rpn_only == name.startswith("rpn")
    assert settings.freeze_at == (0 if name.startswith("scratch") else 2)
    assert settings.anchor_sizes_px == (32, 64, 128, 256, 512)
    sides = (640, 672, 704, 736, 768, 800)
    several = "keypoint" in name or "152" in name
    assert settings.short_sides_px == (sides if several else (500,) if "tutorial" in name else (800,))
    assert settings.box_weights == (10.0, 10.0, 5.0, 5.0)
    if "C4" in name and not settings.rpn_only:
        assert (settings.box_head, settings.box_pooled, settings.box_sampling) == ("res5", 14, 0)
        assert settings.rpn_before_nms == (12000, 6000) and settings.rpn_after_nms == (2000, 1000)
    if settings.maps == "FPN" and not settings.rpn_only:
        assert settings.rpn_before_nms == (2000, 1000) and settings.rpn_after_nms == (2000, 1000)


# --- translations that no shipped one has ---


def test_the_finest_map_alone_has_all_anchors() -> None:
    text = PYTORCH.replace("conv5_body", "conv5_P2only_body").replace("MULTILEVEL_ROIS: True", "DIM: 128")
    text = text.replace("  MULTILEVEL_RPN: True\n", "") + "RPN:\n  SIZES: (32, 64)\n  STRIDE: 4\n"
    settings = settings_of(read(text, FILE))
    assert (settings.roi_levels, settings.rpn_levels, settings.anchor_sizes_px) == ((2,), (2,), (32, 64))
    assert settings.fpn_channels == 128


def test_dilated_res5_has_the_stride_of_res4() -> None:
    text = (
        "MODEL: {CONV_BODY: ResNet.ResNet101_conv5_body, FASTER_RCNN: True}\n"
        "RESNETS: {RES5_DILATION: 2}\nFAST_RCNN: {ROI_BOX_HEAD: fast_rcnn_heads.roi_2mlp_head}\n"
    )
    settings = settings_of(read(text, FILE))
    assert (settings.maps, settings.res5_dilation, settings.box_pooling, settings.box_pooled) == ("C5", 2, "max", 14)
    with pytest.raises(InputError, match="RPN.STRIDE: has to be 32 with ResNet.ResNet101_conv5_body"):
        settings_of(read(text.replace("2}", "1}", 1), FILE))


@pytest.mark.parametrize("key", ["TRAIN.FREEZE_AT", "RESNETS.FREEZE_AT"])
def test_freeze_at_has_two_names(key: str) -> None:
    assert settings_of(overlaid(read(PYTORCH, FILE), [key, "0"])).freeze_at == 0
    both = overlaid(read(PYTORCH, FILE), ["TRAIN.FREEZE_AT", "3", "RESNETS.FREEZE_AT", "3"])
    assert settings_of(both).freeze_at == 3
    with pytest.raises(InputError, match="TRAIN.FREEZE_AT: is RESNETS.FREEZE_AT, which is 4; leave one of them out"):
        settings_of(overlaid(both, ["RESNETS.FREEZE_AT", "4"]))


def test_sides_of_masks_and_heat_maps_have_to_be_what_heads_make() -> None:
    mask = configurations()["e2e_mask_rcnn_R-50-FPN_1x"]
    with pytest.raises(InputError, match="MRCNN.RESOLUTION: has to be 28, which v1up4convs makes of 14 cells, not 14"):
        settings_of(overlaid(mask, ["MRCNN.RESOLUTION", "14"]))
    shared = configurations()["e2e_mask_rcnn_R-50-C4_1x"]
    assert settings_of(shared).mask_side == 14
    own = overlaid(shared, ["MRCNN.ROI_MASK_HEAD", "mask_rcnn_heads.ResNet_mask_rcnn_fcn_head_v0up"])
    assert (settings_of(own).mask_head, settings_of(own).mask_side) == ("v0up", 14)
    with pytest.raises(InputError, match="MRCNN.DILATION: has to be 1 with v0up"):
        settings_of(overlaid(own, ["MRCNN.DILATION", "2"]))
    keypoints = configurations()["e2e_keypoint_rcnn_R-50-FPN_1x"]
    with pytest.raises(InputError, match="KRCNN.HEATMAP_SIZE: has to be 28"):
        settings_of(overlaid(keypoints, ["KRCNN.UP_SCALE", "1"]))
