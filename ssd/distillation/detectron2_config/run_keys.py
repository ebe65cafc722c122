"""detectron2's keys of data, training and evaluation, with what becomes of each in the file of a run.

Facts from facebookresearch/detectron2 at v0.4.1 (detectron2/config/defaults.py).
"""

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed, obeyed

_DATA = "--data names the folder, and its splits are found by their names or --train-split and --val-split"
_NO_PROPOSALS = "no RetinaNet reads files of proposals"
_TTA = "a run evaluates in one pass; evaluate --tta does it in several"
_NO_CROP = "of INPUT.CROP.ENABLED, which is not there"
_CLIPPING = "of CLIP_GRADIENTS.ENABLED, which is not there"

RUN: dict[str, Key] = {
    "VERSION": fixed(2, "only configurations of version 2 are read"),
    "INPUT.MIN_SIZE_TRAIN": obeyed((800,), "--min-size; one of them has to be MIN_SIZE_TEST", least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": fixed("choice", "an image draws one of several sizes, not one between two"),
    "INPUT.MAX_SIZE_TRAIN": obeyed(1333, "--max-size", least=1),
    "INPUT.MIN_SIZE_TEST": obeyed(800, "the last of --min-size, which evaluation takes", least=1),
    "INPUT.MAX_SIZE_TEST": obeyed(1333, "has to be MAX_SIZE_TRAIN", least=1),
    "INPUT.RANDOM_FLIP": fixed("horizontal", "half of the training images are mirrored"),
    "INPUT.CROP.ENABLED": fixed(False, "training images are not cut"),
    "INPUT.CROP.TYPE": elsewhere("relative_range", _NO_CROP),
    "INPUT.CROP.SIZE": elsewhere([0.9, 0.9], _NO_CROP),
    "INPUT.FORMAT": fixed("BGR", "weights for blue, green and red are converted when they are read"),
    "INPUT.MASK_FORMAT": elsewhere("polygon", "no RetinaNet learns masks"),
    "DATASETS.TRAIN": elsewhere((), _DATA),
    "DATASETS.TEST": elsewhere((), _DATA),
    "DATASETS.PROPOSAL_FILES_TRAIN": fixed((), _NO_PROPOSALS),
    "DATASETS.PROPOSAL_FILES_TEST": fixed((), _NO_PROPOSALS),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": elsewhere(2000, _NO_PROPOSALS),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": elsewhere(1000, _NO_PROPOSALS),
    "DATALOADER.NUM_WORKERS": obeyed(4, "--num-workers", least=0),
    "DATALOADER.ASPECT_RATIO_GROUPING": fixed(True, "a batch has wide images only, or tall ones"),
    "DATALOADER.SAMPLER_TRAIN": fixed("TrainingSampler", "an epoch has each image once"),
    "DATALOADER.REPEAT_THRESHOLD": elsewhere(0.0, "of RepeatFactorTrainingSampler, which is not there"),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": fixed(True, "images without boxes do not train"),
    "SOLVER.LR_SCHEDULER_NAME": fixed("WarmupMultiStepLR", "detectron2's half cosine includes the warm-up; "
                                      "leave this key out and pass --schedule cosine, which begins after it"),
    "SOLVER.MAX_ITER": obeyed(40000, "--steps", least=1),
    "SOLVER.BASE_LR": obeyed(0.001, "--learning-rate: the rate at the batch IMS_PER_BATCH", least=0),
    "SOLVER.MOMENTUM": obeyed(0.9, "--momentum", least=0, most=0.999),
    "SOLVER.NESTEROV": fixed(False, "SGD's momentum is the plain one"),
    "SOLVER.WEIGHT_DECAY": obeyed(0.0001, "--weight-decay", least=0),
    "SOLVER.WEIGHT_DECAY_NORM": obeyed(0.0, "--norm-decay", least=0),
    "SOLVER.WEIGHT_DECAY_BIAS": obeyed(0.0001, "--bias-decay", least=0),
    "SOLVER.BIAS_LR_FACTOR": obeyed(1.0, "--bias-rate", least=0),
    "SOLVER.GAMMA": obeyed(0.1, "--multistep-factors", least=0),
    "SOLVER.STEPS": obeyed((30000,), "--multistep; those from MAX_ITER on say nothing; []: the rate never falls",
                           least=1, may_be_empty=True),
    "SOLVER.WARMUP_FACTOR": obeyed(0.001, "--warmup-factor", least=0, most=1),
    "SOLVER.WARMUP_ITERS": obeyed(1000, "--warmup", least=0),
    "SOLVER.WARMUP_METHOD": fixed("linear", "a rate that rises at once has no flag"),
    "SOLVER.CHECKPOINT_PERIOD": obeyed(5000, "--checkpoint-every", least=1),
    "SOLVER.IMS_PER_BATCH": obeyed(16, "--batch-size times the ranks; at another batch, as many steps as make the same "
                                   "number of images", least=1),
    "SOLVER.REFERENCE_WORLD_SIZE": elsewhere(0, "the batch of all ranks stays IMS_PER_BATCH unless --batch-size says "
                                             "another, which rate and steps then follow"),
    "SOLVER.CLIP_GRADIENTS.ENABLED": fixed(False, "it shortens each parameter's gradient by itself; --clip-norm "
                                           "shortens all together"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": elsewhere("value", _CLIPPING),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": elsewhere(1.0, _CLIPPING),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": elsewhere(2.0, _CLIPPING),
    "SOLVER.AMP.ENABLED": obeyed(False, "--fp16"),
    "TEST.EXPECTED_RESULTS": elsewhere([], "--target ends a run at an AP"),
    "TEST.EVAL_PERIOD": obeyed(0, "--evaluation: each so many steps", least=0),
    "TEST.KEYPOINT_OKS_SIGMAS": elsewhere([], "no RetinaNet finds keypoints"),
    "TEST.DETECTIONS_PER_IMAGE": obeyed(100, "--max-per-image", least=1),
    "TEST.AUG.ENABLED": fixed(False, _TTA),
    "TEST.AUG.MIN_SIZES": elsewhere((400, 500, 600, 700, 800, 900, 1000, 1100, 1200), _TTA),
    "TEST.AUG.MAX_SIZE": elsewhere(4000, _TTA),
    "TEST.AUG.FLIP": elsewhere(True, _TTA),
    "TEST.PRECISE_BN.ENABLED": fixed(False, "statistics of batch norm are those of training"),
    "TEST.PRECISE_BN.NUM_ITER": elsewhere(200, "of PRECISE_BN.ENABLED, which is not there"),
    "OUTPUT_DIR": obeyed("./output", "--output, where it is stated"),
    "SEED": obeyed(-1, "--seed; below 0 one is drawn"),
    "CUDNN_BENCHMARK": elsewhere(False, "convolutions are chosen by cuDNN's rules"),
    "VIS_PERIOD": elsewhere(0, "plots/instances.jpg is drawn once an epoch"),
    "GLOBAL.HACK": elsewhere(1.0, "nothing here reads it"),
}  # fmt: skip
