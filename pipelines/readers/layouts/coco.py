"""COCO's annotation files in a data folder, wherever tools put them.

- COCO: annotations/instances_{split}.json, {split}/ or images/{split}/
- CVAT: annotations/instances_default.json, images/ or images/default/
- Roboflow: {split}/_annotations.coco.json beside the images
- FiftyOne: labels.json and data/, or {split}/labels.json and {split}/data/
- Label Studio: result.json and images/
- one JSON in a flat folder of images, of any name; several are a split each
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.readers.layouts.source import Form, Source

_BEGINNING_BYTES = 2**16
_MOST_FILES = 64
"""A folder with more JSON files has one an image, which no reader here takes."""
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "deepfashion")
_PREFIXES = re.compile(
    r"^(?:instances|person_keypoints|annotations?|labels?|coco|_annotations)[_.-]+(?=[A-Za-z0-9])", re.IGNORECASE
)
_SUFFIXES = re.compile(r"(?<=[A-Za-z0-9])[_.-]+(?:annotations?|instances|labels?|coco)$", re.IGNORECASE)
_OF_NO_SPLIT = {
    "",
    "instances",
    "annotation",
    "annotations",
    "label",
    "labels",
    "coco",
    "result",
    "default",
    "data",
    "_annotations",
}
_ROWS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*[{\]]')
"""A list of objects, or an empty one."""
_LISTS_OR_OBJECTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*[\[{]')
_FOLDERS_OF_ANNOTATIONS = {"annotations", "annotation", "labels", "json", "jsons", "ann", "anns"}
IMAGE_FOLDERS = ("images", "data", "JPEGImages", "imgs", "img", "Images", "image")


def standard_source(data_folder: Path, split: str) -> Source | None:
    """The split where COCO itself has it, without a look at what else is there."""
    file = data_folder / "annotations" / f"instances_{split}.json"
    places = [place for place in (data_folder / split, data_folder / "images" / split) if os.path.isdir(place)]
    if not places or not os.path.isfile(file):
        return None
    return Source(split, Form.COCO, file, places[0], _image_folders(data_folder, file, split, places[0]))


def sources(data_folder: Path, *, whatever_holds_them: bool = False) -> dict[str, Source]:
    """All splits, by name. whatever_holds_them: also those of files in which images or annotations are no lists of
    objects, for the reader to say so."""
    found: dict[str, Source] = {}
    tables = _LISTS_OR_OBJECTS if whatever_holds_them else _ROWS
    # Files of other tasks, and then those in COCO's own place, take precedence over none.
    for file in sorted(_annotation_files(data_folder, tables), key=_precedence):
        split = split_of(data_folder, file)
        if split not in found:
            found[split] = source_of_file(data_folder, file, split)
    return dict(sorted(found.items()))


def source_of_file(data_folder: Path, file: Path, split: str) -> Source:
    places = _image_folders(data_folder, file, split)
    return Source(split, Form.COCO, file, places[0], places[1:])


def split_of(data_folder: Path, file: Path) -> str:
    """The split that a file's name tells, or else its folder's: train/_annotations.coco.json -> 'train'."""
    name = file.stem
    shorter = _SUFFIXES.sub("", _PREFIXES.sub("", name.removesuffix(".coco")))
    folders = [part for part in file.relative_to(data_folder).parts[:-1] if part.lower() not in _FOLDERS_OF_ANNOTATIONS]
    if folders and (shorter.lower() in _OF_NO_SPLIT or name.startswith("_annotations")):
        return "/".join(folders)
    if folders and folders[-1].lower() != shorter.lower():
        return "/".join([*folders, shorter])
    return shorter.strip("_") or name


def files_of_split(data_folder: Path, split: str) -> list[Path]:
    """JSON files whose names or folders say that they are of that split, whatever is in them."""
    found = [
        file
        for folder in folders_below(data_folder, depth=2)
        for file in _listed(folder)
        if file.suffix.lower() == ".json" and not file.name.startswith((".", *_OTHER_TASKS)) and os.path.isfile(file)
    ]
    return [file for file in found if split_of(data_folder, file).lower() == split.lower()]


def _precedence(file: Path) -> tuple[bool, bool, bool, int, str]:
    name = file.name.lower()
    return (
        name.startswith(_OTHER_TASKS),
        not name.startswith("instances_"),
        file.parent.name != "annotations",
        len(file.parts),
        str(file),
    )


def _annotation_files(data_folder: Path, tables: re.Pattern[bytes]) -> Iterator[Path]:
    """JSON files down to the third folder that begin as COCO's do."""
    for folder in folders_below(data_folder, depth=2):
        files = [file for file in _listed(folder) if file.suffix.lower() == ".json" and not file.name.startswith(".")]
        if len(files) <= _MOST_FILES:
            yield from (file for file in files if os.path.isfile(file) and _begins_as_coco(file, tables))


def folders_below(folder: Path, depth: int) -> Iterator[Path]:
    """The folder itself, and those in it down to so many levels, in order of the alphabet."""
    yield folder
    if depth:
        for inner in _listed(folder):
            if not inner.name.startswith(".") and inner.suffix.lower() not in _NO_FOLDERS and os.path.isdir(inner):
                yield from folders_below(inner, depth - 1)


_NO_FOLDERS = {".jpg", ".jpeg", ".png", ".webp", ".txt", ".xml", ".json"}
"""What need not be asked whether it is a folder: a question a file takes minutes on network disks."""


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError:
        return []


def _begins_as_coco(file: Path, tables: re.Pattern[bytes]) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(_BEGINNING_BYTES)
    except OSError:
        return False
    is_long = len(start) == _BEGINNING_BYTES  # and its images come later, perhaps
    start = start.replace(b"\0", b"")  # of UTF-16
    opens = start.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"{")
    return opens and any(key[1] != b"categories" or is_long for key in tables.finditer(start))


def _image_folders(data_folder: Path, file: Path, split: str, *first: Path) -> tuple[Path, ...]:
    """Where the images of an annotation file may be, the likeliest first; all exist."""
    beside = file.parent
    places = [*first]
    if beside != data_folder and beside.name.lower() not in _FOLDERS_OF_ANNOTATIONS:
        places += [*(beside / name for name in IMAGE_FOLDERS), beside]
    for split_folder in (data_folder / split, data_folder / "images" / split, data_folder / "data" / split):
        places += [*(split_folder / name for name in ("images", "data")), split_folder]
    places += [beside / split, *(folder / name for folder in (beside.parent, data_folder) for name in IMAGE_FOLDERS)]
    places += [beside, beside.parent, data_folder]
    inside = [place for place in places if data_folder in (place, *place.parents) and os.path.isdir(place)]
    return tuple(dict.fromkeys(inside)) or (data_folder,)
