"""Named points of objects, and what their categories call them."""

from array import array
from typing import Any

import numpy as np

from pipelines.object_parts import Keypoints
from pipelines.readers.rows import Table, shown
from ssd.errors import InputError
from ssd.keypoints import Skeleton


def read_keypoints(categories: Table, table: Table, rows: np.ndarray, labels: np.ndarray) -> Keypoints:
    """The points of these rows of 'annotations', whose labels these are.

    Raises BadRows for points that are none, InputError where no category, or no object, has any.
    """
    skeleton = skeleton_of(categories)
    points = np.zeros((len(rows), len(skeleton.names), 3))
    problems: dict[int, str] = {}
    for place, (row, label) in enumerate(zip(rows.tolist(), labels.tolist(), strict=True)):
        try:
            stated = points_of(table.rows[row].get("keypoints"), skeleton, label)
        except ValueError as error:
            problems[row] = str(error)
        else:
            if stated is not None:
                points[place] = stated
    table.refuse(problems)
    if len(rows) and not points[..., 2].any():
        raise InputError(f"{table.file}: none of its objects has 'keypoints'; {_REMEDY}")
    return Keypoints(skeleton, points)


_REMEDY = (
    "name another file, such as COCO's person_keypoints_train2017.json by --train-annotations, or train a detector of "
    "boxes, such as --detector fasterrcnn_resnet50_fpn"
)


def skeleton_of(categories: Table) -> Skeleton:
    """That of the categories, which must be one. Raises InputError where there is none, or more than one."""
    found: dict[int, Skeleton] = {}
    for row, category in enumerate(categories.rows):
        if names := category.get("keypoints"):
            found[row] = Skeleton(_names(categories, row, names), _links(categories, row, len(names)))
    if not found:
        raise InputError(f"{categories.file}: no category has 'keypoints', the names of its points; {_REMEDY}")
    first, *others = found.values()
    if any(other.names != first.names for other in others):
        raise InputError(
            f"{categories.file}: its categories have different 'keypoints', and a detector learns one set of points; "
            "give all that have any the same names"
        )
    return first._replace(labels=tuple(row + 1 for row in found))


def _plain(value: Any) -> Any:
    return value.tolist() if type(value) is array else value


def _names(categories: Table, row: int, names: Any) -> tuple[str, ...]:
    if type(names) is not list or not all(type(name) is str and name.strip() for name in names):
        categories.refuse({row: f"has 'keypoints' {shown(_plain(names))}, which are not a list of names"})
    if len(set(names)) < len(names):
        categories.refuse({row: "has a name twice in 'keypoints'"})
    return tuple(names)


def _links(categories: Table, row: int, count: int) -> tuple[tuple[int, int], ...]:
    """COCO counts points from 1."""
    links = categories.rows[row].get("skeleton") or []
    is_pair = [
        type(link) is list and len(link) == 2 and all(type(end) is int and 1 <= end <= count for end in link)
        for link in (links if type(links) is list else [links])
    ]
    if not all(is_pair):
        categories.refuse({row: f"has a 'skeleton' with something else than pairs of numbers from 1 to {count}"})
    return tuple((first - 1, second - 1) for first, second in links)


def points_of(value: Any, skeleton: Skeleton, label: int) -> np.ndarray | None:
    """P x 3 of one 'keypoints', None for an object without any. Raises ValueError that says what is wrong."""
    if value is None or (type(value) in (list, array) and not len(value)):
        return None
    if type(value) is not array:
        raise ValueError(f"has 'keypoints' {shown(value)}, which is not a list of numbers")
    points = np.asarray(value)
    if not skeleton.is_of(label):
        if points.any():
            raise ValueError("has 'keypoints', but its category does not name any")
        return None
    if len(points) != 3 * len(skeleton.names):
        raise ValueError(f"has {len(points)} numbers in 'keypoints', but its category has {len(skeleton.names)} points")
    points = points.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("has 'keypoints' that are not finite")
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise ValueError("has in 'keypoints' a visibility that is none of 0, 1 and 2")
    return points
