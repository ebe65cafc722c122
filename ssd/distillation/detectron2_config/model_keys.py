"""detectron2's keys under MODEL, with what becomes of each in the file of a student.

Facts from facebookresearch/detectron2 at v0.4.1 (detectron2/config/defaults.py). Where its default is that of an R-CNN,
the default here is what a RetinaNet of detectron2 needs in its place, and nothing else is taken.
"""

from collections.abc import Iterator

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed, obeyed

ANCHOR_SIZES_PX = [[side, side * 2 ** (1.0 / 3), side * 2 ** (2.0 / 3)] for side in (32, 64, 128, 256, 512)]

_RETINANET = "only RetinaNets are taught by such a file; --teacher and --distill teach other detectors"
_ANCHORS = "anchors are those of detectron2's RetinaNets"
_MATCHING = "anchors are matched as in detectron2's RetinaNets"
_FOCAL = "the focal loss has the numbers of its paper"
_NO_DEFORMATION = "deformable convolutions are not there"
_NO_OTHER_BODY = "the body is a plain ResNet"
_NO_NORM = "the pyramid and the heads have no norm"
_NOT_OF_RETINANET = "no RetinaNet has it"

# Of other detectors, by section.
_OTHERS = {
    "PROPOSAL_GENERATOR": "NAME MIN_SIZE",
    "RPN": "HEAD_NAME IN_FEATURES BOUNDARY_THRESH IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE POSITIVE_FRACTION "
    "BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA LOSS_WEIGHT PRE_NMS_TOPK_TRAIN "
    "PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST NMS_THRESH CONV_DIMS",
    "ROI_HEADS": "NAME NUM_CLASSES IN_FEATURES IOU_THRESHOLDS IOU_LABELS BATCH_SIZE_PER_IMAGE POSITIVE_FRACTION "
    "SCORE_THRESH_TEST NMS_THRESH_TEST PROPOSAL_APPEND_GT",
    "ROI_BOX_HEAD": "NAME BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT BBOX_REG_WEIGHTS SMOOTH_L1_BETA POOLER_RESOLUTION "
    "POOLER_SAMPLING_RATIO POOLER_TYPE NUM_FC FC_DIM NUM_CONV CONV_DIM NORM CLS_AGNOSTIC_BBOX_REG TRAIN_ON_PRED_BOXES",
    "ROI_BOX_CASCADE_HEAD": "BBOX_REG_WEIGHTS IOUS",
    "ROI_MASK_HEAD": "NAME POOLER_RESOLUTION POOLER_SAMPLING_RATIO NUM_CONV CONV_DIM NORM CLS_AGNOSTIC_MASK "
    "POOLER_TYPE",
    "ROI_KEYPOINT_HEAD": "NAME POOLER_RESOLUTION POOLER_SAMPLING_RATIO CONV_DIMS NUM_KEYPOINTS MIN_KEYPOINTS_PER_IMAGE "
    "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS LOSS_WEIGHT POOLER_TYPE",
    "SEM_SEG_HEAD": "NAME IN_FEATURES IGNORE_VALUE NUM_CLASSES CONVS_DIM COMMON_STRIDE NORM LOSS_WEIGHT",
    "PANOPTIC_FPN": "INSTANCE_LOSS_WEIGHT COMBINE.ENABLED COMBINE.OVERLAP_THRESH COMBINE.STUFF_AREA_LIMIT "
    "COMBINE.INSTANCES_CONFIDENCE_THRESH",
}


def _of_others() -> Iterator[tuple[str, Key]]:
    for section, names in _OTHERS.items():
        yield from ((f"MODEL.{section}.{name}", elsewhere(None, _NOT_OF_RETINANET)) for name in names.split())


MODEL: dict[str, Key] = {
    "MODEL.META_ARCHITECTURE": fixed("RetinaNetDistill", _RETINANET, "RetinaNet"),
    "MODEL.WEIGHTS": obeyed("", "--backbone-weights, for a file of MSRA's; --checkpoint, for any other; none: from "
                            "scratch"),
    "MODEL.OUTPUTS": elsewhere([], "what the losses look at is always there"),
    "MODEL.DEVICE": elsewhere("cuda", "--device says it"),
    "MODEL.LOAD_PROPOSALS": fixed(False, _RETINANET),
    "MODEL.MASK_ON": fixed(False, _RETINANET),
    "MODEL.KEYPOINT_ON": fixed(False, _RETINANET),
    "MODEL.PIXEL_MEAN": fixed([103.53, 116.28, 123.675], "images lose ImageNet's mean, as in detectron2's RetinaNets"),
    "MODEL.PIXEL_STD": fixed([1.0, 1.0, 1.0], "weights for values in 0 to 255 are converted when they are read"),
    "MODEL.BACKBONE.NAME": fixed("build_retinanet_resnet_fpn_backbone_distill", "P6 comes from the body's last map",
                                 "build_retinanet_resnet_fpn_backbone"),
    "MODEL.BACKBONE.FREEZE_AT": obeyed(2, "--trainable-layers: 5 less this", 0, 1, 2, 3, 4, 5),
    "MODEL.FPN.IN_FEATURES": fixed(["res3", "res4", "res5"], "the pyramid begins at P3"),
    "MODEL.FPN.OUT_CHANNELS": fixed(256, "a map of the pyramid has 256 channels"),
    "MODEL.FPN.NORM": fixed("", _NO_NORM),
    "MODEL.FPN.FUSE_TYPE": fixed("sum", "maps of a pyramid are added up"),
    "MODEL.ANCHOR_GENERATOR.NAME": fixed("DefaultAnchorGenerator", _ANCHORS),
    "MODEL.ANCHOR_GENERATOR.SIZES": fixed(ANCHOR_SIZES_PX, _ANCHORS),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": fixed([[0.5, 1.0, 2.0]], _ANCHORS),
    "MODEL.ANCHOR_GENERATOR.ANGLES": elsewhere([[-90, 0, 90]], _NOT_OF_RETINANET),
    "MODEL.ANCHOR_GENERATOR.OFFSET": fixed(0.0, _ANCHORS),
    "MODEL.RETINANET.NUM_CLASSES": elsewhere(80, "the classes are those of the data"),
    "MODEL.RETINANET.IN_FEATURES": fixed(["p3", "p4", "p5", "p6", "p7"], "the heads look at all five maps"),
    "MODEL.RETINANET.NUM_CONVS": fixed(4, "the heads have four convolutions before the last"),
    "MODEL.RETINANET.IOU_THRESHOLDS": fixed([0.4, 0.5], _MATCHING),
    "MODEL.RETINANET.IOU_LABELS": fixed([0, -1, 1], _MATCHING),
    "MODEL.RETINANET.PRIOR_PROB": fixed(0.01, _FOCAL),
    "MODEL.RETINANET.SCORE_THRESH_TEST": obeyed(0.05, "--score-threshold", least=0, most=1),
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": fixed(1000, "so many of a map enter suppression"),
    "MODEL.RETINANET.NMS_THRESH_TEST": obeyed(0.5, "--nms-iou", least=0, most=1),
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": fixed((1.0, 1.0, 1.0, 1.0), "offsets of boxes are not scaled"),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": fixed(2.0, _FOCAL),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": fixed(0.25, _FOCAL),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": obeyed(0.1, "--smooth-l1-beta", least=0),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": fixed("smooth_l1", "the loss of boxes is smooth L1, or with beta 0 L1"),
    "MODEL.RETINANET.NORM": fixed("", _NO_NORM),
    "MODEL.RESNETS.DEPTH": obeyed(50, "the body", 18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": fixed(["res3", "res4", "res5"], "the pyramid begins at P3"),
    "MODEL.RESNETS.NUM_GROUPS": fixed(1, _NO_OTHER_BODY),
    "MODEL.RESNETS.NORM": obeyed("FrozenBN", "--norm frozen or batch", "FrozenBN", "BN"),
    "MODEL.RESNETS.WIDTH_PER_GROUP": fixed(64, _NO_OTHER_BODY),
    "MODEL.RESNETS.STRIDE_IN_1X1": obeyed(True, "--stride-in 1x1, else 3x3"),
    "MODEL.RESNETS.RES5_DILATION": fixed(1, _NO_OTHER_BODY),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": obeyed(256, "has to be 64 with DEPTH 18 and 34, else 256", 64, 256),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": fixed(64, _NO_OTHER_BODY),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": fixed([False, False, False, False], _NO_DEFORMATION),
    "MODEL.RESNETS.DEFORM_MODULATED": elsewhere(False, _NO_DEFORMATION),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": elsewhere(1, _NO_DEFORMATION),
    **dict(_of_others()),
}  # fmt: skip
