"""What a file of weights tells of the classes and points that its detector finds: how many there are."""

from dataclasses import replace

from ssd.coco_categories import coco_categories
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.keypoints import PERSON

_OF_COCO, _OF_PERSONS = 81, 2


def categories_of(settings: DetectronSettings, num_classes: int) -> list[tuple[int, str]]:
    """(id, name) of the labels 1, 2, ... Names that are not COCO's are numbers."""
    if settings.rpn_only:
        return [(1, "object")]
    if num_classes == _OF_COCO:
        return coco_categories()
    if num_classes == _OF_PERSONS and settings.finds_keypoints:
        return [(1, "person")]
    return [(label, f"class {label}") for label in range(1, num_classes)]


def with_points(settings: DetectronSettings, points: int) -> DetectronSettings:
    """With so many keypoints. Names that are not COCO's are numbers."""
    if not settings.finds_keypoints or points == len(PERSON.names):
        return settings
    names = tuple(f"point {number}" for number in range(1, 1 + points))
    return replace(settings, keypoints=names, keypoint_links=())
