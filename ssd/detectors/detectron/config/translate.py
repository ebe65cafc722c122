"""A configuration of Detectron as the settings of a detector, or the reason why there is none."""

import re
from typing import Any

from ssd.detectors.detectron.config.configuration import Configuration, text_of
from ssd.detectors.detectron.settings import BLOCKS, DetectronSettings

_FASTEST = "pass one that ResNet.py or FPN.py of Detectron has, such as FPN.fpn_ResNet50_conv5_body"
_BODY = re.compile(
    r"ResNet\.(?:add_)?ResNet(?P<c4>50|101)_conv4_body"
    r"|ResNet\.(?:add_)?ResNet(?P<c5>50|101|152)_conv5_body"
    r"|FPN\.(?:add_)?fpn_ResNet(?P<fpn>50|101|152)_conv5_(?P<p2>P2only_)?body"
)
_BOX_HEADS = {
    "fast_rcnn_heads.roi_2mlp_head": ("mlp", False),
    "head_builder.roi_2mlp_head": ("mlp", False),
    "fast_rcnn_heads.roi_Xconv1fc_head": ("convs", False),
    "fast_rcnn_heads.roi_Xconv1fc_gn_head": ("convs", True),
    "ResNet.ResNet_roi_conv5_head": ("res5", False),
}
_MASK_HEADS = {
    "mask_rcnn_fcn_head_v1up4convs": ("v1up4convs", False),
    "mask_rcnn_fcn_head_v1up4convs_gn": ("v1up4convs", True),
    "mask_rcnn_fcn_head_v1up": ("v1up", False),
    "mask_rcnn_fcn_head_v0up": ("v0up", False),
    "mask_rcnn_fcn_head_v0upshare": ("v0upshare", False),
}
_KEYPOINT_HEADS = ("keypoint_rcnn_heads.roi_pose_head_v1convX",)
_POOLINGS = {"RoIAlign": "align", "RoIPoolF": "max"}


def settings_of(config: Configuration) -> DetectronSettings:
    """Raises InputError, with file and line where the key stands in one, for what no detector here can be."""
    if config["MODEL.FASTER_RCNN"] == config["MODEL.RPN_ONLY"]:
        raise config.error(
            "MODEL.FASTER_RCNN", "either it or MODEL.RPN_ONLY has to be True; Fast R-CNN on files of proposals is not "
            "there"
        )  # fmt: skip
    body = _body(config)
    return DetectronSettings(
        name=config.name,
        rpn_only=config["MODEL.RPN_ONLY"],
        **body,
        **_levels(config, body["maps"]),
        **_proposals(config),
        **_boxes(config, body["maps"]),
        **_masks(config, body["maps"]),
        **_keypoints(config),
        **_images(config),
        cfg=text_of(config),
    )


def _body(config: Configuration) -> dict[str, Any]:
    found = _BODY.fullmatch(config["MODEL.CONV_BODY"])
    if found is None:
        named = config["MODEL.CONV_BODY"]
        raise config.error("MODEL.CONV_BODY", f"there is no body {named!r} here; {_FASTEST}" if named else _FASTEST)
    maps = "C4" if found["c4"] else "C5" if found["c5"] else "FPN"
    if config["FPN.FPN_ON"] != (maps == "FPN"):
        raise config.error("FPN.FPN_ON", f"has to be {maps == 'FPN'} with {config['MODEL.CONV_BODY']}")
    has_groups = {
        "RESNETS.TRANS_FUNC": config["RESNETS.TRANS_FUNC"] == "bottleneck_gn_transformation",
        "RESNETS.STEM_FUNC": config["RESNETS.STEM_FUNC"] == "basic_gn_stem",
        "RESNETS.SHORTCUT_FUNC": config["RESNETS.SHORTCUT_FUNC"] == "basic_gn_shortcut",
    }
    if "RESNETS.USE_GN" in config.given:
        has_groups["RESNETS.USE_GN"] = config["RESNETS.USE_GN"]
    norms = set(has_groups.values())
    if len(norms) > 1:
        given = next(key for key in reversed(has_groups) if key in config.given)
        raise config.error(given, "TRANS_FUNC, STEM_FUNC, SHORTCUT_FUNC and USE_GN have to mean one norm")
    freeze_at = config["RESNETS.FREEZE_AT"]
    if "TRAIN.FREEZE_AT" in config.given:
        if "RESNETS.FREEZE_AT" in config.given and config["TRAIN.FREEZE_AT"] != freeze_at:
            raise config.error("TRAIN.FREEZE_AT", f"is RESNETS.FREEZE_AT, which is {freeze_at}; leave one of them out")
        freeze_at = config["TRAIN.FREEZE_AT"]
    if maps == "C4" and freeze_at > 4:
        raise config.error("RESNETS.FREEZE_AT", f"cannot be {freeze_at}: a conv4 body ends with res4")
    return {
        "blocks": BLOCKS[int(found["c4"] or found["c5"] or found["fpn"])],
        "groups": config["RESNETS.NUM_GROUPS"],
        "width_per_group": config["RESNETS.WIDTH_PER_GROUP"],
        "stride_in_1x1": config["RESNETS.STRIDE_1X1"],
        "norm": "group" if norms == {True} else "affine",
        "freeze_at": freeze_at,
        "res5_dilation": config["RESNETS.RES5_DILATION"],
        "maps": maps,
        "group_norm_groups": config["GROUP_NORM.NUM_GROUPS"],
        "group_norm_eps": config["GROUP_NORM.EPSILON"],
    }


def _levels(config: Configuration, maps: str) -> dict[str, Any]:
    """Of the pyramid, and of the anchors on its levels or on the one map."""
    if maps != "FPN":
        return _one_map_s_anchors(config, 16 if maps == "C4" or config["RESNETS.RES5_DILATION"] > 1 else 32)
    only_finest = "P2only" in config["MODEL.CONV_BODY"]
    for key in ("FPN.MULTILEVEL_RPN", "FPN.MULTILEVEL_ROIS"):
        if config[key] == only_finest and not (config["MODEL.RPN_ONLY"] and key == "FPN.MULTILEVEL_ROIS"):
            raise config.error(key, f"has to be {not only_finest} with {config['MODEL.CONV_BODY']}")
    pyramid = {
        "fpn_channels": config["FPN.DIM"],
        "fpn_group_norm": config["FPN.USE_GN"],
        "fpn_zero_lateral": config["FPN.ZERO_INIT_LATERAL"],
        "roi_canonical_px": config["FPN.ROI_CANONICAL_SCALE"],
        "roi_canonical_level": config["FPN.ROI_CANONICAL_LEVEL"],
        "coarsest_stride": config["FPN.COARSEST_STRIDE"],
        "rpn_collect_scale": float(config["FPN.RPN_COLLECT_SCALE"]),
    }
    if only_finest:
        return {**pyramid, "roi_levels": (2,), "rpn_levels": (2,), **_one_map_s_anchors(config, 4)}
    rpn_levels = _range(config, "FPN.RPN_MIN_LEVEL", "FPN.RPN_MAX_LEVEL")
    return {
        **pyramid,
        "roi_levels": _range(config, "FPN.ROI_MIN_LEVEL", "FPN.ROI_MAX_LEVEL"),
        "rpn_levels": rpn_levels,
        "anchor_sizes_px": tuple(config["FPN.RPN_ANCHOR_START_SIZE"] * 2**place for place in range(len(rpn_levels))),
        "anchor_ratios": tuple(map(float, config["FPN.RPN_ASPECT_RATIOS"])),
    }


def _one_map_s_anchors(config: Configuration, stride: int) -> dict[str, Any]:
    if config["RPN.STRIDE"] != stride and ("RPN.STRIDE" in config.given or stride != 4):
        raise config.error("RPN.STRIDE", f"has to be {stride} with {config['MODEL.CONV_BODY']}")
    return {
        "anchor_sizes_px": config["RPN.SIZES"],
        "anchor_ratios": tuple(map(float, config["RPN.ASPECT_RATIOS"])),
    }


def _range(config: Configuration, first: str, last: str) -> tuple[int, ...]:
    if config[first] > config[last]:
        raise config.error(first, f"is above {last}, {config[last]}")
    return tuple(range(config[first], config[last] + 1))


def _proposals(config: Configuration) -> dict[str, Any]:
    return {
        "rpn_positive_iou": config["TRAIN.RPN_POSITIVE_OVERLAP"],
        "rpn_negative_iou": config["TRAIN.RPN_NEGATIVE_OVERLAP"],
        "rpn_samples": config["TRAIN.RPN_BATCH_SIZE_PER_IM"],
        "rpn_positive_share": config["TRAIN.RPN_FG_FRACTION"],
        "straddle_px": float(config["TRAIN.RPN_STRADDLE_THRESH"]),
        "rpn_min_size_px": (float(config["TRAIN.RPN_MIN_SIZE"]), float(config["TEST.RPN_MIN_SIZE"])),
        "rpn_nms_iou": (config["TRAIN.RPN_NMS_THRESH"], config["TEST.RPN_NMS_THRESH"]),
        "rpn_before_nms": (config["TRAIN.RPN_PRE_NMS_TOP_N"], config["TEST.RPN_PRE_NMS_TOP_N"]),
        "rpn_after_nms": (config["TRAIN.RPN_POST_NMS_TOP_N"], config["TEST.RPN_POST_NMS_TOP_N"]),
    }


def _boxes(config: Configuration, maps: str) -> dict[str, Any]:
    if config["MODEL.RPN_ONLY"]:
        return {}
    head, has_group_norm = _one_of(config, "FAST_RCNN.ROI_BOX_HEAD", _BOX_HEADS)
    if (head == "res5") != (maps == "C4"):
        raise config.error(
            "FAST_RCNN.ROI_BOX_HEAD", "ResNet_roi_conv5_head goes with conv4 bodies, and no other head does"
        )
    return {
        "box_head": head,
        "box_head_group_norm": has_group_norm,
        "box_head_channels": config["FAST_RCNN.MLP_HEAD_DIM"],
        "box_head_conv_channels": config["FAST_RCNN.CONV_HEAD_DIM"],
        "box_head_convs": config["FAST_RCNN.NUM_STACKED_CONVS"],
        "class_agnostic_boxes": config["MODEL.CLS_AGNOSTIC_BBOX_REG"],
        "box_weights": config["MODEL.BBOX_REG_WEIGHTS"],
        "box_pooling": _POOLINGS[config["FAST_RCNN.ROI_XFORM_METHOD"]],
        "box_pooled": config["FAST_RCNN.ROI_XFORM_RESOLUTION"],
        "box_sampling": config["FAST_RCNN.ROI_XFORM_SAMPLING_RATIO"],
        "roi_samples": config["TRAIN.BATCH_SIZE_PER_IM"],
        "roi_positive_share": config["TRAIN.FG_FRACTION"],
        "roi_positive_iou": config["TRAIN.FG_THRESH"],
        "roi_negative_iou": (config["TRAIN.BG_THRESH_LO"], config["TRAIN.BG_THRESH_HI"]),
    }


def _masks(config: Configuration, maps: str) -> dict[str, Any]:
    if not config["MODEL.MASK_ON"]:
        return {}
    # The older name of a head is that with ResNet_ before it.
    by_name = {
        f"mask_rcnn_heads.{prefix}{name}": head for name, head in _MASK_HEADS.items() for prefix in ("", "ResNet_")
    }
    head, has_group_norm = _one_of(config, "MRCNN.ROI_MASK_HEAD", by_name)
    pooled, side = config["MRCNN.ROI_XFORM_RESOLUTION"], config["MRCNN.RESOLUTION"]
    pooled_side = pooled
    if head.startswith("v0up"):
        if config["MRCNN.DILATION"] > 1:
            raise config.error("MRCNN.DILATION", f"has to be 1 with {head}, whose res5 is that of the box head")
        if head == "v0upshare" and pooled != config["FAST_RCNN.ROI_XFORM_RESOLUTION"]:
            raise config.error("MRCNN.ROI_XFORM_RESOLUTION", f"has to be FAST_RCNN's with {head}")
        pooled_side = -(-pooled // max(1, pooled // 7))  # res5's stride, as in Detectron
    made = 2 * pooled_side * config["MRCNN.UPSAMPLE_RATIO"]
    if side != made:
        raise config.error("MRCNN.RESOLUTION", f"has to be {made}, which {head} makes of {pooled} cells, not {side}")
    return {
        "mask_head": head,
        "mask_head_group_norm": has_group_norm,
        "mask_side": side,
        "mask_pooling": _POOLINGS[config["MRCNN.ROI_XFORM_METHOD"]],
        "mask_pooled": pooled,
        "mask_sampling": config["MRCNN.ROI_XFORM_SAMPLING_RATIO"],
        "mask_channels": config["MRCNN.DIM_REDUCED"],
        "mask_dilation": config["MRCNN.DILATION"],
        "mask_upsampling": config["MRCNN.UPSAMPLE_RATIO"],
        "mask_of_classes": config["MRCNN.CLS_SPECIFIC_MASK"],
        "mask_msra_init": config["MRCNN.CONV_INIT"] == "MSRAFill",
        "mask_loss_weight": config["MRCNN.WEIGHT_LOSS_MASK"],
    }


def _keypoints(config: Configuration) -> dict[str, Any]:
    if not config["MODEL.KEYPOINTS_ON"]:
        return {}
    _one_of(config, "KRCNN.ROI_KEYPOINTS_HEAD", dict.fromkeys(_KEYPOINT_HEADS))
    upsampling = max(1, config["KRCNN.UP_SCALE"])
    deconvolutions = config["KRCNN.USE_DECONV"] + config["KRCNN.USE_DECONV_OUTPUT"]
    made = config["KRCNN.ROI_XFORM_RESOLUTION"] * 2**deconvolutions * upsampling
    if config["KRCNN.HEATMAP_SIZE"] != made:
        raise config.error("KRCNN.HEATMAP_SIZE", f"has to be {made}, which the head makes of its region's cells")
    return {
        "finds_keypoints": True,
        "keypoint_convs": config["KRCNN.NUM_STACKED_CONVS"],
        "keypoint_channels": config["KRCNN.CONV_HEAD_DIM"],
        "keypoint_kernel": config["KRCNN.CONV_HEAD_KERNEL"],
        "keypoint_deconv_channels": config["KRCNN.DECONV_DIM"] if config["KRCNN.USE_DECONV"] else 0,
        "keypoint_deconv_kernel": config["KRCNN.DECONV_KERNEL"],
        "keypoint_deconv_output": config["KRCNN.USE_DECONV_OUTPUT"],
        "keypoint_upsampling": upsampling,
        "keypoint_side": made,
        "keypoint_pooling": _POOLINGS[config["KRCNN.ROI_XFORM_METHOD"]],
        "keypoint_pooled": config["KRCNN.ROI_XFORM_RESOLUTION"],
        "keypoint_sampling": config["KRCNN.ROI_XFORM_SAMPLING_RATIO"],
        "keypoint_msra_init": config["KRCNN.CONV_INIT"] == "MSRAFill",
        "keypoint_loss_weight": config["KRCNN.LOSS_WEIGHT"],
        "keypoint_by_visible": config["KRCNN.NORMALIZE_BY_VISIBLE_KEYPOINTS"],
    }


def _images(config: Configuration) -> dict[str, Any]:
    if config["TRAIN.MAX_SIZE"] < max(config["TRAIN.SCALES"]):
        raise config.error("TRAIN.MAX_SIZE", f"{config['TRAIN.MAX_SIZE']} is less than {max(config['TRAIN.SCALES'])}")
    if config["TEST.MAX_SIZE"] < config["TEST.SCALE"]:
        raise config.error("TEST.MAX_SIZE", f"{config['TEST.MAX_SIZE']} is less than {config['TEST.SCALE']}")
    return {
        "short_sides_px": config["TRAIN.SCALES"],
        "long_side_px": config["TRAIN.MAX_SIZE"],
        "test_short_side_px": config["TEST.SCALE"],
        "test_long_side_px": config["TEST.MAX_SIZE"],
        "flips": config["TRAIN.USE_FLIPPED"],
        "by_shape": config["TRAIN.ASPECT_GROUPING"],
        "mean_bgr": config["PIXEL_MEANS"],
    }


def _one_of(config: Configuration, key: str, by_name: dict[str, Any]) -> Any:
    """What a name of Detectron stands for, whose function may begin with add_."""
    name = config[key].replace(".add_", ".")
    if name not in by_name:
        known = ", ".join(each for each in by_name if ".ResNet_" not in each or each.endswith("roi_conv5_head"))
        raise config.error(key, f"{name!r} is none of {known}")
    return by_name[name]
