"""YOLO's data sets: images, and beside each or in a folder of their own a text file of its boxes.

- ultralytics, Roboflow and FiftyOne: data.yaml with `names`, and for each split a folder, a list of images, or several
- images/{split} and labels/{split}, {split}/images and {split}/labels, or images/ and labels/ alone: Label Studio
- darknet and CVAT: obj.data, which names lists of images, and obj.names; or obj_train_data/ and obj.names alone
- lists alone, such as train.txt and val.txt in the folder itself or in ImageSets/, beside the files of the above
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipelines.readers.layouts.coco import IMAGE_FOLDERS, folders_below
from pipelines.readers.layouts.folders import folder_in_any_case, images_in, in_any_case, text_files
from pipelines.readers.layouts.source import Form, Source, is_split_name
from pipelines.readers.layouts.yolo_labels import LabelFiles
from pipelines.readers.layouts.yolo_lists import images_of, is_list, resolve
from pipelines.readers.rows import shown
from pipelines.readers.text import Note, no_note, read_lines, read_text
from ssd.errors import InputError

ONLY_SPLIT = "all"
LISTS = ("ImageSets", "Main")
_MOST_LISTS = 64
_MOST_LOOKED_AT = 1000
"""Images of a list, to see whether it has any with labels."""
_LARGEST_BYTES = 2**22
"""More is not a data.yaml or obj.data, but weights or the like."""
_STATES_CLASSES = re.compile(r"(?:^|[{,])\s*[\"']?(?:names|nc)[\"']?\s*:", re.MULTILINE)
_NOTHING = {"", "~", "null", "Null", "NULL"}
"""What YAML reads as nothing."""
_FOLDERS_OF_NO_SPLIT = {name.lower() for name in (*IMAGE_FOLDERS, "obj_train_data")}
_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")


def sources(data_folder: Path) -> dict[str, Source]:
    """All splits, by name. One that a file states, and that is not there, says so when it is read."""
    nowhere: dict[str, Source] = {}
    names_file = None
    beside = [data_folder]
    if any(folder_in_any_case(data_folder, name) for name in ("images", "labels")):  # then others are not sets
        beside += [folder for folder in folders_below(data_folder, depth=1) if folder != data_folder]
    for suffixes, read in (((".yaml", ".yml"), _of_yaml), ((".data",), _of_darknet)):
        for file in (file for folder in beside for file in _listed(folder, suffixes)):
            if not file.is_file() or file.stat().st_size > _LARGEST_BYTES:  # a link may lead nowhere
                continue
            found, names_of = read(data_folder, file)
            if any(source.lists for source in found.values()):
                return found
            nowhere |= found
            names_file = names_file or names_of
    folders = _of_folders(data_folder, names_file)
    if any(map(is_split_name, folders)):
        return folders
    # Lists share out what lies in folders of no split.
    return _of_lists(data_folder, names_file) or folders or nowhere


def sources_of_file(data_folder: Path, file: Path) -> dict[str, Source]:
    """The splits that a file states which is named by hand: data.yaml, obj.data, or a list of images."""
    if file.suffix.lower() in (".yaml", ".yml"):
        return _of_yaml(data_folder, file)[0]
    if file.suffix.lower() == ".data":
        return _of_darknet(data_folder, file)[0]
    if file.suffix.lower() == ".txt" and is_list(file, data_folder):
        return {file.stem: _of_list(data_folder, file, None)}
    return {}


def read_yaml(file: Path, note: Note = no_note) -> dict[str, Any]:
    """What a file states, {} where that is no mapping. All values are text, mappings or lists: `names: [yes, 011]` are
    names, and neither true nor 9. Raises InputError."""
    try:
        content = yaml.load("\n".join(read_text(file, note).splitlines()), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: not valid YAML ({reason}); correct it") from None
    return content if isinstance(content, dict) else {}


def _of_yaml(data_folder: Path, file: Path) -> tuple[dict[str, Source], Path | None]:
    """The splits that the file states, and the file itself where it names classes."""
    if not _STATES_CLASSES.search(read_text(file)):
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
    names = resolve(data_folder, file.parent, None, stated.get("names", "obj.names"))[0] or _class_file(data_folder)
    splits = [split for split in ("train", "valid", "val", "test") if stated.get(split)]
    return {split: _stated(data_folder, file, split, [stated[split]], names_file=names) for split in splits}, names


def _stated(
    data_folder: Path, file: Path, split: str, stated: list[str], *, names_file: Path | None, base: Any = None
) -> Source:
    """The split of the folders and lists that a file states."""
    places = {text: resolve(data_folder, file.parent, base, text) for text in stated}
    there = [place for place, _ in places.values() if place is not None]
    if len(there) == len(places):
        moved = tuple(text for text, (_, is_as_stated) in places.items() if not is_as_stated)
        return _source(data_folder, split, there, names_file)._replace(moved=moved)
    text = next(text for text, (place, _) in places.items() if place is None)
    lacking = (
        f"{file}: its {split!r} is {shown(text)}, which is not there; put it into the data folder, correct the path, "
        "or pass --train-split and --val-split with splits that are there"
    )
    return Source(split, Form.YOLO, file, data_folder, lists=tuple(there), names_file=names_file, lacking=lacking)


def _of_lists(data_folder: Path, names_file: Path | None) -> dict[str, Source]:
    """A split for each list of images with labels, where the name of one says that it is of a split."""
    places = (data_folder, *(folder_in_any_case(data_folder, *parts) for parts in (("ImageSets",), LISTS)))
    files = [file for place in places for file in text_files(place)]
    if not any(is_split_name(_split_of(file)) for file in files):
        return {}
    if len(files) > _MOST_LISTS:  # labels beside the images
        files = [file for file in files if is_split_name(_split_of(file))]
    labels = LabelFiles(data_folder)
    files = [file for file in files if _is_readable_list(file, data_folder)]
    listed = bool(names_file or _class_file(data_folder))
    files = [
        file
        for file in files
        if labels.has_labels(images_of(file, data_folder, most=_MOST_LOOKED_AT), are_classes_listed=listed)
    ]
    if not any(is_split_name(_split_of(file)) for file in files):
        return {}
    return {_split_of(file): _of_list(data_folder, file, names_file)._replace(split=_split_of(file)) for file in files}


def _split_of(list_file: Path) -> str:
    """autosplit_train.txt is ultralytics'."""
    return list_file.stem.removeprefix("autosplit_")


def _is_readable_list(file: Path, data_folder: Path) -> bool:
    """Raises InputError for a file that cannot be read and is named as a split."""
    try:
        return is_list(file, data_folder)
    except InputError:
        if is_split_name(file.stem):
            raise
        return False


def _of_list(data_folder: Path, file: Path, names_file: Path | None) -> Source:
    folders = dict.fromkeys(image.parent for image in images_of(file, data_folder, most=1))
    labels = LabelFiles(data_folder)
    places = [place for folder in folders for place in labels.places(folder, with_parents=True)]
    names_file = names_file or next(
        (each for each in _listed(data_folder, (".yaml", ".yml")) if _of_yaml(data_folder, each)[1]), None
    )
    return _source(data_folder, file.stem, [file], names_file or _class_file(data_folder, *places))


def _of_folders(data_folder: Path, names_file: Path | None) -> dict[str, Source]:
    """A split for each folder of images that has labels. names_file: what names the classes, if not a file that is
    called so."""
    found: dict[str, Source] = {}
    labels = LabelFiles(data_folder)
    for folder in folders_below(data_folder, depth=2):
        names = names_file or _class_file(data_folder, folder, *labels.places(folder, with_parents=True))
        if not labels.has_labels(images_in(folder), are_classes_listed=names is not None):
            continue
        parts = folder.relative_to(data_folder).parts
        split = "/".join(part for part in parts if part.lower() not in _FOLDERS_OF_NO_SPLIT) or ONLY_SPLIT
        split = {"obj_valid_data": "valid", "obj_test_data": "test"}.get(split, split)
        if split not in found:
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


def _class_file(*folders: Path) -> Path | None:
    """The first file that is named as one of classes, or the only one of names."""
    for folder in dict.fromkeys(folders):
        files = [file for name in _CLASS_FILES if (file := in_any_case(folder, name)) and file.is_file()]
        of_names = _listed(folder, (".names",))
        if files or len(of_names) == 1:
            return (files or of_names)[0]
    return None


def _listed(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """data.yaml first. Hidden files are none, above all macOS's "._data.yaml"."""
    try:
        names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError:
        return []
    files = [folder / name for name in names if name.lower().endswith(tuple(suffixes))]
    return sorted(files, key=lambda file: (file.stem not in ("data", "dataset"), file.name))
