"""Named points of objects: what they are called, how they are linked, and which are each other's mirror image."""

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Skeleton(NamedTuple):
    """The points that the objects of some classes have. P points.

    names: P of them, in the order of all arrays. links: pairs of places among them, for pictures. labels: the classes
    in [1, K) that have them, () for all.
    """

    names: tuple[str, ...]
    links: tuple[tuple[int, int], ...] = ()
    labels: tuple[int, ...] = ()

    def is_of(self, label: int) -> bool:
        return not self.labels or label in self.labels

    def are_of(self, labels: "Tensor") -> "Tensor":
        """is_of each label, as bool; of label 0, which is no object's, False."""
        if not self.labels:
            return labels > 0
        are = labels == self.labels[0]
        for label in self.labels[1:]:
            are = are | (labels == label)
        return are


PERSON = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    links=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip
"""COCO's person, as person_keypoints_train2017.json states it."""

# pycocotools' kpt_oks_sigmas: how far annotators of COCO are from each other at each point, in sides of an object.
_PERSON_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
_OTHER_SIGMA = round(sum(_PERSON_SIGMAS) / len(_PERSON_SIGMAS), 3)
"""For points of which no study says how far annotators are from each other: COCO's mean."""


def sigmas_of(names: tuple[str, ...]) -> tuple[float, ...]:
    """Of each point the standard deviation that COCO's object keypoint similarity allows, in sides of an object."""
    return _PERSON_SIGMAS if names == PERSON.names else (_OTHER_SIGMA,) * len(names)


_SIDE = re.compile(r"left|right", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


def mirrored(names: tuple[str, ...]) -> list[int]:
    """Which point each one becomes in a mirror image: left_x and right_x are each other, others stay themselves."""
    place = {name: number for number, name in enumerate(names)}
    others = (_SIDE.sub(lambda side: _OTHER_SIDE.get(side[0], side[0]), name, count=1) for name in names)
    return [place.get(other, number) for number, other in enumerate(others)]
