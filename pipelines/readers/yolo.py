"""The reader of YOLO's text files: makes COCO's tables of them, for the strict reader to check as any others.

A line is a class, counted from 0, and a box in fractions of the image: its centre, width and height. More pairs of
numbers are a polygon, whose box is taken, as ultralytics does. An image without a text file, or with an empty one, has
no objects. Fractions are of the image as viewers show it, upright, because the tools that write them read it so.

YOLO has no ids: images are numbered from 1 in order of their names or of the list, categories are the class numbers.
"""

import ast
import math
import os
from pathlib import Path
from typing import Any

from pipelines.readers.headers import Header, read_headers
from pipelines.readers.image_files import BadImage
from pipelines.readers.layouts.source import Source
from pipelines.readers.layouts.yolo import images_of, label_file, read_yaml
from pipelines.readers.rows import Document, shown
from pipelines.readers.text import decode, read_lines
from ssd.errors import InputError

_MOST_CLASSES = 10_000
_LARGEST_FRACTION = 1.5
"""Rounding and boxes that leave the image go a little beyond 1; pixels go far."""


def annotation_files(source: Source) -> list[Path]:
    """All that `read_document` reads."""
    lists = [place for place in source.lists if place.is_file()]
    labels = [label_file(image) for place in source.lists for image in images_of(place, source.image_folder)]
    files = [*lists, *([source.names_file] if source.names_file else []), *labels]
    return [file for file in files if os.path.isfile(file)]


def read_document(source: Source) -> Document:
    """The split as the content of a COCO annotation file; each row says in 'place' which file it is from.

    Raises InputError where a list or the names of the classes cannot be read, or no image has labels.
    """
    document = Document({}, source.file, source.image_folder, has_stated_sizes=False)
    paths = list(dict.fromkeys(path for place in source.lists for path in images_of(place, source.image_folder)))
    names, has_keypoints = _names(source)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    labelled = found = 0
    for image_id, (path, header) in enumerate(zip(paths, read_headers(paths), strict=True), 1):
        labels = label_file(path)
        name = path.relative_to(source.image_folder).as_posix() if source.image_folder in path.parents else path.name
        row: dict[str, Any] = {"place": name, "id": image_id, "file_name": name}
        images.append(row)
        labelled += os.path.isfile(labels)
        found += not isinstance(header, OSError)
        if not isinstance(header, Header):
            if isinstance(header, BadImage):
                row["problem"] = f"cannot be read as an image ({header}); replace it or convert it to JPEG or PNG"
            else:  # not there, which the strict reader says
                row["width"], row["height"] = 1, 1
            continue
        row["width"], row["height"] = header.upright_size_px
        boxes += _boxes_of(labels, image_id, header.upright_size_px, document, has_keypoints)
    if found and not labelled:
        raise InputError(
            f"{source.file}: none of its {len(paths)} images has a label file; put them beside them, or in labels/"
        )
    document.tables = {"images": images, "annotations": boxes, "categories": _categories(names, boxes, document)}
    return document


def _boxes_of(
    file: Path, image_id: int, size_px: tuple[int, int], document: Document, has_keypoints: bool
) -> list[dict[str, Any]]:
    try:
        text, _ = decode(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        return [{"place": file.name, "problem": f"cannot be read ({error})"}]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()):
            continue
        place = f"{file.parent.name}/{file.name}, line {number}"
        if line in seen:
            document.note("lines that repeat another dropped", [place])
            continue
        seen.add(line)
        row = _box_of(line, size_px, has_keypoints)
        what = row.pop("note", None)
        if what:
            document.note(what, [place])
        rows.append({"place": place, "image_id": image_id, **row})
    return rows


def _box_of(line: str, size_px: tuple[int, int], has_keypoints: bool) -> dict[str, Any]:
    """category_id and bbox of a line, or the problem with it."""
    parts = line.replace(",", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return {"problem": f"has {shown(line)}, which is not a class and numbers"}
    if len(numbers) < 5 or not all(map(math.isfinite, numbers)) or numbers[0] < 0 or not numbers[0].is_integer():
        return {"problem": f"has {shown(line)}, which is not a class from 0 on and a box of 4 numbers"}
    category, *values = numbers
    note: dict[str, Any] = {}
    is_polygon = len(values) >= 6 and len(values) % 2 == 0 and not has_keypoints
    if is_polygon:
        xs, ys = values[0::2], values[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        note = {"note": "polygons read as their boxes"}
    else:
        x, y, width, height = values[:4]
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if len(values) > 4 and not has_keypoints:
            note = {"note": "numbers behind the box left out"}
    if max(map(abs, (left, top, right, bottom))) > _LARGEST_FRACTION:
        return {"problem": f"has {shown(line)}: a box in pixels? YOLO's are fractions of the image, from 0 to 1"}
    width_px, height_px = size_px
    bbox = [left * width_px, top * height_px, (right - left) * width_px, (bottom - top) * height_px]
    return {"category_id": int(category), "bbox": bbox, **note}


def _names(source: Source) -> tuple[dict[int, str], bool]:
    """Name by class number, as far as a file tells them; whether lines go on with keypoints."""
    file = source.names_file
    if file is None:
        return {}, False
    if file.suffix.lower() not in (".yaml", ".yml"):
        return dict(enumerate(read_lines(file))), False
    content = read_yaml(file)
    names = content.get("names")
    if isinstance(names, str):  # "['a', 'b']"
        try:
            names = ast.literal_eval(names)
        except (ValueError, SyntaxError):
            names = names.split()
    if isinstance(names, list | tuple):
        return {number: str(name) for number, name in enumerate(names)}, "kpt_shape" in content
    if isinstance(names, dict):
        try:
            return {int(number): str(name) for number, name in names.items()}, "kpt_shape" in content
        except (TypeError, ValueError):
            raise InputError(f"{file}: 'names' must be a list, or names by class number; correct it") from None
    return {}, "kpt_shape" in content


def _categories(names: dict[int, str], boxes: list[dict[str, Any]], document: Document) -> list[dict[str, Any]]:
    used = {row["category_id"] for row in boxes if "category_id" in row}
    if not names:  # else a class without a name is a mistake, which the strict reader tells
        numbers = range(max(used, default=-1) + 1) if max(used, default=0) < _MOST_CLASSES else sorted(used)
        names = {number: f"class {number}" for number in numbers}
        document.note("classes without a name numbered", [f"class {number}" for number in sorted(used)])
    return [{"id": number, "name": name} for number, name in sorted(names.items())]
