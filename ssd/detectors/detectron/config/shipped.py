"""The configurations that Detectron.pytorch ships, by name, and those of Detectron for proposals alone: made of one
table of bodies, heads and schedules.

Facts from roytseng-tw/Detectron.pytorch at 1b1c4ba and facebookresearch/Detectron at 04155a0 (configs/). The ones for
training from scratch freeze nothing, which their first versions had forgotten.
"""

import functools
import itertools
from typing import Any, NamedTuple

from ssd.detectors.detectron.config.configuration import Configuration, of_values
from ssd.detectors.tta.rules import PUBLISHED_LONG_SIDE_PX, PUBLISHED_SHORT_SIDES_PX, PUBLISHED_VOTE_IOU


class _Body(NamedTuple):
    """depth: of the ResNet. groups, width: of its 3 x 3 convolutions. file: with ImageNet's weights."""

    depth: int
    groups: int = 1
    width: int = 64
    file: str = ""
    norm: str = "bn"


_BODIES = {
    "R-50": _Body(50, file="R-50.pkl"),
    "R-101": _Body(101, file="R-101.pkl"),
    "X-101-32x8d": _Body(101, 32, 8, "X-101-32x8d.pkl"),
    "X-101-64x4d": _Body(101, 64, 4, "X-101-64x4d.pkl"),
    "X-152-32x8d": _Body(152, 32, 8, "X-152-32x8d-IN5k.pkl"),
    "R-50-GN": _Body(50, file="R-50-GN.pkl", norm="gn"),
    "R-101-GN": _Body(101, file="R-101-GN.pkl", norm="gn"),
}
_OF_FPN = ("R-50", "R-101", "X-101-32x8d", "X-101-64x4d")


class _Schedule(NamedTuple):
    """images: of a batch on 8 GPUs. The rate is 0.02 for 16 of them. drops, length: in thousands of steps."""

    images: int
    drops: tuple[float, float]
    length: float


_FOR_16 = {
    "1x": _Schedule(16, (60, 80), 90),
    "2x": _Schedule(16, (120, 160), 180),
    "3x": _Schedule(16, (210, 250), 270),
    "s1x": _Schedule(16, (100, 120), 130),
}
_FOR_8 = {
    "1x": _Schedule(8, (120, 160), 180),
    "2x": _Schedule(8, (240, 320), 360),
    "1.44x": _Schedule(8, (200, 240), 260),
}
_SEVERAL_SIDES_PX = (640, 672, 704, 736, 768, 800)


_IN_SEVERAL_PASSES = {
    **{
        f"TEST.{section}.{name}": value
        for section in ("BBOX_AUG", "MASK_AUG")
        for name, value in {
            "ENABLED": True,
            "H_FLIP": True,
            "SCALES": PUBLISHED_SHORT_SIDES_PX,
            "MAX_SIZE": PUBLISHED_LONG_SIDE_PX,
            "SCALE_H_FLIP": True,
        }.items()
    },
    "TEST.BBOX_VOTE.ENABLED": True,
    "TEST.BBOX_VOTE.VOTE_TH": PUBLISHED_VOTE_IOU,
}


def _body(body: _Body, maps: str) -> dict[str, Any]:
    name = f"FPN.fpn_ResNet{body.depth}_conv5_body" if maps == "FPN" else f"ResNet.ResNet{body.depth}_conv4_body"
    values: dict[str, Any] = {"MODEL.CONV_BODY": name}
    if body.groups > 1 or body.norm == "gn":
        values["RESNETS.STRIDE_1X1"] = False
    if body.groups > 1:
        values |= {"RESNETS.NUM_GROUPS": body.groups, "RESNETS.WIDTH_PER_GROUP": body.width}
    if body.norm == "gn":
        values |= {
            "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
            "RESNETS.STEM_FUNC": "basic_gn_stem",
            "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut",
            "FPN.USE_GN": True,
        }
    return {**values, "TRAIN.WEIGHTS": body.file}


def _proposals(maps: str, *, alone: bool) -> dict[str, Any]:
    """alone: whether they are all that is found."""
    if maps == "C4":
        values: dict[str, Any] = {"RPN.SIZES": (32, 64, 128, 256, 512)}
        return values if alone else {**values, "TEST.RPN_PRE_NMS_TOP_N": 6000, "TEST.RPN_POST_NMS_TOP_N": 1000}
    return {
        "FPN.FPN_ON": True,
        "FPN.MULTILEVEL_RPN": True,
        **({} if alone else {"TRAIN.RPN_PRE_NMS_TOP_N": 2000}),
        "TEST.RPN_PRE_NMS_TOP_N": 1000,
        "TEST.RPN_POST_NMS_TOP_N": 2000 if alone else 1000,
    }


def _boxes(maps: str, has_gn: bool) -> dict[str, Any]:
    values = {"MODEL.FASTER_RCNN": True, "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign"}
    if maps == "C4":
        return {**values, "FAST_RCNN.ROI_BOX_HEAD": "ResNet.ResNet_roi_conv5_head"}
    head = "roi_Xconv1fc_gn_head" if has_gn else "roi_2mlp_head"
    return {
        **values,
        "FPN.MULTILEVEL_ROIS": True,
        "FAST_RCNN.ROI_BOX_HEAD": f"fast_rcnn_heads.{head}",
        "FAST_RCNN.ROI_XFORM_RESOLUTION": 7,
        "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": 2,
    }


def _masks(maps: str, has_gn: bool) -> dict[str, Any]:
    head = "v0upshare" if maps == "C4" else "v1up4convs_gn" if has_gn else "v1up4convs"
    values = {
        "MODEL.MASK_ON": True,
        "MRCNN.ROI_MASK_HEAD": f"mask_rcnn_heads.mask_rcnn_fcn_head_{head}",
        "MRCNN.RESOLUTION": 14 if maps == "C4" else 28,
        "MRCNN.ROI_XFORM_RESOLUTION": 14,
        "MRCNN.DILATION": 1,
        "MRCNN.CONV_INIT": "MSRAFill",
    }
    return values if maps == "C4" else {**values, "MRCNN.ROI_XFORM_SAMPLING_RATIO": 2}


_KEYPOINTS = {
    "MODEL.KEYPOINTS_ON": True,
    "KRCNN.ROI_KEYPOINTS_HEAD": "keypoint_rcnn_heads.roi_pose_head_v1convX",
    "KRCNN.NUM_STACKED_CONVS": 8,
    "KRCNN.CONV_HEAD_DIM": 512,
    "KRCNN.CONV_INIT": "MSRAFill",
    "KRCNN.USE_DECONV_OUTPUT": True,
    "KRCNN.UP_SCALE": 2,
    "KRCNN.HEATMAP_SIZE": 56,
    "KRCNN.ROI_XFORM_RESOLUTION": 14,
    "KRCNN.ROI_XFORM_SAMPLING_RATIO": 2,
}


def _run(schedule: _Schedule, sides_px: tuple[int, ...]) -> dict[str, Any]:
    return {
        "NUM_GPUS": 8,
        "SOLVER.BASE_LR": round(0.02 * schedule.images / 16, 6),
        "SOLVER.LR_POLICY": "steps_with_decay",
        "SOLVER.STEPS": [0, *(round(1000 * drop) for drop in schedule.drops)],
        "SOLVER.MAX_ITER": round(1000 * schedule.length),
        "SOLVER.WEIGHT_DECAY": 0.0001,
        "TRAIN.IMS_PER_BATCH": schedule.images // 8,
        "TRAIN.SCALES": sides_px,
        "TRAIN.MAX_SIZE": 1333,
        "TEST.SCALE": 800,
        "TEST.MAX_SIZE": 1333,
    }


def _whole(body: str, maps: str, heads: str, schedule: _Schedule, sides_px: tuple[int, ...] = (800,)) -> dict[str, Any]:
    """heads: one of "faster", "mask", "keypoint" and "rpn"."""
    of_body = _BODIES[body]
    has_gn = of_body.norm == "gn"
    values = {**_body(of_body, maps), **_proposals(maps, alone=heads == "rpn")}
    if heads == "rpn":
        return {**values, "MODEL.RPN_ONLY": True, **_run(schedule, sides_px)}
    values |= _boxes(maps, has_gn)
    if heads == "mask":
        values |= _masks(maps, has_gn)
    if heads == "keypoint":
        values |= _KEYPOINTS
    # What only heads have.
    return {**values, **_run(schedule, sides_px), "TRAIN.BATCH_SIZE_PER_IM": 512, "TEST.NMS": 0.5}


def _tutorial(gpus: int) -> dict[str, Any]:
    """Of Detectron's "getting started": 60,000 steps on one GPU, and as many images on more."""
    values = _whole("R-50", "FPN", "faster", _Schedule(2 * gpus, (30 / gpus, 40 / gpus), 60 / gpus))
    return values | {
        "NUM_GPUS": gpus,
        "TRAIN.IMS_PER_BATCH": 2,
        "TRAIN.SCALES": (500,),
        "TRAIN.MAX_SIZE": 833,
        "TRAIN.BATCH_SIZE_PER_IM": 256,
        "TEST.SCALE": 500,
        "TEST.MAX_SIZE": 833,
    }


def _from_scratch(body: str) -> dict[str, Any]:
    values = _whole(body, "FPN", "mask", _FOR_16["3x"])
    del values["TRAIN.WEIGHTS"]
    return values | {"MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": False, "RESNETS.FREEZE_AT": 0}


def _made() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for length in ("1x", "2x"):
        made[f"e2e_faster_rcnn_R-50-C4_{length}"] = _whole("R-50", "C4", "faster", _FOR_8[length])
        for body, heads in itertools.product(_OF_FPN, ("faster", "mask")):
            schedule = (_FOR_8 if body.startswith("X") else _FOR_16)[length]
            made[f"e2e_{heads}_rcnn_{body}-FPN_{length}"] = _whole(body, "FPN", heads, schedule)
        made[f"e2e_mask_rcnn_R-50-C4_{length}"] = _whole("R-50", "C4", "mask", _FOR_8[length])
    made["e2e_mask_rcnn_R-101-C4_2x"] = _whole("R-101", "C4", "mask", _FOR_8["2x"])
    x_152 = _whole("X-152-32x8d", "FPN", "mask", _FOR_8["1.44x"], _SEVERAL_SIDES_PX)
    made["e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x"] = {**x_152, **_IN_SEVERAL_PASSES}
    for body, length in itertools.product(_OF_FPN, ("1x", "s1x")):
        made[f"e2e_keypoint_rcnn_{body}-FPN_{length}"] = _whole(
            body, "FPN", "keypoint", _FOR_16[length], _SEVERAL_SIDES_PX
        )
    for body in ("R-50", "R-101"):
        for length in ("2x", "3x"):
            made[f"e2e_mask_rcnn_{body}-FPN_{length}_gn"] = _whole(f"{body}-GN", "FPN", "mask", _FOR_16[length])
        made[f"scratch_e2e_mask_rcnn_{body}-FPN_3x_gn"] = _from_scratch(f"{body}-GN")
    for gpus in (1, 2, 4, 8):
        made[f"tutorial_{gpus}gpu_e2e_faster_rcnn_R-50-FPN"] = _tutorial(gpus)
    made["rpn_R-50-C4_1x"] = _whole("R-50", "C4", "rpn", _FOR_16["1x"])
    for body in _OF_FPN:
        made[f"rpn_{body}-FPN_1x"] = _whole(body, "FPN", "rpn", _FOR_16["1x"])
    return made


@functools.cache
def configurations() -> dict[str, Configuration]:
    return {name: of_values(name, values) for name, values in _made().items()}


NAMES = tuple(_made())
"""All of them."""
