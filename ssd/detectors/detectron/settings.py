"""What shapes one of Detectron's R-CNNs and what it sees of an image: plain values, without torch.

Beside each field stands the key of Detectron's configuration that it comes from. The defaults are those of its
e2e_mask_rcnn_R-50-FPN, without the mask head.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from ssd.errors import InputError
from ssd.keypoints import PERSON, Skeleton

_TESTS = re.compile(r"^TEST:.*\n(?: .*\n)*", re.MULTILINE)

NORMS = ("affine", "group")
MAPS = ("C4", "C5", "FPN")
POOLINGS = ("align", "align v2", "max")
"""RoIAlign, the same with its samples half a cell farther left and up, where they belong (detectron2's ROIAlignV2), and
RoIPool."""
RULES = ("detectron", "detectron2")
BOX_HEADS = ("mlp", "convs", "res5")
MASK_HEADS = ("", "v1up4convs", "v1up", "v0up", "v0upshare")
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""How many blocks each of a ResNet's stages has, by its depth."""


@dataclass(frozen=True)
class DetectronSettings:
    """One detector. Sides and sizes in pixels are of resized images."""

    family: ClassVar[str] = "detectron"

    name: str = "e2e_faster_rcnn_R-50-FPN_1x"
    """What a person calls it: a name that Detectron ships, or a file's without its ending."""
    rpn_only: bool = False
    """MODEL.RPN_ONLY: proposals are all that is learned and found, with one class "object"."""
    rules: str = "detectron"
    """One of RULES: whose resizing, anchors, boxes, proposals and enlarging of heat maps these are. Weights that were
    trained by the ones do not fit the others; detectron2's are of its own files only."""

    # MODEL.CONV_BODY, RESNETS
    blocks: tuple[int, ...] = BLOCKS[50]
    """Of the stages res2 to res5."""
    groups: int = 1
    """RESNETS.NUM_GROUPS."""
    width_per_group: int = 64
    """RESNETS.WIDTH_PER_GROUP, of res2; each later stage has twice as many."""
    stride_in_1x1: bool = True
    """RESNETS.STRIDE_1X1: whether a block's first convolution has the stride, or its second."""
    norm: str = "affine"
    """One of NORMS, of the body: a frozen scale and shift (bottleneck_transformation), or group norm that learns
    (bottleneck_gn_transformation)."""
    freeze_at: int = 2
    """RESNETS.FREEZE_AT, or TRAIN.FREEZE_AT: conv1 and the stages up to this one do not learn, of which 2 is
    res2; 0 for none."""
    res5_dilation: int = 1
    """RESNETS.RES5_DILATION: above 1 res5 has no stride."""
    maps: str = "FPN"
    """One of MAPS: what proposals and boxes are found in, of res4 (conv4_body), of res5 (conv5_body), or a pyramid."""

    # GROUP_NORM
    group_norm_groups: int = 32
    group_norm_eps: float = 1e-5

    # FPN
    fpn_channels: int = 256
    """FPN.DIM."""
    fpn_group_norm: bool = False
    """FPN.USE_GN."""
    fpn_zero_lateral: bool = False
    """FPN.ZERO_INIT_LATERAL: whether the lateral convolutions begin as 0."""
    roi_levels: tuple[int, ...] = (2, 3, 4, 5)
    """FPN.ROI_MIN_LEVEL to ROI_MAX_LEVEL, that boxes are looked at in; (2,) of a body that ends in _P2only. Without a
    pyramid it means nothing."""
    roi_canonical_px: int = 224
    """FPN.ROI_CANONICAL_SCALE: the side of a box that is looked at in the level of roi_canonical_level."""
    roi_canonical_level: int = 4
    rpn_levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    """FPN.RPN_MIN_LEVEL to RPN_MAX_LEVEL; (2,) of a body that ends in _P2only. Without a pyramid it means nothing."""

    # RPN
    anchor_sizes_px: tuple[int, ...] = (32, 64, 128, 256, 512)
    """With a pyramid one of each level: FPN.RPN_ANCHOR_START_SIZE times 2 for each level. Without, or where rpn_levels
    has one level only, all of them in each cell: RPN.SIZES."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """RPN.ASPECT_RATIOS, or FPN.RPN_ASPECT_RATIOS: height / width."""
    rpn_positive_iou: float = 0.7
    """TRAIN.RPN_POSITIVE_OVERLAP."""
    rpn_negative_iou: float = 0.3
    """TRAIN.RPN_NEGATIVE_OVERLAP."""
    rpn_samples: int = 256
    """TRAIN.RPN_BATCH_SIZE_PER_IM: how many anchors of an image have a loss."""
    rpn_positive_share: float = 0.5
    """TRAIN.RPN_FG_FRACTION."""
    straddle_px: float = 0.0
    """TRAIN.RPN_STRADDLE_THRESH: how far an anchor that has a loss may reach beyond its image; -1 for any distance."""
    rpn_min_size_px: tuple[float, float] = (0.0, 0.0)
    """TRAIN.RPN_MIN_SIZE, TEST.RPN_MIN_SIZE: the least side of a proposal, in pixels of the image's file."""
    rpn_nms_iou: tuple[float, float] = (0.7, 0.7)
    """TRAIN.RPN_NMS_THRESH, TEST.RPN_NMS_THRESH."""
    rpn_before_nms: tuple[int, int] = (2000, 1000)
    """TRAIN.RPN_PRE_NMS_TOP_N, TEST.RPN_PRE_NMS_TOP_N: of each level."""
    rpn_after_nms: tuple[int, int] = (2000, 1000)
    """TRAIN.RPN_POST_NMS_TOP_N, TEST.RPN_POST_NMS_TOP_N: of each level, and with a pyramid again of all levels: in
    training of all images of a batch together, in evaluation of each image."""
    rpn_collect_scale: float = 1.0
    """FPN.RPN_COLLECT_SCALE of Detectron.pytorch: times how many of them a training batch keeps."""

    # Boxes: FAST_RCNN, MODEL, TRAIN
    box_head: str = "mlp"
    """One of BOX_HEADS: roi_2mlp_head, roi_Xconv1fc_head (and _gn_head), or ResNet_roi_conv5_head, which is
    res5 itself after a body of C4."""
    box_head_group_norm: bool = False
    """roi_Xconv1fc_gn_head."""
    box_head_channels: int = 1024
    """FAST_RCNN.MLP_HEAD_DIM: of the fully connected layers."""
    box_head_conv_channels: int = 256
    """FAST_RCNN.CONV_HEAD_DIM."""
    box_head_convs: int = 4
    """FAST_RCNN.NUM_STACKED_CONVS."""
    class_agnostic_boxes: bool = False
    """MODEL.CLS_AGNOSTIC_BBOX_REG: one box for all classes of an object."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """MODEL.BBOX_REG_WEIGHTS."""
    box_pooling: str = "align"
    """One of POOLINGS, FAST_RCNN.ROI_XFORM_METHOD: RoIAlign or RoIPoolF."""
    box_pooled: int = 7
    """FAST_RCNN.ROI_XFORM_RESOLUTION: cells in each direction."""
    box_sampling: int = 2
    """FAST_RCNN.ROI_XFORM_SAMPLING_RATIO: samples of a cell in each direction; 0 for as many as it has pixels of the
    map."""
    roi_samples: int = 512
    """TRAIN.BATCH_SIZE_PER_IM: how many proposals of an image have a loss."""
    roi_positive_share: float = 0.25
    """TRAIN.FG_FRACTION."""
    roi_positive_iou: float = 0.5
    """TRAIN.FG_THRESH."""
    roi_negative_iou: tuple[float, float] = (0.0, 0.5)
    """TRAIN.BG_THRESH_LO and BG_THRESH_HI: background has an IoU of at least the first and less than the second."""

    # Masks: MODEL.MASK_ON, MRCNN
    mask_head: str = ""
    """One of MASK_HEADS, "" for none: mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs (and _gn), and so on."""
    mask_head_group_norm: bool = False
    """mask_rcnn_fcn_head_v1up4convs_gn."""
    mask_side: int = 28
    """MRCNN.RESOLUTION: cells of a mask in each direction."""
    mask_pooling: str = "align"
    mask_pooled: int = 14
    mask_sampling: int = 2
    """MRCNN.ROI_XFORM_METHOD, ROI_XFORM_RESOLUTION, ROI_XFORM_SAMPLING_RATIO."""
    mask_channels: int = 256
    """MRCNN.DIM_REDUCED."""
    mask_dilation: int = 1
    """MRCNN.DILATION, whose default is 2: of the convolutions of v1up4convs and v1up, and of v0up's res5."""
    mask_upsampling: int = 1
    """MRCNN.UPSAMPLE_RATIO: a fixed bilinear enlargement by it follows the logits; even, or 1 for none."""
    mask_of_classes: bool = True
    """MRCNN.CLS_SPECIFIC_MASK: a mask for each class, or one for all."""
    mask_msra_init: bool = True
    """MRCNN.CONV_INIT MSRAFill, or GaussianFill with a standard deviation of 0.001."""
    mask_loss_weight: float = 1.0
    """MRCNN.WEIGHT_LOSS_MASK."""

    # Keypoints: MODEL.KEYPOINTS_ON, KRCNN
    finds_keypoints: bool = False
    """MODEL.KEYPOINTS_ON, with roi_pose_head_v1convX."""
    keypoint_convs: int = 8
    """KRCNN.NUM_STACKED_CONVS."""
    keypoint_channels: int = 512
    """KRCNN.CONV_HEAD_DIM."""
    keypoint_kernel: int = 3
    """KRCNN.CONV_HEAD_KERNEL."""
    keypoint_deconv_channels: int = 0
    """KRCNN.DECONV_DIM where KRCNN.USE_DECONV: a deconvolution and ReLU before the logits; 0 for none."""
    keypoint_deconv_kernel: int = 4
    """KRCNN.DECONV_KERNEL."""
    keypoint_deconv_output: bool = True
    """KRCNN.USE_DECONV_OUTPUT: whether a deconvolution makes the logits, or a 1 x 1 convolution."""
    keypoint_upsampling: int = 2
    """KRCNN.UP_SCALE: a fixed bilinear enlargement by it follows the logits; even, or 1 for none."""
    keypoint_side: int = 56
    """KRCNN.HEATMAP_SIZE: of what comes out of the head, in each direction."""
    keypoint_pooling: str = "align"
    keypoint_pooled: int = 14
    keypoint_sampling: int = 2
    """KRCNN.ROI_XFORM_METHOD, ROI_XFORM_RESOLUTION, ROI_XFORM_SAMPLING_RATIO."""
    keypoint_msra_init: bool = True
    """KRCNN.CONV_INIT MSRAFill, or GaussianFill with a standard deviation of 0.01."""
    keypoint_loss_weight: float = 1.0
    """KRCNN.LOSS_WEIGHT."""
    keypoint_by_visible: bool = True
    """KRCNN.NORMALIZE_BY_VISIBLE_KEYPOINTS: the loss is a mean over points that are stated, not over all that might
    be."""

    # What is seen of an image
    short_sides_px: tuple[int, ...] = (800,)
    """TRAIN.SCALES: each training image draws one."""
    long_side_px: int = 1333
    """TRAIN.MAX_SIZE."""
    test_short_side_px: int = 800
    """TEST.SCALE."""
    test_long_side_px: int = 1333
    """TEST.MAX_SIZE."""
    flips: bool = True
    """TRAIN.USE_FLIPPED."""
    by_shape: bool = True
    """TRAIN.ASPECT_GROUPING."""
    coarsest_stride: int = 32
    """FPN.COARSEST_STRIDE: a batch's height and width are multiples of it where there is a pyramid."""
    mean_bgr: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    """PIXEL_MEANS, of levels in [0, 255]. Nothing is divided."""

    # The points of the data that it trains on
    keypoints: tuple[str, ...] = ()
    """The names of the points that a Keypoint R-CNN finds."""
    keypoint_links: tuple[tuple[int, int], ...] = ()
    """Pairs of places among them, for pictures."""
    keypoint_labels: tuple[int, ...] = ()
    """The classes that have them, in [1, K); () for all."""

    cfg: str = ""
    """The YAML text that this was translated from, which also says how it is trained; "" for Detectron's defaults."""

    def __post_init__(self) -> None:
        """Raises InputError, a ValueError, for values that make no sense, in one line that names the key."""
        choices = {
            "rules": RULES, "norm": NORMS, "maps": MAPS, "box_head": BOX_HEADS, "mask_head": MASK_HEADS,
            "box_pooling": POOLINGS, "mask_pooling": POOLINGS, "keypoint_pooling": POOLINGS,
        }  # fmt: skip
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                shown = ", ".join(each or '""' for each in allowed)
                raise InputError(f"{self.name}: {field} {getattr(self, field)!r} is none of {shown}")
        if self.long_side_px < max(self.short_sides_px) or self.test_long_side_px < self.test_short_side_px:
            raise InputError(f"{self.name}: MAX_SIZE is less than the scale of the short side; set a larger one")
        if (self.box_head == "res5") != (self.maps == "C4") and not self.rpn_only:
            raise InputError(f"{self.name}: the box head res5 goes with a conv4 body, and no other head does")
        if self.maps == "FPN" and not self.has_one_rpn_level and len(self.anchor_sizes_px) != len(self.rpn_levels):
            raise InputError(
                f"{self.name}: {len(self.anchor_sizes_px)} anchor sizes for {len(self.rpn_levels)} levels of a pyramid"
            )
        if self.mask_head.startswith("v0up") and self.maps != "C4":
            raise InputError(f"{self.name}: the mask head {self.mask_head} is made of res5 and needs a conv4 body")
        if not set(self.rpn_levels) <= {2, 3, 4, 5, 6} or not set(self.roi_levels) <= {2, 3, 4, 5}:
            raise InputError(f"{self.name}: a pyramid has levels 2 to 6 for proposals and 2 to 5 for boxes")
        if self.mask_head and self.mask_side != self.mask_side_out:
            raise InputError(
                f"{self.name}: MRCNN.RESOLUTION is {self.mask_side}, and its head makes masks of {self.mask_side_out}"
            )
        if self.finds_keypoints and self.keypoint_side != self.keypoint_side_out:
            raise InputError(
                f"{self.name}: KRCNN.HEATMAP_SIZE is {self.keypoint_side}, and its head makes heat maps of "
                f"{self.keypoint_side_out}"
            )
        if self.mask_head == "v0upshare" and self.mask_pooled != self.box_pooled:
            raise InputError(f"{self.name}: the mask head v0upshare looks at what the box head pools; set both alike")
        if any(factor != 1 and factor % 2 for factor in (self.mask_upsampling, self.keypoint_upsampling)):
            raise InputError(
                f"{self.name}: a bilinear enlargement by an odd factor has no place to lie; set an even one"
            )
        if self.rpn_only and (self.mask_head or self.finds_keypoints):
            raise InputError(f"{self.name}: MODEL.RPN_ONLY finds neither masks nor keypoints")

    @staticmethod
    def cfg_of_training(cfg: str) -> str:
        """A `cfg` without its section TEST, which decides nothing in training but what other settings say too."""
        return _TESTS.sub("", cfg)

    @property
    def edge_px(self) -> int:
        """By how much right and bottom of a box here are larger than where the rules have it end: Detectron's boxes
        are closed ranges of pixels."""
        return 1 if self.rules == "detectron" else 0

    @property
    def has_pyramid(self) -> bool:
        return self.maps == "FPN"

    @property
    def has_one_rpn_level(self) -> bool:
        """Whether all anchors are of one map, as where there is no pyramid or only its finest map is used."""
        return not self.has_pyramid or len(self.rpn_levels) == 1

    @property
    def divisor(self) -> int:
        """A batch's height and width are multiples of it."""
        return self.coarsest_stride if self.has_pyramid else 1

    @property
    def mask_side_out(self) -> int:
        """Cells of what comes out of the mask head, in each direction."""
        before = -(-self.mask_pooled // max(1, self.mask_pooled // 7)) if self.is_mask_of_res5 else self.mask_pooled
        return 2 * before * self.mask_upsampling

    @property
    def is_mask_of_res5(self) -> bool:
        return self.mask_head in ("v0up", "v0upshare")

    @property
    def keypoint_side_out(self) -> int:
        doublings = int(self.keypoint_deconv_channels > 0) + int(self.keypoint_deconv_output)
        return self.keypoint_pooled * 2**doublings * self.keypoint_upsampling

    @property
    def skeleton(self) -> Skeleton | None:
        """The points of the data, or, while there is none, COCO's; None of a detector that finds none."""
        if not self.finds_keypoints:
            return None
        return Skeleton(self.keypoints, self.keypoint_links, self.keypoint_labels) if self.keypoints else PERSON
