"""The keys under DISTILL, with what becomes of each.

Facts from daixinghome/Distill_GID_detectron2 at 9118c54 (GID/gid/config.py, distill_gid.py and loss.py).
"""

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed, obeyed

_MAPS = ["p3", "p4", "p5", "p6", "p7"]
_OWN_MAP = "an instance is looked at in the map that suits its size, of all five"
_ADAPTED = "all five maps have an adapter, gid.adapter, or with two empty rows none has"
_OTHER_LOSS = "the paper of GID has no other loss there"
_OTHER_SOURCE = "responses are those of the head's outputs"
_WITH_L1 = "of a MODE L1, which is not there"

DISTILL: dict[str, Key] = {
    "DISTILL.TEACHER_YAML": obeyed("", "the file of the teacher, whose MODEL.WEIGHTS are the default of --teacher"),
    "DISTILL.STUDENT_YAML": obeyed("", "the file of the student, in the place of --detector"),
    "DISTILL.GID.GI_MODE": obeyed("ALL", "gid.instances: all, pos, semi_pos or neg, in either case"),
    "DISTILL.GID.GI_NMS_THRESH": obeyed(0.3, "gid.nms_iou", least=0),
    "DISTILL.GID.GI_PRE_NMS_TOPK": obeyed(3000, "gid.before_nms", least=1),
    "DISTILL.GID.GI_POST_NMS_TOPK": obeyed(10, "gid.count", least=1),
    "DISTILL.GID.IOU_THRESHOLDS": obeyed([0.3, 0.7], "gid.shares, which tell semi_pos and neg apart; the anchors that "
                                         "learn a response are those of the student's own matcher", least=0),
    "DISTILL.GID.IOU_LABELS": fixed([0, -1, 1], "boxes between the two thresholds are of no kind"),
    "DISTILL.GID.ROI.POOLER_RESOLUTION": obeyed(10, "gid.cells", least=1),
    "DISTILL.GID.ROI.POOLER_SAMPLING_RATIO": obeyed(2, "gid.samples", least=0),
    "DISTILL.GID.ROI.POOLER_TYPE": fixed("ROIAlignV2", "only RoIAlign that is aligned to the pixel is there"),
    "DISTILL.GID.ADAPTER.TE_NAMES": fixed(_MAPS, _ADAPTED, []),
    "DISTILL.GID.ADAPTER.ST_NAMES": fixed(_MAPS, _ADAPTED, []),
    "DISTILL.GID.ADAPTER.SHARE_WEIGHTS": obeyed(True, "gid.shares_adapter"),
    "DISTILL.GID.ADAPTER.KERNEL_SIZE": obeyed(3, "gid.adapter_kernel, an odd number", least=1),
    "DISTILL.LOSS.GT_WEIGHT": fixed(1.0, "the student's own losses count once; the weights of the others, or "
                                    "--distill-weight, say the ratio"),
    "DISTILL.LOSS.FEATURE.TE_NAMES": fixed(_MAPS, _OWN_MAP),
    "DISTILL.LOSS.FEATURE.ST_NAMES": fixed(_MAPS, _OWN_MAP),
    "DISTILL.LOSS.FEATURE.MODE": fixed("L2", _OTHER_LOSS, "l2"),
    "DISTILL.LOSS.FEATURE.SMOOTH_L1_BETA": elsewhere(0.0, _WITH_L1),
    "DISTILL.LOSS.FEATURE.WEIGHT": obeyed(0.005, "gid.feature_weight", least=0),
    "DISTILL.LOSS.RELATION.TE_NAMES": fixed(_MAPS, _OWN_MAP),
    "DISTILL.LOSS.RELATION.ST_NAMES": fixed(_MAPS, _OWN_MAP),
    "DISTILL.LOSS.RELATION.MODE": fixed("IRKD", _OTHER_LOSS, "irkd"),
    "DISTILL.LOSS.RELATION.DIST_MODE": fixed("L2", "distances are Euclidean, as in the paper; L1 never ran there",
                                             "l2"),
    "DISTILL.LOSS.RELATION.SMOOTH_L1_BETA": obeyed(1.0, "gid.relation_beta", least=0),
    "DISTILL.LOSS.RELATION.WEIGHT": obeyed(40.0, "gid.relation_weight", least=0),
    "DISTILL.LOSS.RESPONSE_CLS.TE_NAMES": fixed(["cls_logits"], _OTHER_SOURCE),
    "DISTILL.LOSS.RESPONSE_CLS.ST_NAMES": fixed(["cls_logits"], _OTHER_SOURCE),
    "DISTILL.LOSS.RESPONSE_CLS.MODE": fixed("BCE", _OTHER_LOSS, "bce"),
    "DISTILL.LOSS.RESPONSE_CLS.SMOOTH_L1_BETA": elsewhere(0.0, _WITH_L1),
    "DISTILL.LOSS.RESPONSE_CLS.WEIGHT": obeyed(0.1, "gid.class_weight", least=0),
    "DISTILL.LOSS.RESPONSE_REG.TE_NAMES": fixed(["reg_deltas"], _OTHER_SOURCE),
    "DISTILL.LOSS.RESPONSE_REG.ST_NAMES": fixed(["reg_deltas"], _OTHER_SOURCE),
    "DISTILL.LOSS.RESPONSE_REG.MODE": fixed("L1", _OTHER_LOSS, "l1"),
    "DISTILL.LOSS.RESPONSE_REG.SMOOTH_L1_BETA": obeyed(0.0, "gid.box_beta", least=0),
    "DISTILL.LOSS.RESPONSE_REG.WEIGHT": obeyed(0.1, "gid.box_weight", least=0),
}  # fmt: skip
