"""Values that mean one thing only, in another type: numbers as text or as 1.0, ids as text, boxes of nothing.

What means nothing, or two things, is left as it is for the strict reader to refuse.
"""

import ast
import re
from array import array
from collections.abc import Callable
from typing import Any

from pipelines.readers.rows import Document, place_of, shown, states_no_box

_INTEGER = re.compile(r"[+-]?\d{1,18}(?:\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,300}\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LARGEST_ID = 2**53
"""COCO results carry ids in float64."""
_NUMBERS_OF_A_TRIANGLE = 6
_FAR_OUTSIDE_PX = 1e9
_FLAGS = {"": None, "null": None, "none": None, "nan": None, "true": 1, "false": 0, "yes": 1, "no": 0}


def repair_values(document: Document) -> None:
    """Mends the tables in place and notes what was done."""
    _take_boxes_of_polygons(document)
    _drop_rows_without_box(document)
    for side in ("width", "height"):
        _convert(document, "images", side, _integer)
    _convert(document, "annotations", "iscrowd", flag)
    _convert(document, "annotations", "area", _area)
    _convert(document, "annotations", "bbox", _box)
    _convert(document, "categories", "name", _name)
    _repair_ids(document, "images", "image_id")
    _repair_ids(document, "categories", "category_id")
    _repair_annotation_ids(document)


def _integer(value: Any) -> Any:
    """The integer that a value states, or the value itself."""
    if type(value) is float and value.is_integer() and abs(value) < 1e18:
        return int(value)
    if type(value) is str and _INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return value


def _number(value: Any) -> Any:
    if type(value) is str and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def flag(value: Any) -> Any:
    """0, 1 or None of a truth value."""
    value = _integer(value)
    return _FLAGS.get(value.strip().lower(), value) if type(value) is str else value


def _area(value: Any) -> Any:
    return None if type(value) is str and value.strip().lower() in ("", "null", "none", "nan") else _number(value)


def _box(value: Any) -> Any:
    """A list of numbers; a list written as text, as tables of a spreadsheet have it, is read."""
    if type(value) is str and len(value) < 1000:
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        value = list(value) if type(value) is tuple else value
    if type(value) is list and len(value) == 4 and str in map(type, value):
        return [_number(number) for number in value]
    return value


def _name(value: Any) -> Any:
    """The name of a category that is called by a number."""
    if type(value) is float and value.is_integer():
        value = _integer(value)
    return str(value) if type(value) in (int, float) and abs(value) < 1e300 else value  # nor is NaN


def _convert(document: Document, table: str, key: str, convert: Callable[[Any], Any]) -> None:
    places = []
    for i, row in document.rows(table):
        value = row.get(key)
        if key in row and (new := convert(value)) is not value and (type(new) is not type(value) or new != value):
            row[key] = new
            places.append(place_of(table, i, row))
    document.note(f"'{key}' in another type read", places)


def _take_boxes_of_polygons(document: Document) -> None:
    """Tools that outline objects may leave their boxes out."""
    places = []
    for i, row in document.rows("annotations"):
        if states_no_box(row.get("bbox")) and (box := _box_of_polygons(row.get("segmentation"))):
            row["bbox"] = box
            places.append(place_of("annotations", i, row))
    document.note("boxes taken from the outlines of objects", places)


def _box_of_polygons(polygons: Any) -> list[float]:
    """Left, top, width and height in pixels; [] where there is no polygon, or one is none."""
    if type(polygons) is not list or not polygons:
        return []
    numbers = [number for polygon in polygons if type(polygon) in (list, array) for number in polygon]
    are_pairs = all(type(polygon) in (list, array) and len(polygon) % 2 == 0 for polygon in polygons)
    are_numbers = all(type(number) in (int, float) and abs(number) < _FAR_OUTSIDE_PX for number in numbers)
    if not (are_pairs and are_numbers and len(numbers) >= _NUMBERS_OF_A_TRIANGLE):
        return []
    xs, ys = numbers[0::2], numbers[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


LOST_BOX = "entries with an area and no box dropped"
"""An object was there, unlike where an entry says that its image has none."""


def _drop_rows_without_box(document: Document) -> None:
    """Such entries say that an image has no objects, in some tools. One that has no 'bbox' at all but a category, or an
    outline, is an object, and is left for the strict reader to refuse."""
    rows = document.rows("annotations")
    empty = {
        i
        for i, row in rows
        if "problem" not in row
        and states_no_box(row.get("bbox"))
        and _has_no_outline(row.get("segmentation"))
        and ("bbox" in row or row.get("category_id") is None and "image_id" in row)
    }
    if not empty:
        return
    for i, row in rows:
        if i in empty:
            lost = type(row.get("area")) in (int, float) and row["area"] > 0
            document.note(LOST_BOX if lost else "entries without a box dropped", [place_of("annotations", i, row)])
    for i, row in rows:
        row.setdefault("place", place_of("annotations", i, row))  # the rows behind get other numbers
    table = document.tables["annotations"]
    document.tables = {**document.tables, "annotations": [row for i, row in enumerate(table) if i not in empty]}


def _has_no_outline(value: Any) -> bool:
    return value is None or value == "" or (type(value) is list and not any(value))


def _key(value: Any) -> int | str | None:
    """What an id says: an integer where it is one in whatever type, else its text; None for what is no id."""
    value = _integer(value)
    return value if type(value) in (int, str) and value != "" else None


def _repair_ids(document: Document, table: str, reference: str) -> None:
    """Integers for the ids of a table and of the boxes' references to it; numbered anew where they are text."""
    rows = document.rows(table)
    keys = [_key(row.get("id")) for _, row in rows]
    known = [key for key in keys if key is not None]
    if len(set(known)) < len(known):  # repeated, or only alike once they are integers: 1 and "01"
        keys = [row.get("id") if type(row.get("id")) in (int, str) else None for _, row in rows]
        known = [key for key in keys if key is not None]
        if len(set(known)) < len(known):
            return
    integers = [key for key in known if type(key) is int and abs(key) <= _LARGEST_ID]
    others = [key for key in known if type(key) is not int or abs(key) > _LARGEST_ID]
    # Integers stay, also beside ids that are text.
    id_of: dict[Any, int] = {key: key for key in integers}
    id_of |= {key: number for number, key in enumerate(others, 1 + max((0, *integers)))}
    what = (
        f"ids of {table} in another type read" if not others else f"ids of {table} that are text or too large: numbered"
    )
    places = []
    for (i, row), key in zip(rows, keys, strict=True):
        if key is not None and (type(row["id"]) is not int or row["id"] != id_of[key]):
            row["id"] = id_of[key]
            places.append(place_of(table, i, row))
    document.note(what, places)
    _repair_references(document, table, reference, id_of)


def _repair_references(document: Document, table: str, reference: str, id_of: dict[Any, int]) -> None:
    """id_of: by what `_key` says of an id. A box may also name its category instead. A number that is an id only since
    ids were numbered must not be taken for it."""
    numbers = set(id_of.values())
    names: dict[Any, int] = {}
    if table == "categories":
        named = [row for _, row in document.rows(table) if type(row.get("name")) is str and type(row.get("id")) is int]
        names = {row["name"]: row["id"] for row in named}
    places = []
    for i, row in document.rows("annotations"):
        value = row.get(reference)
        if type(value) not in (int, str, float):
            continue
        tries: list[tuple[dict[Any, int], Any]] = [(id_of, value), (id_of, _key(value)), (names, value)]
        new = next((ids[each] for ids, each in tries if each in ids), None)
        if new is None and _key(value) in numbers:
            row["problem"] = f"has '{reference}' {shown(value)}, which is no id of 'images' or 'categories'"
        elif new is not None and (type(value) is not int or new != value):
            row[reference] = new
            places.append(place_of("annotations", i, row))
    document.note(f"'{reference}' in another type read", places)


def _repair_annotation_ids(document: Document) -> None:
    """They only have to differ: where they do not, or are no numbers, they are numbered."""
    rows = document.rows("annotations")
    if any(row.get("id") is None for _, row in rows):  # then the strict reader numbers them
        for _, row in rows:
            row.pop("id", None)
        return
    keys = [_key(row["id"]) for _, row in rows]
    as_integers = all(type(key) is int and abs(key) <= _LARGEST_ID for key in keys) and len(set(keys)) == len(keys)
    places = []
    for number, ((i, row), key) in enumerate(zip(rows, keys, strict=True), 1):
        new = key if as_integers else number
        if type(row["id"]) is not int or row["id"] != new:
            row["id"] = new
            places.append(place_of("annotations", i, row))
    what = "ids of boxes in another type read" if as_integers else "ids of boxes that repeat or are text: numbered"
    document.note(what, places)
