"""The strict reader of COCO annotation files, the only place that parses them; what it passes is clean.

Strict, because what comes after is not: DALI's reader crashes on a cut file, takes an unknown category for background
and follows `../` out of the data folder. Whatever would change what is learned or scored is refused with one line that
names the entry. Boxes that no detector could learn are dropped or clipped instead, and counted in `repairs`, because
COCO itself has some. `read_tolerantly` is the same reader, run again without the rows that it refused.

COCO has 860,000 boxes, so the tables are read by columns; rows are looked at one by one only to name a culprit.
"""

import hashlib
import json
import os
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pipelines.json_stream import load_object
from ssd.batch import GroundTruth
from ssd.errors import InputError

MIN_BOX_SIDE_PX = 0.1
"""Smaller boxes are dropped; the threshold of DALI's COCO reader."""

CLIP_TOLERANCE_PX = 0.5
"""Boxes that overhang the image by no more are clipped without being counted: annotators round to pixels."""

MAX_IMAGE_SIDE_PX = 65_535
"""JPEG's limit. It also keeps a box of the smallest side from vanishing in float32."""


# What the reader looks at of a row; COCO's masks are three quarters of a file.
_KEYS = (
    *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "name", "file_name", "width", "height"),
    *("images", "annotations", "categories"),
)


class Category(NamedTuple):
    """One kind of object, with the file's own id, which may have gaps."""

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class Annotations:
    """One split of a data set: N images, M boxes grouped by image, K classes. Images keep the file's order."""

    file: Path
    """The JSON it was read from."""
    image_folder: Path
    categories: tuple[Category, ...]
    """In the file's order: category i has label i + 1, and 0 is background."""
    image_ids: np.ndarray
    """N int64, as in the file."""
    file_names: list[str]
    """N, relative to `image_folder`, '/' between folders; each exists and lies inside it."""
    sizes_px: np.ndarray
    """N x 2 int32, (width, height), 1..MAX_IMAGE_SIDE_PX."""
    box_starts: np.ndarray
    """N + 1 int64: image i has the rows box_starts[i]:box_starts[i + 1] of what follows, in the file's order."""
    boxes_ltrb: np.ndarray
    """M x 4 float32 in [0, 1] of the image's size, clipped to it, left < right and top < bottom."""
    boxes_xywh_px: np.ndarray
    """M x 4 float64, finite, as the file states them: evaluation needs the original numbers."""
    areas_px: np.ndarray
    """M float64, finite: `area` of the file (in COCO, of the mask), width x height where it states no finite one."""
    labels: np.ndarray
    """M int64, 1..K-1."""
    is_crowd: np.ndarray
    """M bool: the box holds a group of objects, to be ignored rather than learned."""
    annotation_ids: np.ndarray
    """M int64, unique and positive: the file's, or numbered from 1 where it lacks any or has one below 1."""
    repaired_rows: dict[str, np.ndarray]
    """Rows of the file's 'annotations', by what was done to their boxes: {"zero-size boxes dropped": [4, 17]}."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of the images that `without` took out, by what is wrong with them, such as {"missing": ["b.jpg"]}."""

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def num_classes(self) -> int:
        """K: the categories and the background."""
        return len(self.categories) + 1

    @property
    def num_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    @property
    def repairs(self) -> dict[str, int]:
        """What was dropped, clipped or left out and how often, such as {"zero-size boxes dropped": 2}."""
        boxes = {what: len(rows) for what, rows in self.repaired_rows.items()}
        return boxes | {f"{what} images left out": len(names) for what, names in self.left_out.items()}

    @property
    def repairs_text(self) -> str:
        """One line to warn with, or '' when the file needed no repair."""
        counts = ", ".join(f"{what}: {count}" for what, count in self.repairs.items())
        return counts and f"{self.file}: {counts}"

    def fingerprint(self) -> str:
        """A digest of all that training sees of the split, but for the pixels."""
        digest = hashlib.sha256("\n".join(self.file_names).encode())
        for array in (self.sizes_px, self.box_starts, self.boxes_ltrb, self.labels, self.is_crowd):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def boxes_of(self, i: int) -> slice:
        """The rows of image i (an index, not an id) in the arrays of boxes."""
        return slice(int(self.box_starts[i]), int(self.box_starts[i + 1]))

    def trainable_indices(self) -> np.ndarray:
        """Int64 indices, ascending, of the images with at least one box that is not a crowd region."""
        return np.unique(self.image_of_box()[~self.is_crowd])

    def without(self, bad_images: dict[str, str]) -> "Annotations":
        """This split less some images and their boxes. bad_images: file name -> what is wrong, such as "unreadable".

        Names that are not in the split (any more) are noted in `left_out` like the others.
        """
        kept = np.array([name not in bad_images for name in self.file_names], dtype=bool)
        rows = kept[self.image_of_box()]
        left_out = {what: list(names) for what, names in self.left_out.items()}
        for name, what in bad_images.items():
            left_out.setdefault(what, []).append(name)
        return replace(
            self,
            image_ids=self.image_ids[kept],
            file_names=[self.file_names[index] for index in np.flatnonzero(kept)],
            sizes_px=self.sizes_px[kept],
            box_starts=np.concatenate([[0], np.cumsum(np.diff(self.box_starts)[kept])]).astype(np.int64),
            boxes_ltrb=self.boxes_ltrb[rows],
            boxes_xywh_px=self.boxes_xywh_px[rows],
            areas_px=self.areas_px[rows],
            labels=self.labels[rows],
            is_crowd=self.is_crowd[rows],
            annotation_ids=self.annotation_ids[rows],
            left_out=left_out,
        )

    def ground_truth(self) -> GroundTruth:
        """What evaluation needs of this split."""
        return GroundTruth(
            image_ids=self.image_ids,
            sizes_px=self.sizes_px,
            category_ids=[category.id for category in self.categories],
            category_names=[category.name for category in self.categories],
            dataset=self.coco_dataset(),
        )

    def coco_dataset(self) -> dict[str, list[dict[str, Any]]]:
        """The data set as pycocotools wants it: all images, original ids, unclipped boxes; without what was dropped.

        Assign it to `COCO().dataset` and call `createIndex()`.
        """
        category_ids = np.array([category.id for category in self.categories], dtype=np.int64)
        columns = {
            "id": self.annotation_ids,
            "image_id": self.image_ids[self.image_of_box()],
            "category_id": category_ids[self.labels - 1],
            "bbox": self.boxes_xywh_px,
            "area": self.areas_px,
            "iscrowd": self.is_crowd.astype(np.int64),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        images = zip(self.image_ids.tolist(), self.file_names, self.sizes_px.tolist(), strict=True)
        return {
            "images": [{"id": id, "file_name": name, "width": w, "height": h} for id, name, (w, h) in images],
            "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
            "categories": [category._asdict() for category in self.categories],
        }

    def image_of_box(self) -> np.ndarray:
        """M int64: the index of each box's image."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.box_starts))


def find_split(data_folder: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split such as 'train2017'.

    Images lie in DIR/{split} or DIR/images/{split}, annotations in DIR/annotations/instances_{split}.json.
    Raises InputError that says where it looked.
    """
    if not os.path.isdir(data_folder):
        raise InputError(f"{data_folder}: no such data folder; give the folder that holds 'annotations' and the images")
    places = (data_folder / split, data_folder / "images" / split)
    image_folder = next((place for place in places if os.path.isdir(place)), None)
    if image_folder is None:
        raise InputError(
            f"{data_folder}: no images for split '{split}'; put them in {places[0]} or {places[1]}, "
            "or name the splits with --train-split and --val-split"
        )
    file = data_folder / "annotations" / f"instances_{split}.json"
    if not os.path.isfile(file):
        raise InputError(f"{file}: no such annotation file; put the annotations of split '{split}' there")
    return image_folder, file


def read_annotations(data_folder: Path, split: str) -> Annotations:
    """Reads and checks one split; every image exists, every number is in range.

    Raises InputError, one line that names the file, the entry and the remedy, for anything else.
    """
    image_folder, file = find_split(data_folder, split)
    return annotations_of(read_document(file), file, image_folder)


def annotations_of(document: dict[str, Any], file: Path, image_folder: Path) -> Annotations:
    """Checks the content of one file. Raises BadRows for entries that are wrong, InputError for what holds them."""
    categories = _read_categories(_Table(document, "categories", file))
    images = _Table(document, "images", file)
    image_ids, file_names, sizes_px = _read_images(images)
    _check_on_disk(images, file_names, image_folder)
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    boxes = _read_boxes(_Table(document, "annotations", file), image_ids, category_ids, sizes_px)
    return Annotations(
        file=file,
        image_folder=image_folder,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        sizes_px=sizes_px,
        **boxes,
    )


class Defect(StrEnum):
    """What can be wrong with an entry."""

    MALFORMED = "malformed entries"
    REPEATED = "repeated ids or file names"
    OUTSIDE = "paths out of the image folder"
    UNLISTABLE = "folders that cannot be listed"
    MISSING = "missing images"
    UNKNOWN_IMAGE = "boxes of unknown images"
    UNKNOWN_CATEGORY = "boxes of unknown categories"


class BadRows(InputError):
    """All the rows of one list that one check refuses; the message names the first.

    problems: by row, ascending, what is wrong, to be read after "images[3] ".
    """

    def __init__(self, message: str, table: str, defect: Defect, problems: dict[int, str]) -> None:
        super().__init__(message)
        self.table, self.defect, self.problems = table, defect, problems


def read_tolerantly(
    document: dict[str, Any], file: Path, image_folder: Path, notice: Callable[[BadRows], None]
) -> Annotations:
    """As `annotations_of`, but without the rows that it refuses, and without the boxes of images or categories refused.

    notice: is told of them, in the numbers of the document's rows, and raises what it does not tolerate. Each call
    costs a new reading, so there are at most as many as there are checks. Raises InputError where no rows are left.
    """
    tables = ("categories", "images", "annotations")
    numbers = {name: np.arange(len(rows)) for name in tables if type(rows := document.get(name)) is list}
    while True:
        try:
            annotations = annotations_of(document, file, image_folder)
        except BadRows as bad:
            problems = {int(numbers[bad.table][row]): problem for row, problem in bad.problems.items()}
            notice(BadRows(str(bad), bad.table, bad.defect, problems))
            document = dict(document)
            for name, kept in _rows_that_stay(document, bad).items():
                document[name] = [row for row, stays in zip(document[name], kept, strict=True) if stays]
                numbers[name] = numbers[name][kept]
        else:
            repaired = {what: numbers["annotations"][rows] for what, rows in annotations.repaired_rows.items()}
            return replace(annotations, repaired_rows=repaired)


def _rows_that_stay(document: dict[str, Any], bad: BadRows) -> dict[str, np.ndarray]:
    """By table, a bool for every row: not among the bad, nor a box of an image or category that goes with them."""
    rows = document[bad.table]
    kept = np.ones(len(rows), dtype=bool)
    kept[list(bad.problems)] = False
    key = {"images": "image_id", "categories": "category_id"}.get(bad.table)
    boxes = document.get("annotations")
    if key is None or type(boxes) is not list:
        return {bad.table: kept}

    def ids(stay: bool) -> set[int]:
        chosen = (row.get("id") for row, stays in zip(rows, kept, strict=True) if stays == stay and type(row) is dict)
        return {id for id in chosen if type(id) is int}

    gone = ids(False) - ids(True)
    return {bad.table: kept, "annotations": np.array([_value(box, key) not in gone for box in boxes], dtype=bool)}


def _value(row: Any, key: str) -> int | None:
    value = row.get(key) if type(row) is dict else None
    return value if type(value) is int else None


def read_document(file: Path) -> dict[str, Any]:
    """The file's JSON object, without what the reader does not look at. Raises InputError that names the place where it
    is none."""
    try:
        with file.open("rb") as stream:
            return parse_document(stream, file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None


def parse_document(stream: BinaryIO, file: Path) -> dict[str, Any]:
    """As `read_document`; file: for the messages."""

    def without_the_rest(row: dict[str, Any]) -> dict[str, Any]:
        # Called for each object as soon as it is parsed: COCO's masks, three quarters of it, are never all in memory.
        # A new dict with keys of ours, because the old one would keep the room, and has each key as a text of its own.
        return {key: row[key] for key in _KEYS if key in row}

    try:
        document = load_object(stream, without_the_rest)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; fetch it again or save it as UTF-8") from None
    except RecursionError:
        raise InputError(f"{file}: nested too deeply for a COCO annotation file; fetch it again") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{file}: not valid JSON at {where} ({error.msg}); was it cut short? Fetch it again") from None
    except ValueError:  # the only other one: Python refuses to convert integers of more than 4300 digits
        raise InputError(f"{file}: holds an integer of thousands of digits; fetch it again or correct it") from None
    if type(document) is not dict:
        raise InputError(f"{file}: must hold a JSON object with images, annotations and categories; fetch it again")
    return document


class _Table:
    """One list of the document, read by columns: quickly when all is well, naming the first culprit otherwise.

    Types are compared exactly: JSON's `true` is no integer and 1.0 is no id.
    """

    def __init__(self, document: dict[str, Any], name: str, file: Path) -> None:
        self.name, self.file = name, file
        if type(document.get(name)) is not list:
            state = "is not a list" if name in document else "is missing"
            raise InputError(f"{file}: '{name}' {state}; give the file of an object detection (instances) task")
        self.rows: list[Any] = document[name]
        self.refuse({i: "is not a JSON object" for i, row in enumerate(self.rows) if type(row) is not dict})

    def refuse(self, problems: dict[int, str], defect: Defect = Defect.MALFORMED, message: str | None = None) -> None:
        """Raises BadRows if a row has a problem. message: instead of the one about the first of them."""
        if problems:
            first = min(problems)
            message = message or f"{self.name}[{first}] {problems[first]}; correct or remove that entry"
            raise BadRows(f"{self.file}: {message}", self.name, defect, problems)

    def column(self, key: str, types: set[type], kind: str) -> list[Any]:
        """`key` of every row; None stands for absent where NoneType is among the types."""
        column = [row.get(key) for row in self.rows]
        if not set(map(type, column)) <= types:
            self.refuse(
                {
                    i: f"has '{key}' {_shown(value)}, which is not {kind}" if key in self.rows[i] else f"has no '{key}'"
                    for i, value in enumerate(column)
                    if type(value) not in types
                }
            )
        return column

    def integers(self, key: str) -> np.ndarray:
        """`key` of every row, int64, of a size that float64 holds exactly: COCO results carry ids in it."""
        column = self.column(key, {int}, "an integer")
        self.refuse(
            {
                i: f"has '{key}' {_shown(value)}, which is too large"
                for i, value in enumerate(column)
                if abs(value) > 2**53
            }
        )
        return np.array(column, dtype=np.int64)

    def refuse_repeated(self, key: str, column: list[Any]) -> None:
        if len(set(column)) == len(column):
            return
        problems: dict[int, str] = {}
        seen: set[Any] = set()
        for index, value in enumerate(column):
            if value in seen:
                problems[index] = f"repeats '{key}' {_shown(value)}"
            seen.add(value)
        self.refuse(problems, Defect.REPEATED)


def _shown(value: object) -> str:
    """A value of the file for a message: short, and on one line."""
    short = reprlib.Repr()
    short.maxstring = 100
    return short.repr(value)


def _read_categories(table: _Table) -> tuple[Category, ...]:
    if not table.rows:
        raise InputError(f"{table.file}: 'categories' is empty; list the categories that its annotations use")
    ids = table.integers("id").tolist()
    table.refuse_repeated("id", ids)
    names = table.column("name", {str}, "text")
    table.refuse({i: "has an empty 'name'" for i, name in enumerate(names) if not name.strip()})
    # JSON can state half of a surrogate pair, which no console or file would take later.
    half = (i for i, name in enumerate(names) if name != name.encode(errors="ignore").decode())
    table.refuse(dict.fromkeys(half, "has a 'name' that is not Unicode"))
    return tuple(map(Category, ids, names))


def _read_images(table: _Table) -> tuple[np.ndarray, list[str], np.ndarray]:
    if not table.rows:
        raise InputError(f"{table.file}: 'images' is empty; choose a split with images")
    ids = table.integers("id")
    table.refuse_repeated("id", ids.tolist())
    names = table.column("file_name", {str}, "text")
    # Names must be canonical as well as harmless: 'a//b.jpg' would hide that 'a/b.jpg' is listed twice.
    table.refuse(
        {
            i: f"has file_name {_shown(name)}, not a plain path inside the image folder"
            for i, name in enumerate(names)
            if "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/"))
        },
        Defect.OUTSIDE,
    )
    table.refuse_repeated("file_name", names)
    sides_px = {side: table.integers(side) for side in ("width", "height")}
    for side, values in sides_px.items():
        outside = np.flatnonzero((values < 1) | (values > MAX_IMAGE_SIDE_PX)).tolist()
        table.refuse(dict.fromkeys(outside, f"has a '{side}' outside 1..{MAX_IMAGE_SIDE_PX}"))
    return ids, names, np.stack(list(sides_px.values()), axis=1).astype(np.int32)


def _check_on_disk(table: _Table, names: list[str], image_folder: Path) -> None:
    """Each image must exist and, links followed, lie inside the image folder, which may itself be a link."""
    root = Path(os.path.realpath(image_folder))
    index_of = {name: index for index, name in enumerate(names)}
    present: set[str] = set()
    leaving: dict[int, str] = {}
    for parent in {name.rpartition("/")[0] for name in names}:
        # One listing a folder, because a stat a file takes minutes on network disks.
        try:
            folder = Path(os.path.realpath(root / parent))
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError, UnicodeEncodeError):
            continue
        except OSError as error:
            place = f"{_shown(parent or '.')} of {image_folder} ({error.strerror})"
            inside = [index for name, index in index_of.items() if name.rpartition("/")[0] == parent]
            table.refuse(
                dict.fromkeys(inside, f"lies in {place}, which cannot be listed"),
                Defect.UNLISTABLE,
                f"cannot list its images in {place}; check that folder",
            )
            continue
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            is_link = entry.is_symlink()
            if name not in index_of or not (os.path.isfile(entry.path) if is_link else entry.is_file()):
                continue
            target = Path(os.path.realpath(entry.path)) if is_link else folder
            if not target.is_relative_to(root):
                leaving[index_of[name]] = f"has file_name {_shown(name)}, a link out of {image_folder}"
            present.add(name)
    table.refuse(leaving, Defect.OUTSIDE)
    missing = {i: f"has file_name {_shown(name)}, not found" for i, name in enumerate(names) if name not in present}
    if missing:
        first = _shown(names[min(missing)])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"image {first}{more} not found in {image_folder}; fetch the images again"
        table.refuse(missing, Defect.MISSING, message)


def _read_boxes(table: _Table, image_ids: np.ndarray, category_ids: np.ndarray, sizes_px: np.ndarray) -> dict[str, Any]:
    """The fields of Annotations from `box_starts` on."""
    image_of_box = _known(table, "image_id", image_ids, Defect.UNKNOWN_IMAGE)
    labels = _known(table, "category_id", category_ids, Defect.UNKNOWN_CATEGORY) + 1
    crowd = table.column("iscrowd", {int, bool, type(None)}, "0 or 1")
    neither = (i for i, value in enumerate(crowd) if value not in (0, 1, None))
    table.refuse(dict.fromkeys(neither, "has an 'iscrowd' that is neither 0 nor 1"))
    is_crowd = np.array(list(map(bool, crowd)), dtype=bool)
    boxes_xywh_px = _read_xywh(table)
    stated_areas_px = _floats(table, "area", table.column("area", {int, float, type(None)}, "a number"))
    annotation_ids = _annotation_ids(table)

    sizes = sizes_px[image_of_box].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        boxes_px = np.concatenate([boxes_xywh_px[:, :2], boxes_xywh_px[:, :2] + boxes_xywh_px[:, 2:]], axis=1)
        box_areas_px = boxes_xywh_px[:, 2] * boxes_xywh_px[:, 3]
        finite = np.isfinite(boxes_px).all(axis=1) & np.isfinite(box_areas_px)
        limits = np.concatenate([sizes, sizes], axis=1)
        clipped_px = np.clip(boxes_px, 0, limits)
        sized = finite & (boxes_xywh_px[:, 2:] >= MIN_BOX_SIDE_PX).all(axis=1)
        # The slack is for x + w - x, which may round to less than w.
        kept = sized & (clipped_px[:, 2:] - clipped_px[:, :2] >= MIN_BOX_SIDE_PX - 1e-9).all(axis=1)
        overhanging = kept & (np.abs(clipped_px - boxes_px) > CLIP_TOLERANCE_PX).any(axis=1)
    repairs = {
        "boxes that are not finite dropped": ~finite,
        "zero-size boxes dropped": finite & ~sized,
        "boxes outside the image dropped": sized & ~kept,
        "boxes clipped to the image": overhanging,
    }

    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(image_of_box[rows], kind="stable")]
    counts = np.bincount(image_of_box[rows], minlength=len(image_ids))
    return {
        "box_starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "boxes_ltrb": (clipped_px[rows] / limits[rows]).astype(np.float32),
        "boxes_xywh_px": boxes_xywh_px[rows],
        "areas_px": np.where(np.isfinite(stated_areas_px), stated_areas_px, box_areas_px)[rows],
        "labels": labels[rows],
        "is_crowd": is_crowd[rows],
        "annotation_ids": annotation_ids[rows],
        "repaired_rows": {what: np.flatnonzero(mask) for what, mask in repairs.items() if mask.any()},
    }


def _known(table: _Table, key: str, ids: np.ndarray, defect: Defect) -> np.ndarray:
    """The position in `ids` of every row's `key`, int64."""
    values = table.integers(key)
    order = np.argsort(ids)
    position = order[np.minimum(np.searchsorted(ids, values, sorter=order), len(ids) - 1)]
    kind = key.removesuffix("_id")
    unknown = np.flatnonzero(ids[position] != values).tolist()
    table.refuse({i: f"has {key} {values[i]}, but no {kind} has that id" for i in unknown}, defect)
    return position


def _read_xywh(table: _Table) -> np.ndarray:
    """M x 4 float64, possibly not finite: Python's json reads NaN and Infinity."""
    boxes = table.column("bbox", {list}, "a list of 4 numbers")
    numbers = list(chain.from_iterable(boxes))
    if not (set(map(len, boxes)) <= {4} and set(map(type, numbers)) <= {int, float}):
        table.refuse(
            {
                i: f"has 'bbox' {_shown(box)}, which is not a list of 4 numbers"
                for i, box in enumerate(boxes)
                if not (len(box) == 4 and set(map(type, box)) <= {int, float})
            }
        )
    return _floats(table, "bbox", numbers, per_row=4).reshape(-1, 4)


def _floats(table: _Table, key: str, numbers: list[Any], per_row: int = 1) -> np.ndarray:
    """Float64 of the numbers, `per_row` for each row of the table; None becomes NaN."""
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:
        large = [i for i, number in enumerate(numbers) if number is not None and abs(number) > sys.float_info.max]
        table.refuse(dict.fromkeys((i // per_row for i in large), f"has a number too large in '{key}'"))
        raise


def _annotation_ids(table: _Table) -> np.ndarray:
    column = table.column("id", {int, type(None)}, "an integer")
    numbered = np.arange(1, len(column) + 1, dtype=np.int64)
    if None in column:
        return numbered
    table.refuse_repeated("id", column)
    ids = table.integers("id")
    # pycocotools notes the id of the box a detection matched, and 0 for none.
    return ids if (ids > 0).all() else numbered
