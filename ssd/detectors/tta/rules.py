"""The rules of test-time augmentation by name, how boxes suppress each other, and what is published: without torch.

The rules and their defaults are those of facebookresearch/Detectron at 04155a0 (detectron/core/test.py and config.py).
"""

from typing import NamedTuple

SOFT_METHODS = ("linear", "gaussian", "hard")
VOTE_SCORES = ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM")
MASK_RULES = ("SOFT_AVG", "SOFT_MAX", "LOGIT_AVG")
KEYPOINT_RULES = ("HM_AVG", "HM_MAX")


class Suppression(NamedTuple):
    """What happens to the boxes of a class beside plain non-maximum suppression.

    soft: one of SOFT_METHODS: a box that overlaps a better one loses score instead of falling; "" is that it falls.
    sigma: of "gaussian". votes: whether a box that stays becomes the mean of all that overlap it by vote_iou or more.
    vote_score: one of VOTE_SCORES, what its score becomes. vote_beta: of TEMP_AVG, GENERALIZED_AVG and QUASI_SUM.
    """

    soft: str = ""
    sigma: float = 0.5
    votes: bool = False
    vote_iou: float = 0.8
    vote_score: str = "ID"
    vote_beta: float = 1.0

    @property
    def is_plain(self) -> bool:
        return not self.soft and not self.votes


# Detectron's configs/test_time_aug/e2e_mask_rcnn_R-50-FPN_2x.yaml and keypoint_rcnn_R-50-FPN_1x.yaml, and its X-152.
# They are for a short side of 800, and become as much longer or shorter as that is here.
PUBLISHED_SHORT_SIDES_PX = (400, 500, 600, 700, 900, 1000, 1100, 1200)
PUBLISHED_LONG_SIDE_PX = 2000
PUBLISHED_FOR_PX = 800
PUBLISHED_VOTE_IOU = 0.9
PUBLISHED_KEYPOINT_AREA_PX = 150.0**2


def published_sides_px(short_side_px: int) -> tuple[tuple[int, ...], int]:
    """The published short sides and longest side, for a detector that is evaluated at that short side."""
    factor = short_side_px / PUBLISHED_FOR_PX
    sides_px = (max(1, round(factor * side)) for side in PUBLISHED_SHORT_SIDES_PX)
    return tuple(dict.fromkeys(side for side in sides_px if side != short_side_px)), round(
        factor * PUBLISHED_LONG_SIDE_PX
    )
