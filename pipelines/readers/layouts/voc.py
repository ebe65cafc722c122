"""VOC's XML files in a data folder, wherever tools put them.

- VOC and CVAT: ImageSets/Main/{split}.txt, Annotations/, JPEGImages/
- VOCdevkit, or the folder above it: several such folders, put together where they have a split of one name, or as a
  name of years says
- labelImg and Roboflow: XML files beside the images, in the folder itself or in one for each split
- Label Studio, FiftyOne and others: a folder of XML and one of images beside it, in the folder itself or in one a split
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.readers.layouts.coco import IMAGE_FOLDERS, folders_below
from pipelines.readers.layouts.source import Form, Source
from ssd.errors import InputError

LISTS = Path("ImageSets", "Main")
ONLY_SPLIT = "all"
"""What a split is called that nothing gives a name."""
_FOLDERS_OF_XML = {"annotations", "annotation", "labels", "label", "xml", "xmls", "ann", "anns", "bbox", "data"}
_YEAR_AND_SPLIT = re.compile(r"(\d{4})_(\w+)")
_ROOT = re.compile(rb"<annotation[\s/>]")
"""CVAT's own XML begins with <annotations>."""
_OF_A_CLASS = ("_train", "_val", "_trainval", "_test")
"""VOC has a list a class and split beside those of the splits: aeroplane_train.txt."""


def standard_source(data_folder: Path, split: str) -> Source | None:
    """The split where VOC itself has it, without a look at what else is there."""
    file = data_folder / LISTS / f"{split}.txt"
    annotations, images = _named(data_folder, "Annotations"), _image_folder(data_folder)
    if not (os.path.isfile(file) and annotations and images):
        return None
    return Source(
        split, Form.VOC, file, images, _others(data_folder, images), annotations, class_folders=(annotations,)
    )


def is_voc(data_folder: Path) -> bool:
    return os.path.isdir(data_folder / LISTS)


def sources(data_folder: Path) -> dict[str, Source]:
    """All splits, by name."""
    if is_voc(data_folder):
        return _of_lists(data_folder)
    for devkit in (data_folder, data_folder / "VOCdevkit"):
        if years := [inner for inner in _folders_in(devkit) if is_voc(inner)]:
            return _of_years(devkit, [year.name for year in years])
    return _without_lists(data_folder)


def _of_lists(folder: Path) -> dict[str, Source]:
    names = sorted(file.stem for file in (folder / LISTS).glob("*.txt"))
    splits = [name for name in names if not name.endswith(_OF_A_CLASS)] or names
    return {split: source for split in splits if (source := standard_source(folder, split))}


def _of_years(devkit: Path, years: list[str]) -> dict[str, Source]:
    """A split of the devkit is that of all years that have one of its name; the classes are those of all years."""
    having: dict[str, list[str]] = {}
    for year in years:
        for split in _of_lists(devkit / year):
            having.setdefault(split, []).append(year)
    classes = tuple(folder for year in years if (folder := _named(devkit / year, "Annotations")))
    return {
        split: Source(
            split, Form.VOC, devkit / of[0] / LISTS / f"{split}.txt", devkit,
            years=tuple((year, split) for year in of), class_folders=classes,
        )
        for split, of in having.items()
    }  # fmt: skip


def source_of_years(folders: Iterable[Path], split: str) -> Source | None:
    """The split whose name says it by years, such as 2007_trainval+2012_trainval, in the first of the folders that is a
    devkit; None for any other name. Raises InputError where such a year or split is not there."""
    parts = [_YEAR_AND_SPLIT.fullmatch(part) for part in split.split("+")]
    devkit = next((each for each in folders if any(is_voc(year) for year in _folders_in(each))), None)
    if devkit is None or not all(parts):
        return None
    years = tuple((f"VOC{part[1]}", part[2]) for part in parts if part)
    if len(set(years)) < len(years):
        raise InputError(f"{split}: names a split twice; leave one out")
    files = [devkit / year / LISTS / f"{name}.txt" for year, name in years]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such list, which the split {split!r} needs; pass a split that is there")
    classes = tuple(folder for year in _folders_in(devkit) if is_voc(year) and (folder := _named(year, "Annotations")))
    return Source(split, Form.VOC, files[0], devkit, years=years, class_folders=classes)


def _without_lists(data_folder: Path) -> dict[str, Source]:
    """A split for each folder that has XML files."""
    found: dict[str, Source] = {}
    for folder in folders_below(data_folder, depth=2):
        if not _has_annotations(folder):
            continue
        above = folder if _has_images(folder) else folder.parent
        images = folder if above == folder else _image_folder(above)
        if images is None:  # images/train beside annotations/train
            images = next((p for n in IMAGE_FOLDERS if (p := folder.parent.parent / n / folder.name).is_dir()), None)
        if images is None and (twin := data_folder / "images").is_dir():
            images = twin
        if images is None:
            images = above
        parts = [part for part in folder.relative_to(data_folder).parts if part.lower() not in _FOLDERS_OF_XML]
        split = "/".join(part for part in parts if part not in IMAGE_FOLDERS) or ONLY_SPLIT
        others = tuple(p for p in (folder, above, data_folder) if p != images)
        found.setdefault(split, Source(split, Form.VOC, folder, images, others, folder))
    classes = tuple(source.file for source in found.values())
    return {split: source._replace(class_folders=classes) for split, source in found.items()}


def _folders_in(folder: Path) -> list[Path]:
    return [inner for inner in folders_below(folder, depth=1) if inner != folder] if os.path.isdir(folder) else []


def _named(folder: Path, name: str) -> Path | None:
    """The folder of this name in whatever case."""
    exact = folder / name
    if os.path.isdir(exact):
        return exact
    return next((inner for inner in _folders_in(folder) if inner.name.lower() == name.lower()), None)


def _image_folder(folder: Path) -> Path | None:
    return next((place for name in ("JPEGImages", *IMAGE_FOLDERS) if (place := _named(folder, name))), None)


def _others(folder: Path, images: Path) -> tuple[Path, ...]:
    return tuple(place for name in (*IMAGE_FOLDERS, "") if os.path.isdir(place := folder / name) and place != images)


def _has_annotations(folder: Path) -> bool:
    """Whether it holds XML whose root is VOC's; the first is looked at."""
    for entry in os.scandir(folder):
        if entry.name.lower().endswith(".xml") and not entry.name.startswith("."):
            try:
                with open(entry.path, "rb") as stream:
                    return _ROOT.search(stream.read(4096).replace(b"\0", b"")) is not None
            except OSError:
                return False
    return False


def _has_images(folder: Path) -> bool:
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
    return any(entry.name.lower().endswith(suffixes) for entry in os.scandir(folder))
