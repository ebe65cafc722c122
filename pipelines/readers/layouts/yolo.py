"""YOLO's data sets: images, and beside each or in a folder of their own a text file of its boxes.

- ultralytics, Roboflow and FiftyOne: data.yaml with `names`, and for each split a folder, a list of images, or several
- images/{split} and labels/{split}, {split}/images and {split}/labels, or images/ and labels/ alone: Label Studio
- darknet and CVAT: obj.data, which names lists of images, and obj.names; or obj_train_data/ and obj.names alone

A tool that wrote a path of another machine, or one that begins in another folder, is not taken at its word: the path's
last parts are looked for in the data folder.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipelines.readers.layouts.coco import IMAGE_FOLDERS, folders_below
from pipelines.readers.layouts.source import Form, Source
from pipelines.readers.layouts.yolo_labels import LabelFiles, in_any_case
from pipelines.readers.rows import shown
from pipelines.readers.text import decode, read_lines
from ssd.errors import InputError
from ssd.images import SUFFIXES

ONLY_SPLIT = "all"
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_STATES_CLASSES = re.compile(r"(?:^|[{,])\s*[\"']?(?:names|nc)[\"']?\s*:", re.MULTILINE)
_NOTHING = {"", "~", "null", "Null", "NULL"}
"""What YAML reads as nothing."""
_FOLDERS_OF_NO_SPLIT = {name.lower() for name in (*IMAGE_FOLDERS, "obj_train_data")}
_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")


def sources(data_folder: Path) -> dict[str, Source]:
    """All splits, by name. One that a file states, and that is not there, says so when it is read."""
    nowhere: dict[str, Source] = {}
    names_file = None
    for suffixes, read in (((".yaml", ".yml"), _of_yaml), ((".data",), _of_darknet)):
        for file in _listed(data_folder, suffixes):
            found, names_of = read(data_folder, file)
            if any(source.lists for source in found.values()):
                return found
            nowhere |= found
            names_file = names_file or names_of
    return _of_folders(data_folder, names_file) or nowhere


def read_yaml(file: Path) -> dict[str, Any]:
    """What a file states, {} where that is no mapping. All values are text, mappings or lists: `names: [yes, 011]` are
    names, and neither true nor 9. Raises InputError."""
    try:
        content = yaml.load("\n".join(_lines_of(file)), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: not valid YAML ({reason}); correct it") from None
    return content if isinstance(content, dict) else {}


def _lines_of(file: Path) -> list[str]:
    try:
        return decode(file.read_bytes())[0].splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: UTF-16 that is cut short; save it as UTF-8") from None


def _of_yaml(data_folder: Path, file: Path) -> tuple[dict[str, Source], Path | None]:
    """The splits that the file states, and the file itself where it names classes."""
    if not _STATES_CLASSES.search("\n".join(_lines_of(file))):
        return {}, None  # a file of something else, which may be broken as it likes
    content = read_yaml(file)
    if not {"names", "nc"} & content.keys():
        return {}, None
    base = content.get("path")
    found = {}
    for split in ("train", "val", "valid", "validation", "test"):
        stated = content.get(split)
        places = [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, str)]
        if places := [each for each in places if each not in _NOTHING]:
            found[split] = _stated(data_folder, file, split, places, names_file=file, base=base)
    return found, file if "names" in content else None


def _of_darknet(data_folder: Path, file: Path) -> tuple[dict[str, Source], Path | None]:
    """obj.data: `train = data/train.txt`, `valid = ...`, `names = data/obj.names`."""
    pairs = (line.partition("=") for line in read_lines(file) if "=" in line)
    stated = {key.strip(): value.strip() for key, _, value in pairs}
    names = _resolve(data_folder, file.parent, None, stated.get("names", "obj.names")) or _class_file(data_folder)
    splits = [split for split in ("train", "valid", "val", "test") if stated.get(split)]
    return {split: _stated(data_folder, file, split, [stated[split]], names_file=names) for split in splits}, names


def _stated(
    data_folder: Path, file: Path, split: str, stated: list[str], *, names_file: Path | None, base: Any = None
) -> Source:
    """The split of the folders and lists that a file states."""
    places = {text: _resolve(data_folder, file.parent, base, text) for text in stated}
    there = [place for place in places.values() if place is not None]
    if len(there) == len(places):
        return _source(data_folder, split, there, names_file)
    (text, *_) = (text for text, place in places.items() if place is None)
    lacking = (
        f"{file}: its {split!r} is {shown(text)}, which is not there; put it into the data folder, correct the path, "
        "or pass --train-split and --val-split with splits that are there"
    )
    return Source(split, Form.YOLO, file, data_folder, lists=tuple(there), names_file=names_file, lacking=lacking)


def _of_folders(data_folder: Path, names_file: Path | None) -> dict[str, Source]:
    """A split for each folder of images that has labels. names_file: what names the classes, if not a file that is
    called so."""
    found: dict[str, Source] = {}
    labels = LabelFiles(data_folder)
    for folder in folders_below(data_folder, depth=2):
        if not labels.has_labels(_images_in(folder)):
            continue
        parts = folder.relative_to(data_folder).parts
        split = "/".join(part for part in parts if part.lower() not in _FOLDERS_OF_NO_SPLIT) or ONLY_SPLIT
        split = {"obj_valid_data": "valid", "obj_test_data": "test"}.get(split, split)
        if split not in found:
            names = names_file or _class_file(data_folder, folder, *labels.places(folder, with_parents=True))
            found[split] = _source(data_folder, split, [folder], names)
    return found


def _source(data_folder: Path, split: str, places: list[Path], names_file: Path | None) -> Source:
    """places: folders of images, or lists of them."""
    first = places[0]
    inside = all(data_folder in (place, *place.parents) for place in places)
    is_alone = len(places) == 1 and first.is_dir()
    image_folder = first if is_alone else data_folder if inside else Path(os.path.commonpath(places))
    return Source(
        split, Form.YOLO, first, image_folder, lists=tuple(places), names_file=names_file, data_folder=data_folder
    )


def _resolve(data_folder: Path, beside: Path, base: Any, stated: str) -> Path | None:
    """The folder or file that a path of a tool means: as it is, or its last parts in the data folder."""
    stated = stated.replace("\\", "/")
    bases = [beside / base] if isinstance(base, str) else []
    for folder in (*bases, beside, data_folder):
        if (place := Path(os.path.normpath(folder / stated))).exists() and _is_inside(place, data_folder):
            return place
    parts = [part for part in stated.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for folder in (beside, data_folder):
            if (place := folder.joinpath(*parts[start:])).exists():
                return place
    places = (in_any_case(folder, *parts[start:]) for start in range(len(parts)) for folder in (beside, data_folder))
    return next((place for place in places if place is not None), None)


def _is_inside(place: Path, folder: Path) -> bool:
    real = Path(os.path.realpath(place))
    return Path(os.path.realpath(folder)) in (real, *real.parents)


def _class_file(*folders: Path) -> Path | None:
    """The first file that is named as one of classes, or the only one of names."""
    for folder in dict.fromkeys(folders):
        files = [file for name in _CLASS_FILES if (file := in_any_case(folder, name)) and file.is_file()]
        of_names = _listed(folder, (".names",))
        if files or len(of_names) == 1:
            return (files or of_names)[0]
    return None


def _images_in(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")]


def _listed(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """data.yaml first. Hidden files are none, above all macOS's "._data.yaml"."""
    try:
        names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError:
        return []
    files = [folder / name for name in names if name.lower().endswith(tuple(suffixes))]
    return sorted(files, key=lambda file: (file.stem not in ("data", "dataset"), file.name))


def images_of(place: Path, data_folder: Path) -> list[Path]:
    """The images of a folder, with those in folders below it, or of a list with a path a line."""
    if place.is_dir():
        return [image for folder in folders_below(place, depth=4) for image in _images_in(folder)]
    lines = [line for line in read_lines(place) if not line.startswith("#")]
    return [_resolve(data_folder, place.parent, None, line) or data_folder / Path(line).name for line in lines]
