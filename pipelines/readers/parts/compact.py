"""Lists of numbers as arrays, as soon as they are parsed: COCO's polygons would take gigabytes as Python's numbers."""

from array import array
from typing import Any

PART_KEYS = ("segmentation", "size", "counts", "keypoints", "skeleton")
"""What only detectors that learn more than boxes look at. The two in the middle are those of a mask's run lengths."""


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its lists of numbers as arrays of float64; what is anything else stays for a message."""
    if type(polygons := row.get("segmentation")) is list:
        row["segmentation"] = list(map(_numbers, polygons))
    for key in ("counts", "keypoints"):
        if key in row:
            row[key] = _numbers(row[key])
    return row


def _numbers(value: Any) -> Any:
    if type(value) is not list or not set(map(type, value)) <= {int, float}:
        return value
    try:
        return array("d", value)
    except OverflowError:
        return value
