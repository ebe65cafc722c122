"""Every key of Detectron's configuration in both dialects, Detectron's and Detectron.pytorch's, in one table."""

from ssd.detectors.detectron.config import model_keys, run_keys
from ssd.detectors.detectron.config.key import Key

KEYS: dict[str, Key] = {
    **model_keys.MODEL,
    **model_keys.RPN,
    **model_keys.FPN,
    **model_keys.FAST_RCNN,
    **model_keys.MRCNN,
    **model_keys.KRCNN,
    **model_keys.RETINANET,
    **run_keys.TRAIN,
    **run_keys.SOLVER,
    **run_keys.TEST,
    **run_keys.OTHER,
}
"""By dotted name."""

SECTIONS = frozenset(name[:place] for name in KEYS for place, letter in enumerate(name) if letter == ".")
"""What keys lie in: "TEST", "TEST.BBOX_AUG"."""

DEPRECATED = frozenset(
    (
        "FINAL_MSG",
        "MODEL.DILATION",
        "ROOT_GPU_ID",
        "RPN.ON",
        "TRAIN.DROPOUT",
        "USE_GPU_NMS",
        "TEST.NUM_TEST_IMAGES",
    )
)
"""Detectron passes over them."""

RENAMED = {
    "MODEL.PS_GRID_SIZE": "RFCN.PS_GRID_SIZE",
    "MODEL.ROI_HEAD": "FAST_RCNN.ROI_BOX_HEAD",
    "MRCNN.MASK_HEAD_NAME": "MRCNN.ROI_MASK_HEAD",
    "TRAIN.DATASET": "TRAIN.DATASETS",
    "TRAIN.PROPOSAL_FILE": "TRAIN.PROPOSAL_FILES",
    "TEST.SCALES": "TEST.SCALE",
    "TEST.DATASET": "TEST.DATASETS",
    "TEST.PROPOSAL_FILE": "TEST.PROPOSAL_FILES",
}
"""What Detectron calls a key that once had another name."""
