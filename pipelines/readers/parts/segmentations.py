"""Masks: polygons, and run lengths, compressed or not."""

from array import array
from typing import Any

import numpy as np

from pipelines.object_parts import Masks
from pipelines.readers.rows import Table, shown
from ssd.errors import InputError
from ssd.masks import runs_of

_LEAST_NUMBERS = 6
SHORT_POLYGONS = "masks' polygons of less than three points dropped"
NO_MASK = "has no 'segmentation'"


def read_masks(table: Table, rows: np.ndarray, sizes_px: np.ndarray) -> tuple[Masks, dict[str, np.ndarray]]:
    """The masks of these rows of 'annotations', and the rows in which something was dropped, by what it was.

    sizes_px: of each row's image (width, height). Raises BadRows for a mask that is none, or where a row lacks one, and
    InputError where all do.
    """
    stated = [table.rows[row].get("segmentation") for row in rows.tolist()]
    if len(stated) and not any(stated):
        raise InputError(
            f"{table.file}: its objects have boxes and no masks ('segmentation'); annotate them, or train a detector "
            "of boxes, such as --detector fasterrcnn_resnet50_fpn"
        )
    found: list[list[Any]] = []
    problems: dict[int, str] = {}
    shortened = []
    for row, value, size_px in zip(rows.tolist(), stated, sizes_px.tolist(), strict=True):
        try:
            kept, dropped = mask_of(value, size_px)
        except ValueError as error:
            problems[row] = str(error)
        else:
            found.append(kept)
            if dropped:
                shortened.append(row)
    table.refuse(problems)
    flat = [part for parts in found for part in parts]
    masks = Masks(
        row_starts=np.cumsum([0, *map(len, found)], dtype=np.int64),
        starts=np.cumsum([0, *map(len, flat)], dtype=np.int64),
        numbers=np.concatenate([np.zeros(0), *flat]),
        is_rle=np.array([type(value) is dict for value in stated], dtype=bool),
    )
    return masks, {SHORT_POLYGONS: np.array(shortened, dtype=np.int64)} if shortened else {}


def mask_of(value: Any, size_px: list[int]) -> tuple[list[Any], int]:
    """The polygons or run lengths of one 'segmentation', and how many polygons were left out.

    Raises ValueError that says what is wrong, to be read after the row's name.
    """
    if value is None or (type(value) is list and not value):
        raise ValueError(NO_MASK)
    if type(value) is dict:
        return [_runs(value, size_px)], 0
    if type(value) is not list:
        raise ValueError(f"has 'segmentation' {shown(value)}, which is neither polygons nor run lengths")
    kept = []
    for number, polygon in enumerate(value):
        if type(polygon) is not array:
            raise ValueError(f"has in polygon {number} {shown(polygon)}, which is not a list of numbers")
        if len(polygon) % 2:
            raise ValueError(f"has in polygon {number} {len(polygon)} numbers, which are no pairs of x and y")
        if not np.isfinite(polygon).all():
            raise ValueError(f"has in polygon {number} numbers that are not finite")
        if len(polygon) >= _LEAST_NUMBERS:
            kept.append(polygon)
    if not kept:
        raise ValueError("has no polygon of three points or more")
    return kept, len(value) - len(kept)


def _runs(value: dict[str, Any], size_px: list[int]) -> np.ndarray:
    width, height = size_px
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ValueError(f"has a mask of size {shown(size)} (height, width) in an image of {[height, width]}")
    if type(counts) is str:
        try:
            runs = runs_of(counts)
        except ValueError as error:
            raise ValueError(f"has a mask whose 'counts' have {error}") from None
    elif type(counts) is array:
        runs = np.asarray(counts)
    else:
        raise ValueError(f"has a mask whose 'counts' {shown(counts)} are neither a list of numbers nor a text")
    is_whole = np.isfinite(runs).all() and (runs >= 0).all() and (runs % 1 == 0).all()
    if not is_whole or runs.sum() != width * height:
        raise ValueError(f"has a mask whose run lengths are not those of {width} x {height} pixels")
    return runs.astype(np.float64)
