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
from pipelines.readers.text import decode, read_lines
from ssd.errors import InputError
from ssd.images import SUFFIXES

ONLY_SPLIT = "all"
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")
_LABEL_FOLDERS = ("labels", "Labels", "label", "annotations")
_NUMBERS = re.compile(rb"\s*(?:\d+(?:[ \t]+-?[\d.eE+-]+){4,}\s*)")


def sources(data_folder: Path) -> dict[str, Source]:
    """All splits, by name."""
    for file in _listed(data_folder, (".yaml", ".yml")):
        if found := _of_yaml(data_folder, file):
            return found
    for file in _listed(data_folder, (".data",)):
        if found := _of_darknet(data_folder, file):
            return found
    return _of_folders(data_folder)


def read_yaml(file: Path) -> dict[str, Any]:
    """Raises InputError where the file holds no mapping."""
    try:
        content = yaml.safe_load("\n".join(_lines_of(file)))
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: not valid YAML ({reason}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no 'names' and splits; correct it, or take it away")
    return content


def _lines_of(file: Path) -> list[str]:
    try:
        return decode(file.read_bytes())[0].splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: UTF-16 that is cut short; save it as UTF-8") from None


def _of_yaml(data_folder: Path, file: Path) -> dict[str, Source]:
    content = read_yaml(file)
    if not {"names", "nc"} & content.keys():
        return {}
    base = content.get("path")
    found = {}
    for split in ("train", "val", "valid", "validation", "test"):
        stated = content.get(split)
        places = [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, str) and each]
        resolved = [_resolve(data_folder, file.parent, base, place) for place in places]
        there = [place for place in resolved if place is not None]
        if there:
            found[split] = _source(data_folder, split, there, file)
    return found


def _of_darknet(data_folder: Path, file: Path) -> dict[str, Source]:
    """obj.data: `train = data/train.txt`, `valid = ...`, `names = data/obj.names`."""
    pairs = (line.partition("=") for line in read_lines(file) if "=" in line)
    stated = {key.strip(): value.strip() for key, _, value in pairs}
    names = _resolve(data_folder, file.parent, None, stated.get("names", "obj.names")) or _class_file(data_folder)
    found: dict[str, Source] = {}
    for split in ("train", "valid", "val", "test"):
        if split in stated and (place := _resolve(data_folder, file.parent, None, stated[split])):
            found[split] = _source(data_folder, split, [place], names)
    return found


def _of_folders(data_folder: Path) -> dict[str, Source]:
    """A split for each folder of images that has labels."""
    found: dict[str, Source] = {}
    for folder in folders_below(data_folder, depth=2):
        images = _images_in(folder)
        if not images or not any(_holds_boxes(label_file(image)) for image in images[:20]):
            continue
        parts = folder.relative_to(data_folder).parts
        split = "/".join(part for part in parts if part not in (*IMAGE_FOLDERS, "obj_train_data")) or ONLY_SPLIT
        split = {"obj_valid_data": "valid", "obj_test_data": "test"}.get(split, split)
        found.setdefault(split, _source(data_folder, split, [folder], _class_file(data_folder, folder)))
    return found


def _source(data_folder: Path, split: str, places: list[Path], names_file: Path | None) -> Source:
    """places: folders of images, or lists of them."""
    first = places[0]
    inside = all(data_folder in (place, *place.parents) for place in places)
    is_alone = len(places) == 1 and first.is_dir()
    image_folder = first if is_alone else data_folder if inside else Path(os.path.commonpath(places))
    return Source(split, Form.YOLO, first, image_folder, lists=tuple(places), names_file=names_file)


def label_file(image: Path) -> Path:
    """Of the image: the same path with 'labels' for the last 'images', or beside it, whichever is there."""
    parts = image.parts
    places = [image.with_suffix(".txt")]
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] in IMAGE_FOLDERS:
            folder = Path(*parts[:at])
            places += [folder.joinpath(name, *parts[at + 1 : -1], f"{image.stem}.txt") for name in _LABEL_FOLDERS]
            break
    else:
        places += [image.parent.parent / name / f"{image.stem}.txt" for name in _LABEL_FOLDERS]
    return next((place for place in reversed(places) if os.path.isfile(place)), places[-1])


def _resolve(data_folder: Path, beside: Path, base: Any, stated: str) -> Path | None:
    """The folder or file that a path of a tool means: as it is, or its last parts in the data folder."""
    stated = stated.replace("\\", "/")
    bases = [beside / base] if isinstance(base, str) else []
    for folder in (*bases, beside, data_folder):
        if os.path.exists(place := Path(os.path.normpath(folder / stated))) and _is_inside(place, data_folder):
            return place
    parts = [part for part in stated.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for folder in (beside, data_folder):
            if os.path.exists(place := folder.joinpath(*parts[start:])):  # False of a name that is too long
                return place
    return None


def _is_inside(place: Path, folder: Path) -> bool:
    real = Path(os.path.realpath(place))
    return Path(os.path.realpath(folder)) in (real, *real.parents)


def _class_file(*folders: Path) -> Path | None:
    places = (folder / name for folder in folders for name in _CLASS_FILES)
    return next((place for place in places if place.is_file()), None)


def _images_in(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")]


def _holds_boxes(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return _NUMBERS.match(stream.read(1000)) is not None
    except OSError:
        return False


def _listed(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """data.yaml first."""
    try:
        files = [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(tuple(suffixes))]
    except OSError:
        return []
    return sorted(files, key=lambda file: (file.stem not in ("data", "dataset"), file.name))


def images_of(place: Path, data_folder: Path) -> list[Path]:
    """The images of a folder, with those in folders below it, or of a list with a path a line."""
    if place.is_dir():
        return [image for folder in folders_below(place, depth=4) for image in _images_in(folder)]
    lines = [line for line in read_lines(place) if not line.startswith("#")]
    return [_resolve(data_folder, place.parent, None, line) or data_folder / Path(line).name for line in lines]
