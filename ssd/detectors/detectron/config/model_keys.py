"""The keys of Detectron's configuration that shape a model, with what becomes of each.

Facts from facebookresearch/Detectron at 04155a0 (detectron/core/config.py) and roytseng-tw/Detectron.pytorch at 1b1c4ba
(lib/core/config.py).
"""

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed, obeyed, within

_POOLING = "how a region's cells are taken from a map"
_CELLS = "cells of a region in each direction"
_SAMPLING = "samples of a cell in each direction, 0 for as many as it has pixels of the map"
POOLINGS = ("RoIAlign", "RoIPoolF")

MODEL: dict[str, Key] = {
    "MODEL.TYPE": elsewhere("", "FASTER_RCNN, RPN_ONLY, MASK_ON and KEYPOINTS_ON say what is built"),
    "MODEL.CONV_BODY": obeyed("", "the body: ResNet.ResNet{50,101}_conv4_body, ResNet.ResNet{50,101,152}_conv5_body, "
                              "FPN.fpn_ResNet{50,101,152}_conv5_body or _conv5_P2only_body; with add_ as well"),
    "MODEL.NUM_CLASSES": elsewhere(-1, "the classes are those of the data, or of a checkpoint"),
    "MODEL.CLS_AGNOSTIC_BBOX_REG": obeyed(False, "one box for all classes of an object"),
    "MODEL.BBOX_REG_WEIGHTS": obeyed((10.0, 10.0, 5.0, 5.0), "what box deltas are multiplied by", least=1e-6),
    "MODEL.FASTER_RCNN": obeyed(False, "True, or RPN_ONLY True: Fast R-CNN on files of proposals is not there"),
    "MODEL.MASK_ON": obeyed(False, "a mask head"),
    "MODEL.KEYPOINTS_ON": obeyed(False, "a keypoint head"),
    "MODEL.RPN_ONLY": obeyed(False, "proposals are all that is learned and found"),
    "MODEL.EXECUTION_TYPE": elsewhere("dag", "a way of Caffe2 to run a network"),
    "MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": obeyed(True, "False: --backbone-weights none is the default"),
    "MODEL.SHARE_RES5": elsewhere(False, "follows from MRCNN.ROI_MASK_HEAD"),
    "MODEL.UNSUPERVISED_POSE": fixed(False, "nothing in Detectron.pytorch reads it"),
    "RESNETS.NUM_GROUPS": obeyed(1, "groups of the 3 x 3 convolutions", least=1),
    "RESNETS.WIDTH_PER_GROUP": obeyed(64, "channels of each group in res2", least=1),
    "RESNETS.STRIDE_1X1": obeyed(True, "whether a block's first convolution has the stride, or its second"),
    "RESNETS.TRANS_FUNC": obeyed("bottleneck_transformation", "the norm of the body, frozen affine or group norm",
                                 "bottleneck_transformation", "bottleneck_gn_transformation"),
    "RESNETS.STEM_FUNC": obeyed("basic_bn_stem", "the same norm as TRANS_FUNC", "basic_bn_stem", "basic_gn_stem"),
    "RESNETS.SHORTCUT_FUNC": obeyed("basic_bn_shortcut", "the same norm as TRANS_FUNC",
                                    "basic_bn_shortcut", "basic_gn_shortcut"),
    "RESNETS.RES5_DILATION": obeyed(1, "of res5's 3 x 3 convolutions; above 1 it has no stride", least=1),
    "RESNETS.FREEZE_AT": obeyed(2, "conv1 and the stages up to this one do not learn, 0 for none", 0, 2, 3, 4, 5),
    "RESNETS.USE_GN": obeyed(False, "says what TRANS_FUNC says, and may not say otherwise"),
    "RESNETS.IMAGENET_PRETRAINED_WEIGHTS": obeyed("", "the default of --backbone-weights, where such a file is there"),
    "GROUP_NORM.DIM_PER_GP": fixed(-1, "groups are told by their number, NUM_GROUPS"),
    "GROUP_NORM.NUM_GROUPS": obeyed(32, "groups of each group norm", least=1),
    "GROUP_NORM.EPSILON": obeyed(1e-5, "what group norm adds to a variance", least=0),
    "PIXEL_MEANS": obeyed((102.9801, 115.9465, 122.7717), "subtracted from B, G and R", least=0),
    "BBOX_XFORM_CLIP": fixed(4.135166556742356, "the largest log of a side's factor, log(1000 / 16), is a constant"),
}  # fmt: skip

RPN: dict[str, Key] = {
    "RPN.RPN_ON": elsewhere(False, "follows from MODEL.FASTER_RCNN and MODEL.RPN_ONLY, as in Detectron"),
    "RPN.SIZES": obeyed((64, 128, 256, 512), "sides of anchors in pixels, where one map has all", least=1,
                        switch="!FPN.MULTILEVEL_RPN"),
    "RPN.STRIDE": obeyed(16, "has to be the stride of the map that anchors lie on", least=1,
                         switch="!FPN.MULTILEVEL_RPN"),
    "RPN.ASPECT_RATIOS": obeyed((0.5, 1, 2), "height / width of anchors", least=1e-3, of=(int, float),
                                switch="!FPN.MULTILEVEL_RPN"),
    "RPN.OUT_DIM_AS_IN_DIM": fixed(True, "the hidden layer has the channels of its map"),
    "RPN.OUT_DIM": fixed(512, "of OUT_DIM_AS_IN_DIM", switch="!RPN.OUT_DIM_AS_IN_DIM"),
    "RPN.CLS_ACTIVATION": fixed("sigmoid", "an anchor has one logit, as in Detectron"),
}  # fmt: skip

FPN: dict[str, Key] = {
    "FPN.FPN_ON": obeyed(False, "has to be True with an FPN body, and False with any other"),
    **within("FPN.FPN_ON", {
        "FPN.DIM": obeyed(256, "channels of the pyramid", least=1),
        "FPN.ZERO_INIT_LATERAL": obeyed(False, "lateral convolutions begin as 0"),
        "FPN.COARSEST_STRIDE": obeyed(32, "a batch's height and width are multiples of it", least=1),
        "FPN.MULTILEVEL_ROIS": obeyed(False, "boxes are looked at in the level of their size; False: _P2only bodies"),
        "FPN.ROI_CANONICAL_SCALE": obeyed(224, "side of a box that is looked at in ROI_CANONICAL_LEVEL", least=1),
        "FPN.ROI_CANONICAL_LEVEL": obeyed(4, "level of a box with side ROI_CANONICAL_SCALE", least=2),
        "FPN.ROI_MAX_LEVEL": obeyed(5, "the coarsest level that boxes are looked at in", 2, 3, 4, 5),
        "FPN.ROI_MIN_LEVEL": obeyed(2, "the finest level that boxes are looked at in", 2, 3, 4, 5),
        "FPN.MULTILEVEL_RPN": obeyed(False, "each level has anchors of one size; False: _P2only bodies"),
        "FPN.RPN_MAX_LEVEL": obeyed(6, "the coarsest level with anchors", 2, 3, 4, 5, 6),
        "FPN.RPN_MIN_LEVEL": obeyed(2, "the finest level with anchors", 2, 3, 4, 5, 6),
        "FPN.RPN_ASPECT_RATIOS": obeyed((0.5, 1, 2), "height / width of anchors", least=1e-3, of=(int, float)),
        "FPN.RPN_ANCHOR_START_SIZE": obeyed(32, "side of anchors on the finest level, doubled on each next", least=1),
        "FPN.EXTRA_CONV_LEVELS": fixed(False, "P6 and P7 by convolutions are RetinaNet's; P6 is every other cell"),
        "FPN.USE_GN": obeyed(False, "group norm in the pyramid"),
        "FPN.RPN_COLLECT_SCALE": obeyed(1, "how many of RPN_POST_NMS_TOP_N a training batch keeps is multiplied by it",
                                        least=1e-6, of=(int, float)),
    }),
}  # fmt: skip

FAST_RCNN: dict[str, Key] = within("!MODEL.RPN_ONLY", {
    "FAST_RCNN.ROI_BOX_HEAD": obeyed("", "fast_rcnn_heads.roi_2mlp_head, roi_Xconv1fc_head, roi_Xconv1fc_gn_head or "
                                     "ResNet.ResNet_roi_conv5_head; with add_ as well, and head_builder.roi_2mlp_head"),
    "FAST_RCNN.MLP_HEAD_DIM": obeyed(1024, "channels of fully connected layers", least=1),
    "FAST_RCNN.CONV_HEAD_DIM": obeyed(256, "channels of the convolutions of roi_Xconv1fc_head", least=1),
    "FAST_RCNN.NUM_STACKED_CONVS": obeyed(4, "convolutions of roi_Xconv1fc_head", least=1),
    "FAST_RCNN.ROI_XFORM_METHOD": obeyed("RoIPoolF", _POOLING, *POOLINGS),
    "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": obeyed(0, _SAMPLING, least=0),
    "FAST_RCNN.ROI_XFORM_RESOLUTION": obeyed(14, _CELLS, least=1),
})  # fmt: skip

MRCNN: dict[str, Key] = within("MODEL.MASK_ON", {
    "MRCNN.ROI_MASK_HEAD": obeyed("", "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs, v1up4convs_gn, v1up, v0up or "
                                  "v0upshare; also with ResNet_ before it"),
    "MRCNN.RESOLUTION": obeyed(14, "cells of a mask in each direction", least=1),
    "MRCNN.ROI_XFORM_METHOD": obeyed("RoIAlign", _POOLING, *POOLINGS),
    "MRCNN.ROI_XFORM_RESOLUTION": obeyed(7, _CELLS, least=1),
    "MRCNN.ROI_XFORM_SAMPLING_RATIO": obeyed(0, _SAMPLING, least=0),
    "MRCNN.DIM_REDUCED": obeyed(256, "channels of the head", least=1),
    "MRCNN.DILATION": obeyed(2, "of the head's 3 x 3 convolutions", least=1),
    "MRCNN.UPSAMPLE_RATIO": obeyed(1, "enlarges logits bilinearly", 1, 2, 4, 8),
    "MRCNN.USE_FC_OUTPUT": fixed(False, "a fully connected layer for masks is not there"),
    "MRCNN.CONV_INIT": obeyed("GaussianFill", "how the head's weights begin", "GaussianFill", "MSRAFill"),
    "MRCNN.CLS_SPECIFIC_MASK": obeyed(True, "a mask for each class, or one for all"),
    "MRCNN.WEIGHT_LOSS_MASK": obeyed(1.0, "factor of the loss", least=0),
    "MRCNN.THRESH_BINARIZE": fixed(0.5, "a pixel belongs to a mask above a probability of 0.5"),
    "MRCNN.MEMORY_EFFICIENT_LOSS": elsewhere(True, "a way to compute the same loss"),
})  # fmt: skip

KRCNN: dict[str, Key] = within("MODEL.KEYPOINTS_ON", {
    "KRCNN.ROI_KEYPOINTS_HEAD": obeyed("", "keypoint_rcnn_heads.roi_pose_head_v1convX, with add_ as well"),
    "KRCNN.HEATMAP_SIZE": obeyed(-1, "cells of a heat map in each direction, which the head has to come to"),
    "KRCNN.UP_SCALE": obeyed(-1, "enlarges logits bilinearly, where above 1", -1, 1, 2, 4, 8),
    "KRCNN.USE_DECONV": obeyed(False, "a deconvolution before the logits"),
    "KRCNN.DECONV_DIM": obeyed(256, "its channels", least=1, switch="KRCNN.USE_DECONV"),
    "KRCNN.USE_DECONV_OUTPUT": obeyed(False, "a deconvolution makes the logits"),
    "KRCNN.DILATION": fixed(1, "the head's convolutions have no dilation"),
    "KRCNN.DECONV_KERNEL": obeyed(4, "side of both deconvolutions' kernels", 2, 4, 6, 8),
    "KRCNN.NUM_KEYPOINTS": elsewhere(-1, "the points are those of the data, or of a checkpoint"),
    "KRCNN.NUM_STACKED_CONVS": obeyed(8, "convolutions of the head", least=1),
    "KRCNN.CONV_HEAD_DIM": obeyed(256, "their channels", least=1),
    "KRCNN.CONV_HEAD_KERNEL": obeyed(3, "side of their kernels", 1, 3, 5, 7),
    "KRCNN.CONV_INIT": obeyed("GaussianFill", "how the head's weights begin", "GaussianFill", "MSRAFill"),
    "KRCNN.NMS_OKS": fixed(False, "boxes suppress each other, not points"),
    "KRCNN.KEYPOINT_CONFIDENCE": fixed("bbox", "the score of a person is that of its box"),
    "KRCNN.ROI_XFORM_METHOD": obeyed("RoIAlign", _POOLING, *POOLINGS),
    "KRCNN.ROI_XFORM_RESOLUTION": obeyed(7, _CELLS, least=1),
    "KRCNN.ROI_XFORM_SAMPLING_RATIO": obeyed(0, _SAMPLING, least=0),
    "KRCNN.MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH": elsewhere(
        20, "a batch without visible points has a keypoint loss of 0, as in Detectron's training of all parts at once"),
    "KRCNN.INFERENCE_MIN_SIZE": fixed(0, "a heat map is enlarged to its box"),
    "KRCNN.LOSS_WEIGHT": obeyed(1.0, "factor of the loss", least=0),
    "KRCNN.NORMALIZE_BY_VISIBLE_KEYPOINTS": obeyed(True, "what the loss is divided by"),
})  # fmt: skip

_RETINANET = "RetinaNet by Detectron's configuration is not there; pass --detector retinanet_resnet50_fpn"
RETINANET: dict[str, Key] = {
    "RETINANET.RETINANET_ON": fixed(False, _RETINANET),
    **within("RETINANET.RETINANET_ON", {
        "RETINANET.ASPECT_RATIOS": fixed((0.5, 1.0, 2.0), _RETINANET),
        "RETINANET.SCALES_PER_OCTAVE": fixed(3, _RETINANET),
        "RETINANET.ANCHOR_SCALE": fixed(4, _RETINANET),
        "RETINANET.NUM_CONVS": fixed(4, _RETINANET),
        "RETINANET.BBOX_REG_WEIGHT": fixed(1.0, _RETINANET),
        "RETINANET.BBOX_REG_BETA": fixed(0.11, _RETINANET),
        "RETINANET.PRE_NMS_TOP_N": fixed(1000, _RETINANET),
        "RETINANET.POSITIVE_OVERLAP": fixed(0.5, _RETINANET),
        "RETINANET.NEGATIVE_OVERLAP": fixed(0.4, _RETINANET),
        "RETINANET.LOSS_ALPHA": fixed(0.25, _RETINANET),
        "RETINANET.LOSS_GAMMA": fixed(2.0, _RETINANET),
        "RETINANET.PRIOR_PROB": fixed(0.01, _RETINANET),
        "RETINANET.SHARE_CLS_BBOX_TOWER": fixed(False, _RETINANET),
        "RETINANET.CLASS_SPECIFIC_BBOX": fixed(False, _RETINANET),
        "RETINANET.SOFTMAX": fixed(False, _RETINANET),
        "RETINANET.INFERENCE_TH": fixed(0.05, _RETINANET),
    }),
    "RFCN.PS_GRID_SIZE": fixed(3, "R-FCN is not there"),
}  # fmt: skip
