"""Categories of two splits, or of a split and a checkpoint: the same where ids and names agree, in whatever order."""

from collections.abc import Sequence
from dataclasses import replace
from unicodedata import normalize

import numpy as np

from pipelines.annotations import Annotations, Category
from ssd.errors import InputError

_MOST_NAMED = 5


def _key(category: Category) -> tuple[int, str]:
    """What is equal of the same category: an accent is a part of its letter in some files, and behind it in others."""
    return category.id, normalize("NFC", category.name)


def with_categories_of(train: Annotations, val: Annotations) -> Annotations:
    """val with the categories of train, in train's order. Those that val has more must have no boxes.

    Raises InputError that names what differs.
    """
    if train.keypoints is not None:
        require_points(train.keypoints.skeleton.names, val, train.file.name)
    if train.categories == val.categories:
        return val
    if differences := differences_of(train.categories, val, train.file.name):
        shown = "; ".join(differences[:_MOST_NAMED])
        more = f"; and {len(differences) - _MOST_NAMED} more" if len(differences) > _MOST_NAMED else ""
        raise InputError(
            f"{val.file}: its categories are not those of {train.file}: {shown}{more}; make them equal by id and name"
        )
    return relabelled(val, train.categories)


def differences_of(categories: Sequence[Category], split: Annotations, other: str) -> list[str]:
    """What hinders that a split's boxes are of these categories, such as "'cat' has id 1 and in train.json id 2".

    other: what these categories are those of.
    """
    name_of = {category.id: category.name for category in categories}
    id_of = {category.name: category.id for category in categories}
    known = set(map(_key, categories))
    has_boxes = np.bincount(split.labels, minlength=split.num_classes)[1:] > 0
    found = []
    for category, boxes in zip(split.categories, has_boxes.tolist(), strict=True):
        if _key(category) in known:
            continue
        if category.name in id_of:
            found.append(f"{category.name!r} has id {category.id} here and {id_of[category.name]} in {other}")
        elif category.id in name_of:
            found.append(f"id {category.id} is {category.name!r} here and {name_of[category.id]!r} in {other}")
        elif boxes:
            found.append(f"{category.name!r} (id {category.id}) has boxes here and is not in {other}")
    return found


def relabelled(split: Annotations, categories: tuple[Category, ...]) -> Annotations:
    """The split with these categories, which are those of its boxes at least."""
    label_of = {_key(category): label for label, category in enumerate(categories, 1)}
    labels = np.array([0, *(label_of.get(_key(category), 0) for category in split.categories)], dtype=np.int64)
    split = replace(split, categories=categories, labels=labels[split.labels])
    if split.keypoints is None:
        return split
    skeleton = split.keypoints.skeleton
    skeleton = skeleton._replace(labels=tuple(sorted(set(labels[list(skeleton.labels)].tolist()) - {0})))
    return replace(split, keypoints=replace(split.keypoints, skeleton=skeleton))


def require_points(names: Sequence[str], split: Annotations, other: str) -> None:
    """Raises InputError unless the split's keypoints, if it has any, are these. other: what they are those of."""
    if split.keypoints is not None and split.keypoints.skeleton.names != tuple(names):
        own = ", ".join(split.keypoints.skeleton.names)
        raise InputError(
            f"{split.file}: its keypoints are {own}, and those of {other} {', '.join(names)}; make them equal, in the "
            "same order"
        )
