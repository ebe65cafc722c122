"""All that is wrong with the masks and keypoints of a document, where the strict readers stop at the first."""

from enum import StrEnum
from typing import Any

import numpy as np

from pipelines.readers.parts.keypoints import points_of, skeleton_of
from pipelines.readers.parts.segmentations import mask_of
from pipelines.readers.rows import Document, Table, place_of
from ssd.errors import InputError
from ssd.keypoints import Skeleton


class Trouble(StrEnum):
    """What can be wrong with them."""

    BROKEN_MASK = "broken masks"
    NO_MASK = "objects without a mask"
    SHORT_POLYGON = "masks' polygons of less than three points"
    BROKEN_POINTS = "broken keypoints"
    OUTSIDE = "keypoints outside the image"
    NO_PLACE = "keypoints that are stated, but at 0, 0"


def findings(document: Document) -> list[tuple[Trouble, str, str]]:
    """(what, the entry's name, the problem) of each entry that states masks or keypoints, if any of the file does."""
    rows = document.rows("annotations")
    sizes_px = {row["id"]: [row["width"], row["height"]] for _, row in document.rows("images") if _is_sized(row)}
    found: list[tuple[Trouble, str, str]] = []
    has_masks = any(row.get("segmentation") for _, row in rows)
    skeleton, label_of = _skeleton(document, found)
    for i, row in rows:
        if type(row.get("image_id")) is not int or row["image_id"] not in sizes_px:
            continue  # what is wrong there is said elsewhere
        size_px = sizes_px[row["image_id"]]
        place = place_of("annotations", i, row)
        if has_masks:
            found += [(trouble, place, text) for trouble, text in _of_mask(row.get("segmentation"), size_px)]
        if skeleton is not None and row.get("category_id") in label_of:
            troubles = _of_points(row.get("keypoints"), skeleton, label_of[row["category_id"]], size_px)
            found += [(trouble, place, text) for trouble, text in troubles]
    return found


def _is_sized(row: dict[str, Any]) -> bool:
    return all(type(row.get(key)) is int for key in ("id", "width", "height"))


def _skeleton(document: Document, found: list[tuple[Trouble, str, str]]) -> tuple[Skeleton | None, dict[Any, int]]:
    """The points that the categories name, if any does, and the labels by id."""
    categories = document.rows("categories")
    labels = {row["id"]: label for label, (_, row) in enumerate(categories, 1) if type(row.get("id")) is int}
    if not any(row.get("keypoints") for _, row in categories):
        return None, labels
    try:
        return skeleton_of(Table(document.tables, "categories", document.file)), labels
    except InputError as error:
        text = str(error).removeprefix(f"{document.file}: ")
        found.append((Trouble.BROKEN_POINTS, document.file.name, text))
        return None, labels


def _of_mask(value: Any, size_px: list[int]) -> list[tuple[Trouble, str]]:
    if value is None or (type(value) is list and not value):
        return [(Trouble.NO_MASK, "")]
    try:
        _, dropped = mask_of(value, size_px)
    except ValueError as error:
        return [(Trouble.BROKEN_MASK, str(error))]
    return [(Trouble.SHORT_POLYGON, f"has {dropped} of them")] if dropped else []


def _of_points(value: Any, skeleton: Skeleton, label: int, size_px: list[int]) -> list[tuple[Trouble, str]]:
    try:
        points = points_of(value, skeleton, label)
    except ValueError as error:
        return [(Trouble.BROKEN_POINTS, str(error))]
    if points is None:
        return []
    is_stated, at_zero = points[:, 2] > 0, (points[:, :2] == 0).all(axis=1)
    is_outside = ((points[:, :2] < 0) | (points[:, :2] > size_px)).any(axis=1)
    found = []
    for trouble, wrong in ((Trouble.NO_PLACE, is_stated & at_zero), (Trouble.OUTSIDE, is_stated & is_outside)):
        if wrong.any():
            found.append((trouble, f"has {', '.join(skeleton.names[point] for point in np.flatnonzero(wrong))}"))
    return found
