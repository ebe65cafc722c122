"""The keys of Detectron's configuration that say how a model is trained and tested, with what becomes of each.

Facts from facebookresearch/Detectron at 04155a0 (detectron/core/config.py) and roytseng-tw/Detectron.pytorch at 1b1c4ba
(lib/core/config.py).
"""

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed, obeyed, within
from ssd.detectors.tta.rules import KEYPOINT_RULES, MASK_RULES, SOFT_METHODS, VOTE_SCORES

_DATA = "the data is that of --data, --train-split and --val-split"
_PROPOSALS = "proposals come from the network; training and testing on files of them is not there"
_PLACE = "a place or a person of Facebook's machines"
_CAFFE2 = "a matter of Caffe2's memory or threads"
_NEVER_READ = "nothing in Detectron.pytorch reads it in training"
_UNION = "boxes of a network's own proposals can only be joined, as in Detectron"
_EXPECTED = "results stand in results.json; --target ends a run at an AP"

TRAIN: dict[str, Key] = {
    "TRAIN.WEIGHTS": obeyed("", "the default of --backbone-weights, where it is a file that is there"),
    "TRAIN.DATASETS": elsewhere((), _DATA),
    "TRAIN.SCALES": obeyed((600,), "each training image draws one for its short side", least=1),
    "TRAIN.MAX_SIZE": obeyed(1000, "the longest that a training image's side may become", least=1),
    "TRAIN.IMS_PER_BATCH": obeyed(2, "with NUM_GPUS the global batch; a part of --accumulate has so many", least=1),
    "TRAIN.BATCH_SIZE_PER_IM": obeyed(64, "proposals of an image that have a loss", least=1),
    "TRAIN.FG_FRACTION": obeyed(0.25, "the largest share of objects among them", least=0),
    "TRAIN.FG_THRESH": obeyed(0.5, "IoU from which a proposal is an object", least=0),
    "TRAIN.BG_THRESH_HI": obeyed(0.5, "IoU below which a proposal is background", least=0),
    "TRAIN.BG_THRESH_LO": obeyed(0.0, "IoU from which a proposal is background", least=0),
    "TRAIN.USE_FLIPPED": obeyed(True, "half of the training images are mirrored"),
    "TRAIN.BBOX_THRESH": elsewhere(0.5, "of files of proposals; FG_THRESH says which proposals learn a box"),
    "TRAIN.SNAPSHOT_ITERS": elsewhere(80000, "--checkpoint-every says it"),
    "TRAIN.PROPOSAL_FILES": fixed((), _PROPOSALS),
    "TRAIN.ASPECT_GROUPING": obeyed(True, "a batch has either wide images or tall ones"),
    "TRAIN.GENERATE_PROPOSALS_ON_GPU": elsewhere(False, "proposals are made on the model's device"),
    "TRAIN.RPN_POSITIVE_OVERLAP": obeyed(0.7, "IoU from which an anchor is an object", least=0),
    "TRAIN.RPN_NEGATIVE_OVERLAP": obeyed(0.3, "IoU below which an anchor is background", least=0),
    "TRAIN.RPN_FG_FRACTION": obeyed(0.5, "the largest share of objects among an image's anchors", least=0),
    "TRAIN.RPN_BATCH_SIZE_PER_IM": obeyed(256, "anchors of an image that have a loss", least=1),
    "TRAIN.RPN_NMS_THRESH": obeyed(0.7, "IoU from which the weaker of two proposals is dropped", least=0),
    "TRAIN.RPN_PRE_NMS_TOP_N": obeyed(12000, "proposals of a level that enter suppression", least=1),
    "TRAIN.RPN_POST_NMS_TOP_N": obeyed(2000, "proposals of a level, and of a batch, that leave it", least=1),
    "TRAIN.RPN_STRADDLE_THRESH": obeyed(0, "pixels that an anchor with a loss may reach beyond its image, -1 for any"),
    "TRAIN.RPN_MIN_SIZE": obeyed(0, "least side of a proposal, in pixels of the file", least=0),
    "TRAIN.CROWD_FILTER_THRESH": elsewhere(0.7, "of files of proposals; the network's own are not filtered by it"),
    "TRAIN.GT_MIN_AREA": fixed(-1, "boxes of any area train"),
    "TRAIN.FREEZE_CONV_BODY": obeyed(False, "as --freeze-backbone"),
    "TRAIN.AUTO_RESUME": elsewhere(True, "--resume auto says it"),
    "TRAIN.COPY_WEIGHTS": elsewhere(False, "copies a file on Facebook's machines"),
    "TRAIN.FREEZE_AT": obeyed(2, "Detectron's name of RESNETS.FREEZE_AT", 0, 2, 3, 4, 5),
    "TRAIN.ASPECT_CROPPING": fixed(False, "it mixes boxes of one size with pixels of another"),
    **within("TRAIN.ASPECT_CROPPING", {
        "TRAIN.ASPECT_HI": fixed(2, "of ASPECT_CROPPING"),
        "TRAIN.ASPECT_LO": fixed(0.5, "of ASPECT_CROPPING"),
    }),
    "TRAIN.BBOX_NORMALIZE_TARGETS": elsewhere(True, _NEVER_READ),
    "TRAIN.BBOX_NORMALIZE_MEANS": elsewhere((0.0, 0.0, 0.0, 0.0), _NEVER_READ),
    "TRAIN.BBOX_NORMALIZE_STDS": elsewhere((0.1, 0.1, 0.2, 0.2), _NEVER_READ),
    "TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED": elsewhere(False, "deltas are scaled by MODEL.BBOX_REG_WEIGHTS"),
    "TRAIN.BBOX_INSIDE_WEIGHTS": elsewhere((1.0, 1.0, 1.0, 1.0), _NEVER_READ),
}  # fmt: skip

SOLVER: dict[str, Key] = {
    "SOLVER.TYPE": fixed("SGD", "the optimiser is SGD; Detectron's recipes have no other"),
    "SOLVER.BASE_LR": obeyed(0.001, "--learning-rate: the rate at the batch NUM_GPUS x IMS_PER_BATCH", least=0),
    "SOLVER.LR_POLICY": obeyed("step", "--multistep and its factors, or --schedule cosine; exp_decay is not there",
                               "step", "steps_with_decay", "steps_with_lrs", "cosine_decay"),
    "SOLVER.GAMMA": obeyed(0.1, "--multistep-factors", least=0),
    "SOLVER.STEP_SIZE": obeyed(30000, "--multistep of LR_POLICY step", least=1),
    "SOLVER.STEPS": obeyed([], "--multistep of LR_POLICY steps_with_decay and steps_with_lrs", least=0, of=(int,)),
    "SOLVER.LRS": obeyed([], "--multistep-factors of LR_POLICY steps_with_lrs", least=0, of=(int, float)),
    "SOLVER.MAX_ITER": obeyed(40000, "--steps", least=1),
    "SOLVER.MOMENTUM": obeyed(0.9, "--momentum", least=0),
    "SOLVER.WEIGHT_DECAY": obeyed(0.0005, "--weight-decay", least=0),
    "SOLVER.WEIGHT_DECAY_GN": obeyed(0.0, "--norm-decay", least=0),
    "SOLVER.BIAS_DOUBLE_LR": obeyed(True, "--bias-rate 2, else 1"),
    "SOLVER.BIAS_WEIGHT_DECAY": obeyed(False, "--bias-decay as --weight-decay, else 0"),
    "SOLVER.WARM_UP_ITERS": obeyed(500, "--warmup", least=0),
    "SOLVER.WARM_UP_FACTOR": obeyed(1 / 3, "--warmup-factor", least=0),
    "SOLVER.WARM_UP_METHOD": fixed("linear", "a rate that rises at once has no flag"),
    "SOLVER.SCALE_MOMENTUM": elsewhere(True, "it corrects Caffe2's momentum, which has the rate in it, unlike torch's"),
    "SOLVER.SCALE_MOMENTUM_THRESHOLD": elsewhere(1.1, "of SCALE_MOMENTUM"),
    "SOLVER.LOG_LR_CHANGE_THRESHOLD": elsewhere(1.1, "log.jsonl has the rate in each line"),
}  # fmt: skip


_PASSES = "evaluate and predict join the boxes of several passes; --no-tta switches it off"


def _augmented(name: str, switch: str, enabled: str, own: dict[str, Key]) -> dict[str, Key]:
    common = {
        "H_FLIP": obeyed(False, "a mirrored pass at TEST.SCALE"),
        "SCALES": obeyed((), "short sides of further passes", least=1, of=(int,)),
        "MAX_SIZE": obeyed(4000, "the longest that a side may become in them", least=1),
        "SCALE_H_FLIP": obeyed(False, "a mirrored pass at each of SCALES"),
        "SCALE_SIZE_DEP": fixed(False, "as in Detectron, only KPS_AUG chooses passes by an object's size"),
        "ASPECT_RATIOS": obeyed((), "passes at TEST.SCALE of an image whose width was stretched by these", least=0.01,
                                of=(int, float)),
        "ASPECT_RATIO_H_FLIP": obeyed(False, "a mirrored pass at each of ASPECT_RATIOS"),
    }  # fmt: skip
    keys = within(f"TEST.{name}.ENABLED", {f"TEST.{name}.{key}": value for key, value in {**common, **own}.items()})
    return {f"TEST.{name}.ENABLED": obeyed(False, enabled, switch=switch), **keys}


TEST: dict[str, Key] = {
    "TEST.WEIGHTS": elsewhere("", "--checkpoint of evaluate and predict names the file"),
    "TEST.DATASETS": elsewhere((), _DATA),
    "TEST.SCALE": obeyed(600, "the short side of an image in evaluation", least=1),
    "TEST.MAX_SIZE": obeyed(1000, "the longest that its side may become", least=1),
    "TEST.NMS": obeyed(0.3, "--nms-iou", least=0),
    "TEST.BBOX_REG": fixed(True, "boxes that are not refined are the proposals themselves; set MODEL.RPN_ONLY"),
    "TEST.PROPOSAL_FILES": fixed((), _PROPOSALS),
    "TEST.GENERATE_PROPOSALS_ON_GPU": elsewhere(False, "proposals are made on the model's device"),
    "TEST.PROPOSAL_LIMIT": elsewhere(2000, "of files of proposals, which are not read"),
    "TEST.PRECOMPUTED_PROPOSALS": elsewhere(True, "follows from RPN.RPN_ON, as in Detectron"),
    "TEST.RPN_NMS_THRESH": obeyed(0.7, "IoU from which the weaker of two proposals is dropped", least=0),
    "TEST.RPN_PRE_NMS_TOP_N": obeyed(12000, "proposals of a level that enter suppression", least=1),
    "TEST.RPN_POST_NMS_TOP_N": obeyed(2000, "proposals of a level, and of an image, that leave it", least=1),
    "TEST.RPN_MIN_SIZE": obeyed(0, "least side of a proposal, in pixels of the file", least=0),
    "TEST.DETECTIONS_PER_IM": obeyed(100, "--max-per-image", least=1),
    "TEST.SCORE_THRESH": obeyed(0.05, "--score-threshold", least=0),
    "TEST.COMPETITION_MODE": elsewhere(True, "of PASCAL VOC's evaluation by MATLAB; --metrics voc12 says it"),
    "TEST.FORCE_JSON_DATASET_EVAL": elsewhere(False, "evaluation is always COCO's; --metrics adds VOC's"),
    "TEST.CLASS_SPECIFIC_AR": elsewhere(False, "evaluation.json has each class's results"),
    **_augmented("BBOX_AUG", "!MODEL.RPN_ONLY", _PASSES, {
        "SCORE_HEUR": fixed("UNION", _UNION),
        "COORD_HEUR": fixed("UNION", _UNION),
        "AREA_TH_LO": elsewhere(2500, "of SCALE_SIZE_DEP, which Detectron has not for boxes"),
        "AREA_TH_HI": elsewhere(32400, "of SCALE_SIZE_DEP, which Detectron has not for boxes"),
    }),
    **_augmented("MASK_AUG", "MODEL.MASK_ON", "masks are joined of several passes", {
        "HEUR": obeyed("SOFT_AVG", "how: the mean or the maximum of probabilities, or the mean of logits", *MASK_RULES),
        "AREA_TH": elsewhere(32400, "of SCALE_SIZE_DEP, which Detectron has not for masks"),
    }),
    **_augmented("KPS_AUG", "MODEL.KEYPOINTS_ON", "keypoints' maps are joined of several passes", {
        "HEUR": obeyed("HM_AVG", "how: their mean, or their maximum", *KEYPOINT_RULES),
        "SCALE_SIZE_DEP": obeyed(False, "small objects leave out passes that shrink, others those that enlarge"),
        "AREA_TH": obeyed(32400, "pixels of the image's file in a box from which it is not small", least=0,
                          switch="TEST.KPS_AUG.SCALE_SIZE_DEP"),
    }),
    "TEST.SOFT_NMS.ENABLED": obeyed(False, "what overlaps a better box loses score, and falls below 0.0001",
                                    switch="!MODEL.RPN_ONLY"),
    **within("TEST.SOFT_NMS.ENABLED", {
        "TEST.SOFT_NMS.METHOD": obeyed("linear", "by which rule", *SOFT_METHODS),
        "TEST.SOFT_NMS.SIGMA": obeyed(0.5, "of METHOD gaussian", least=1e-6),
    }),
    "TEST.BBOX_VOTE.ENABLED": obeyed(False, "a box that is left becomes the mean of all that overlap it",
                                     switch="!MODEL.RPN_ONLY"),
    **within("TEST.BBOX_VOTE.ENABLED", {
        "TEST.BBOX_VOTE.VOTE_TH": obeyed(0.8, "IoU from which a box votes", least=0),
        "TEST.BBOX_VOTE.SCORING_METHOD": obeyed("ID", "what becomes of its score", *VOTE_SCORES),
        "TEST.BBOX_VOTE.SCORING_METHOD_BETA": obeyed(1.0, "of some of them; Detectron has 1 whatever it says",
                                                     least=1e-6),
    }),
}  # fmt: skip

OTHER: dict[str, Key] = {
    "NUM_GPUS": obeyed(1, "with TRAIN.IMS_PER_BATCH the batch that rate and steps are for; the ranks are torchrun's",
                       least=1),
    "USE_NCCL": elsewhere(False, _CAFFE2),
    "CUDA": elsewhere(False, "--device says it"),
    "DATA_LOADER.NUM_THREADS": obeyed(4, "--num-workers", least=0),
    "DATA_LOADER.MINIBATCH_QUEUE_SIZE": elsewhere(64, _CAFFE2),
    "DATA_LOADER.BLOBS_QUEUE_CAPACITY": elsewhere(8, _CAFFE2),
    "DEDUP_BOXES": elsewhere(0.0625, "of Fast R-CNN on files of proposals"),
    "RNG_SEED": elsewhere(3, "--seed says it; Detectron.pytorch never reads it"),
    "EPS": elsewhere(1e-14, "nothing reads it"),
    "ROOT_DIR": elsewhere("", _PLACE),
    "OUTPUT_DIR": elsewhere("", "--output names the run's folder"),
    "DATA_DIR": elsewhere("", _DATA),
    "MATLAB": elsewhere("matlab", "of PASCAL VOC's evaluation by MATLAB"),
    "MEMONGER": elsewhere(True, _CAFFE2),
    "MEMONGER_SHARE_ACTIVATIONS": elsewhere(False, _CAFFE2),
    "VIS": elsewhere(False, "predict draws"),
    "VIS_TH": elsewhere(0.9, "predict --score"),
    "DEBUG": fixed(False, "it trains on the first 100 images only; pass a split of them"),
    "EXPECTED_RESULTS": elsewhere([], _EXPECTED),
    "EXPECTED_RESULTS_RTOL": elsewhere(0.1, _EXPECTED),
    "EXPECTED_RESULTS_ATOL": elsewhere(0.005, _EXPECTED),
    "EXPECTED_RESULTS_SIGMA_TOL": elsewhere(4, _EXPECTED),
    "EXPECTED_RESULTS_EMAIL": elsewhere("", _PLACE),
    "DOWNLOAD_CACHE": elsewhere("", "files that are downloaded lie in torch's hub folder"),
    "CLUSTER.ON_CLUSTER": elsewhere(False, _PLACE),
    "POOLING_MODE": elsewhere("crop", _NEVER_READ),
    "POOLING_SIZE": elsewhere(7, _NEVER_READ),
    "CROP_RESIZE_WITH_MAX_POOL": elsewhere(True, "of POOLING_MODE crop, which is never read in training"),
    "PYTORCH_VERSION_LESS_THAN_040": elsewhere(False, "Detectron.pytorch finds it out itself"),
}  # fmt: skip
