"""The reader of YOLO's text files: makes COCO's tables of them, for the strict reader to check as any others.

A line is a class, counted from 0 or by its name, and a box in fractions of the image: its centre, width and height.
More pairs of numbers are a polygon, whose box is taken, as ultralytics does. An image without a text file, or with an
empty one, has no objects. Fractions are of the image as viewers show it, upright, because the tools that write them
read it so.

YOLO has no ids: images are numbered from 1 in order of their names or of the list, categories are the class numbers.
"""

import ast
import difflib
import os
import re
from pathlib import Path
from typing import Any

from pipelines.readers.headers import Header, read_headers
from pipelines.readers.image_files import BadImage
from pipelines.readers.layouts.source import Source
from pipelines.readers.layouts.yolo import read_yaml
from pipelines.readers.layouts.yolo_labels import LabelFiles, named_box_of, numbers_of
from pipelines.readers.layouts.yolo_lists import MOVED, images_of
from pipelines.readers.rows import Document, shown
from pipelines.readers.text import read_lines, read_text
from ssd.errors import InputError

_MOST_CLASSES = 10_000
# class x y w h score track, as save_txt of ultralytics has it: as many numbers as of a polygon of 3 points, the last
# is no fraction.
_DECIMAL_COMMAS = re.compile(r"\d+(?:[ \t]+\d+,\d+){4,}")
_TRACKED = re.compile(r"^[ \t]*\d+(?:[ \t]+[\d.eE+-]+){5}[ \t]+(?:[2-9]|[1-9]\d+)[ \t]*\r?$", re.MULTILINE)
_LARGEST_FRACTION = 1.5
"""Rounding and boxes that leave the image go a little beyond 1; pixels go far."""


def annotation_files(source: Source) -> list[Path]:
    """All that `read_document` reads."""
    lists = [place for place in source.lists if place.is_file()]
    texts = LabelFiles(_root(source))
    images = [image for place in source.lists for image in images_of(place, _root(source))]
    labels = [file for image in images if (file := texts.of(image))]
    return [*lists, *([source.names_file] if source.names_file else []), *labels]


def _root(source: Source) -> Path:
    return source.data_folder or source.image_folder


def read_document(source: Source) -> Document:
    """The split as the content of a COCO annotation file; each row says in 'place' which file it is from.

    Raises InputError where a folder, a list or the names of the classes cannot be read, or no image has labels.
    """
    if source.lacking:
        raise InputError(source.lacking)
    document = Document({}, source.file, source.image_folder, has_stated_sizes=False)
    document.note(MOVED, list(source.moved))
    paths = list(
        dict.fromkeys(path for place in source.lists for path in images_of(place, _root(source), document.note))
    )
    names, has_keypoints = _names(source, document)
    numbers_by_words: dict[tuple[str, ...], list[int]] = {}
    for number, each in names.items():
        numbers_by_words.setdefault(tuple(each.replace(",", " ").split()), []).append(number)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    texts = LabelFiles(_root(source))
    label_folders: set[Path] = set()
    found = 0
    for image_id, (path, header) in enumerate(zip(paths, read_headers(paths), strict=True), 1):
        labels = texts.of(path)
        if labels and labels.name != f"{path.stem}.txt":
            document.note("label files in another case found", [labels.name])
        name = path.relative_to(source.image_folder).as_posix() if source.image_folder in path.parents else path.name
        row: dict[str, Any] = {"place": name, "id": image_id, "file_name": name}
        images.append(row)
        found += not isinstance(header, OSError)
        if labels:
            label_folders.add(labels.parent)
        elif not isinstance(header, OSError):
            document.note("images without a label file taken as without objects", [name])
        if not isinstance(header, Header):
            if isinstance(header, BadImage):
                row["problem"] = f"cannot be read as an image ({header}); replace it or convert it to JPEG or PNG"
            else:  # not there, which the strict reader says
                row["width"], row["height"] = 1, 1
            continue
        row["width"], row["height"] = header.upright_size_px
        if labels:
            boxes += _boxes_of(labels, image_id, header.upright_size_px, document, numbers_by_words, has_keypoints)
    if found and not label_folders:
        raise InputError(
            f"{source.file}: none of its {len(paths)} images has a label file; put them beside them, or in labels/"
        )
    without_image = texts.without_image(sorted(label_folders))
    document.note(
        "label files without an image left out", [f"{file.parent.name}/{file.name}" for file in without_image]
    )
    document.tables = {"images": images, "annotations": boxes, "categories": _categories(names, boxes, document)}
    return document


def _boxes_of(
    file: Path,
    image_id: int,
    size_px: tuple[int, int],
    document: Document,
    numbers_by_words: dict[tuple[str, ...], list[int]],
    has_keypoints: bool,
) -> list[dict[str, Any]]:
    try:
        text = read_text(file, document.note)
    except InputError as error:
        return [{"place": file.name, "problem": f"cannot be read ({str(error).removeprefix(f'{file}: ')})"}]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    has_tracks = _TRACKED.search(text) is not None
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()):
            continue
        place = f"{file.parent.name}/{file.name}, line {number}"
        if line in seen:
            document.note("lines that repeat another dropped", [place])
            continue
        seen.add(line)
        row = _box_of(line, size_px, numbers_by_words, has_keypoints, has_tracks)
        for what in row.pop("notes", ()):
            document.note(what, [place])
        rows.append({"place": place, "image_id": image_id, **row})
    return rows


def _box_of(
    line: str,
    size_px: tuple[int, int],
    numbers_by_words: dict[tuple[str, ...], list[int]],
    has_keypoints: bool,
    has_tracks: bool,
) -> dict[str, Any]:
    """category_id and bbox of a line with notes on how it was read, or the problem with it. has_tracks: of its file."""
    notes = []
    if _DECIMAL_COMMAS.fullmatch(line):
        line = line.replace(",", ".")
        notes.append("decimal commas read as points")
    if (numbers := numbers_of(line)) is not None:
        category, *values = numbers
    elif (named := named_box_of(line, numbers_by_words)) is not None:
        words, values = named
        of_name = numbers_by_words.get(words, [])
        if len(of_name) != 1:
            return {"problem": f"has {shown(line)}, {_why_no_class(' '.join(words), of_name, numbers_by_words)}"}
        category = of_name[0]
        notes.append("lines that name their class read by its name")
    else:
        return {"problem": f"has {shown(line)}, which is not a class from 0 on and a box of 4 numbers"}
    is_polygon = len(values) >= 6 and len(values) % 2 == 0 and not has_keypoints
    if is_polygon and len(values) == 6 and line.split()[-1].isdecimal() and (values[5] > 1 or has_tracks):
        is_polygon = False
    if is_polygon:
        xs, ys = values[0::2], values[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        notes.append("polygons read as their boxes")
    else:
        x, y, width, height = values[:4]
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if len(values) > 4 and not has_keypoints:
            notes.append("numbers behind the box left out")
    if max(map(abs, (left, top, right, bottom))) > _LARGEST_FRACTION:
        return {"problem": f"has {shown(line)}: a box in pixels? YOLO's are fractions of the image, from 0 to 1"}
    width_px, height_px = size_px
    bbox = [left * width_px, top * height_px, (right - left) * width_px, (bottom - top) * height_px]
    return {"category_id": int(category), "bbox": bbox, "notes": notes}


def _why_no_class(name: str, numbers: list[int], numbers_by_words: dict[tuple[str, ...], list[int]]) -> str:
    if numbers:
        return f"and {shown(name)} stands {len(numbers)} times among the names of classes; begin the line with a number"
    if not numbers_by_words:
        return (
            f"and {shown(name)} is no number of a class; list the names, in the order of their numbers from 0, in "
            "classes.txt or data.yaml"
        )
    known = [" ".join(words) for words in numbers_by_words]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"and there is no class {shown(name)}" + "".join(f"; is it {shown(each)}?" for each in nearest)


def _names(source: Source, document: Document) -> tuple[dict[int, str], bool]:
    """Name by class number, as far as a file tells them; whether lines go on with keypoints."""
    file = source.names_file
    if file is None:
        return {}, False
    if file.suffix.lower() not in (".yaml", ".yml"):
        return dict(enumerate(_names_by_line(read_lines(file, document.note), document))), False
    content = read_yaml(file, document.note)
    names = content.get("names")
    if isinstance(names, str):
        names = _names_in(names, file)
    if isinstance(names, dict):
        try:
            by_number = {int(number): str(name) for number, name in names.items()}
        except (TypeError, ValueError):
            raise InputError(f"{file}: 'names' must be a list, or names by class number; correct it") from None
    elif isinstance(names, list | tuple):
        if not all(isinstance(name, str | int) for name in names):
            raise InputError(f"{file}: 'names' must be a list, or names by class number; correct it")
        by_number = {number: str(name) for number, name in enumerate(names)}
    else:
        by_number = {}
    stated = content.get("nc")
    if by_number and isinstance(stated, str) and stated.strip() not in ("", str(len(by_number))):
        document.note("another number of classes stated than there are names", [f"nc {stated}, names {len(by_number)}"])
    return by_number, "kpt_shape" in content


def _names_by_line(lines: list[str], document: Document) -> list[str]:
    """The names in a text file: a name a line, which may begin with its number, or all in one line with commas."""
    if len(lines) == 1 and "," in lines[0]:
        document.note("names of classes with commas parted", lines)
        return [name.strip() for name in lines[0].split(",")]
    numbered = [re.fullmatch(r"(\d+)[\s:.,]+(\S.*)", line) for line in lines]
    if len(lines) > 1 and all(numbered) and [int(each[1]) for each in numbered if each] == list(range(len(lines))):
        document.note("names of classes with numbers before them read", lines)
        return [each[2] for each in numbered if each]
    return lines


def _names_in(text: str, file: Path) -> Any:
    """The names in a text such as "['a', 'b']" or "a b", or in the file that it is the path of."""
    for folder in (file.parent, file.parent.parent):
        if text and os.path.isfile(folder / text):
            return read_lines(folder / text)
    if not text.startswith(("[", "(", "{")):
        return [name.strip() for name in text.split(",")] if "," in text else text.split()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text.split()


def _categories(names: dict[int, str], boxes: list[dict[str, Any]], document: Document) -> list[dict[str, Any]]:
    used = {row["category_id"] for row in boxes if "category_id" in row}
    if not names:  # else a class without a name is a mistake, which the strict reader tells
        # Where no row can be read there is a class too: what is wrong with the rows is the first cause.
        least = 0 if boxes else -1
        numbers = range(max(used, default=least) + 1) if max(used, default=0) < _MOST_CLASSES else sorted(used)
        names = {number: f"class {number}" for number in numbers}
        document.note("classes without a name numbered", [f"class {number}" for number in sorted(used)])
    return [{"id": number, "name": name} for number, name in sorted(names.items())]
