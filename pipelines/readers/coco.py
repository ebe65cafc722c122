"""The strict reader of COCO annotation files, the only place that parses them; what it passes is clean.

Strict, because what comes after is not: DALI's reader crashes on a cut file, takes an unknown category for background
and follows `../` out of the data folder. Whatever would change what is learned or scored is refused with one line that
names the entry. Boxes that no detector could learn are dropped or clipped instead, and counted in `repairs`, because
COCO itself has some. `readers.reading` is the same reader, run again after what it refused was mended or left out.

COCO has 860,000 boxes, so the tables are read by columns.
"""

import io
import json
import os
import sys
import unicodedata
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.annotations import MAX_IMAGE_SIDE_PX, Annotations, Category
from pipelines.box_counts import COCO, count_boxes
from pipelines.readers import text
from pipelines.readers.json_stream import load_object
from pipelines.readers.parts.compact import PART_KEYS, compact
from pipelines.readers.parts.keypoints import read_keypoints
from pipelines.readers.parts.segmentations import read_masks
from pipelines.readers.rows import Defect, Table, shown, states_no_box
from ssd.errors import InputError
from ssd.views import BOXES, ObjectParts

MIN_BOX_SIDE_PX = 0.1
"""Smaller boxes are dropped; the threshold of DALI's COCO reader."""

CLIP_TOLERANCE_PX = 0.5
"""Boxes that overhang the image by no more are clipped without being counted: annotators round to pixels."""

# What the reader looks at of a row for boxes; COCO's masks are three quarters of a file.
_KEYS = (
    *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "name", "file_name", "width", "height"),
    *("images", "annotations", "categories"),
)


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


def read_annotations(data_folder: Path, split: str, parts: ObjectParts = BOXES) -> Annotations:
    """Reads and checks one split in COCO's own layout, and mends nothing; every image exists, every number is in range.

    parts: what is read of the objects beside their boxes. Raises InputError, one line that names the file, the entry
    and the remedy, for anything else.
    """
    image_folder, file = find_split(data_folder, split)
    return annotations_of(read_document(file, parts), file, image_folder, parts)


def annotations_of(
    document: dict[str, Any], file: Path, image_folder: Path, parts: ObjectParts = BOXES, form: str = COCO
) -> Annotations:
    """Checks the content of one file. form: which its boxes were stated in, see `pipelines.box_counts`.

    Raises BadRows for entries that are wrong, InputError for what holds them.
    """
    # Of both tables first: without a row that can be read there is no category either, and that is not the cause.
    category_table, images = Table(document, "categories", file), Table(document, "images", file)
    categories = _read_categories(category_table)
    image_ids, file_names, sizes_px = _read_images(images)
    _check_on_disk(images, file_names, image_folder)
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    table = Table(document, "annotations", file)
    rows, boxes = _read_boxes(table, image_ids, category_ids, sizes_px, form)
    of_objects: dict[str, Any] = {}
    if parts.masks:
        image_of_row = np.repeat(np.arange(len(image_ids)), np.diff(boxes["box_starts"]))
        of_objects["masks"], shortened = read_masks(table, rows, sizes_px[image_of_row])
        boxes["repaired_rows"] |= shortened
    if parts.keypoints:
        of_objects["keypoints"] = read_keypoints(category_table, table, rows, boxes["labels"])
    return Annotations(
        file=file,
        image_folder=image_folder,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        sizes_px=sizes_px,
        **boxes,
        **of_objects,
    )


def read_document(file: Path, parts: ObjectParts = BOXES) -> dict[str, Any]:
    """The file's JSON object, without what the reader does not look at. Raises InputError that names the place where it
    is none."""
    try:
        with file.open("rb") as stream:
            return parse_document(stream, file, parts)
    except OSError as error:
        raise _cannot_be_read(file, error) from None


def read_document_of_any_encoding(file: Path, parts: ObjectParts = BOXES) -> tuple[dict[str, Any], str]:
    """As `read_document`, and what the encoding is called where it is not UTF-8 without a byte order mark, else ''."""
    try:
        with file.open("rb") as stream:
            is_marked = text.without_mark(stream.read(4))[1]
        if not is_marked:
            try:
                return read_document(file, parts), ""
            except InputError as error:
                if not isinstance(error.__cause__, UnicodeDecodeError):
                    raise
        content, encoding = text.decode(file.read_bytes())
    except OSError as error:
        raise _cannot_be_read(file, error) from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: UTF-16 that is cut short; fetch it again or save it as UTF-8") from None
    in_utf8 = io.BytesIO(content.encode(errors="surrogatepass"))
    return parse_document(in_utf8, file, parts), "UTF-8 with a byte order mark" if encoding == "UTF-8" else encoding


def _cannot_be_read(file: Path, error: OSError) -> InputError:
    return InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions")


def parse_document(stream: BinaryIO, file: Path, parts: ObjectParts = BOXES) -> dict[str, Any]:
    """As `read_document`, of UTF-8; file: for the messages."""
    keys = _KEYS if parts == BOXES else (*_KEYS, *PART_KEYS)

    def without_the_rest(row: dict[str, Any]) -> dict[str, Any]:
        # Called for each object as soon as it is parsed: COCO's masks, three quarters of it, are never all in memory.
        # A new dict with keys of ours, because the old one would keep the room, and has each key as a text of its own.
        kept = {key: row[key] for key in keys if key in row}
        if keys is not _KEYS:
            return compact(kept)
        if "segmentation" in row and states_no_box(row.get("bbox")):  # then the box is that of the mask
            return compact({**kept, "segmentation": row["segmentation"]})
        return kept

    try:
        document = load_object(stream, without_the_rest)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; fetch it again or save it as UTF-8") from error
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


def _read_categories(table: Table) -> tuple[Category, ...]:
    if not table.rows:
        raise InputError(f"{table.file}: 'categories' is empty; list the categories that its annotations use")
    ids = table.integers("id").tolist()
    table.refuse_repeated("id", ids)
    names = table.column("name", {str}, "text")
    table.refuse({i: "has an empty 'name'" for i, name in enumerate(names) if not name.strip()})
    # JSON can state half of a surrogate pair, which no console or file would take later.
    half = (i for i, name in enumerate(names) if name != name.encode(errors="ignore").decode())
    table.refuse(dict.fromkeys(half, "has a 'name' that is not Unicode"))
    # A line break cannot be drawn beside a box, and others would steer the terminal.
    controls = (i for i, name in enumerate(names) if "Cc" in map(unicodedata.category, name))
    table.refuse(dict.fromkeys(controls, "has a 'name' with control characters"))
    return tuple(map(Category, ids, names))


def _read_images(table: Table) -> tuple[np.ndarray, list[str], np.ndarray]:
    if not table.rows:
        raise InputError(f"{table.file}: 'images' is empty; choose a split with images")
    ids = table.integers("id")
    table.refuse_repeated("id", ids.tolist())
    names = table.column("file_name", {str}, "text")
    # Names must be canonical as well as harmless: 'a//b.jpg' would hide that 'a/b.jpg' is listed twice.
    table.refuse(
        {
            i: f"has file_name {shown(name)}, not a plain path inside the image folder"
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


def _check_on_disk(table: Table, names: list[str], image_folder: Path) -> None:
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
            place = f"{shown(parent or '.')} of {image_folder} ({error.strerror})"
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
                leaving[index_of[name]] = f"has file_name {shown(name)}, a link out of {image_folder}"
            present.add(name)
    table.refuse(leaving, Defect.OUTSIDE)
    missing = {i: f"has file_name {shown(name)}, not found" for i, name in enumerate(names) if name not in present}
    if missing:
        first = shown(names[min(missing)])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"image {first}{more} not found in {image_folder}, {_what_is_in(image_folder)}; {_FETCH}"
        table.refuse(missing, Defect.MISSING, message)


_FETCH = "name the folder by --train-images or --val-images, correct the names, or fetch what is not there"


def _what_is_in(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        return f"which cannot be listed ({error.strerror})"
    entries = f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"
    return f"which has {entries}, such as {shown(names[0])}" if names else "which is empty"


def _read_boxes(
    table: Table, image_ids: np.ndarray, category_ids: np.ndarray, sizes_px: np.ndarray, form: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of the table that are kept, by image, and the fields of Annotations from `box_starts` on."""
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
        negative = finite & (boxes_xywh_px[:, 2:] < 0).any(axis=1)
        sized = finite & (boxes_xywh_px[:, 2:] >= MIN_BOX_SIDE_PX).all(axis=1)
        # The slack is for x + w - x, which may round to less than w.
        kept = sized & (clipped_px[:, 2:] - clipped_px[:, :2] >= MIN_BOX_SIDE_PX - 1e-9).all(axis=1)
        overhanging = kept & (np.abs(clipped_px - boxes_px) > CLIP_TOLERANCE_PX).any(axis=1)
    repairs = {
        "boxes that are not finite dropped": ~finite,
        "zero-size boxes dropped": finite & ~sized & ~negative,
        "boxes of negative size (corners exchanged?) dropped": negative,
        "boxes outside the image dropped": sized & ~kept,
        "boxes clipped to the image": overhanging,
    }

    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(image_of_box[rows], kind="stable")]
    counts = np.bincount(image_of_box[rows], minlength=len(image_ids))
    return rows, {
        "box_starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "boxes_ltrb": (clipped_px[rows] / limits[rows]).astype(np.float32),
        "boxes_xywh_px": boxes_xywh_px[rows],
        "areas_px": np.where(np.isfinite(stated_areas_px), stated_areas_px, box_areas_px)[rows],
        "labels": labels[rows],
        "is_crowd": is_crowd[rows],
        "annotation_ids": annotation_ids[rows],
        "box_counts": count_boxes(boxes_xywh_px, sizes, CLIP_TOLERANCE_PX, form, stated_areas_px),
        "repaired_rows": {what: np.flatnonzero(mask) for what, mask in repairs.items() if mask.any()},
    }


def _known(table: Table, key: str, ids: np.ndarray, defect: Defect) -> np.ndarray:
    """The position in `ids` of every row's `key`, int64."""
    values = table.integers(key)
    order = np.argsort(ids)
    position = order[np.minimum(np.searchsorted(ids, values, sorter=order), len(ids) - 1)]
    kind = key.removesuffix("_id")
    unknown = np.flatnonzero(ids[position] != values).tolist()
    if unknown:
        hint = _shift(values, ids)
        table.refuse({i: f"has {key} {values[i]}, but no {kind} has that id{hint}" for i in unknown}, defect)
    return position


def _shift(values: np.ndarray, ids: np.ndarray) -> str:
    """What to say where all values are one off the ids: removing those that fit none would leave wrong ones."""
    for shift in (-1, 1):
        if values.min() + shift == ids.min() and np.isin(values + shift, ids).all():
            return f" (do all begin at {values.min()}, and the ids at {ids.min()}? Then shift them, and remove none)"
    return ""


def _read_xywh(table: Table) -> np.ndarray:
    """M x 4 float64, possibly not finite: Python's json reads NaN and Infinity."""
    boxes = table.column("bbox", {list}, "a list of 4 numbers")
    numbers = list(chain.from_iterable(boxes))
    if not (set(map(len, boxes)) <= {4} and set(map(type, numbers)) <= {int, float}):
        table.refuse(
            {
                i: f"has 'bbox' {shown(box)}, which is not a list of 4 numbers"
                for i, box in enumerate(boxes)
                if not (len(box) == 4 and set(map(type, box)) <= {int, float})
            }
        )
    return _floats(table, "bbox", numbers, per_row=4).reshape(-1, 4)


def _floats(table: Table, key: str, numbers: list[Any], per_row: int = 1) -> np.ndarray:
    """Float64 of the numbers, `per_row` for each row of the table; None becomes NaN."""
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:
        large = [i for i, number in enumerate(numbers) if number is not None and abs(number) > sys.float_info.max]
        table.refuse(dict.fromkeys((i // per_row for i in large), f"has a number too large in '{key}'"))
        raise


def _annotation_ids(table: Table) -> np.ndarray:
    column = table.column("id", {int, type(None)}, "an integer")
    numbered = np.arange(1, len(column) + 1, dtype=np.int64)
    if None in column:
        return numbered
    table.refuse_repeated("id", column)
    ids = table.integers("id")
    # pycocotools notes the id of the box a detection matched, and 0 for none.
    return ids if (ids > 0).all() else numbered
