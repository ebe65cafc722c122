"""VOC's XML files in a data folder, wherever tools put them.

- VOC and CVAT: ImageSets/Main/{split}.txt, Annotations/, JPEGImages/; lists in ImageSets/ or the folder itself too
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
from pipelines.readers.layouts.folders import folder_in_any_case, in_any_case, text_files
from pipelines.readers.layouts.source import Form, Source, is_split_name
from pipelines.readers.text import read_lines
from ssd.errors import InputError

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
    folder = list_folder(data_folder)
    return _of_list(data_folder, folder / f"{split}.txt") if folder else None


def _of_list(data_folder: Path, file: Path) -> Source | None:
    annotations = _annotation_folder(data_folder)
    images = _image_folder(data_folder) or (data_folder if annotations == data_folder else None)
    if not (os.path.isfile(file) and annotations and images):
        return None
    others = _others(data_folder, images)
    return Source(file.stem, Form.VOC, file, images, others, annotations, class_folders=(annotations,))


def _annotation_folder(data_folder: Path) -> Path | None:
    """Annotations, or another folder that has VOC's XML, or the data folder itself."""
    if folder := folder_in_any_case(data_folder, "Annotations"):
        return folder
    named = [folder for folder in _folders_in(data_folder) if folder.name.lower() in _FOLDERS_OF_XML]
    return next((folder for folder in (*named, data_folder) if _has_annotations(folder)), None)


def list_folder(folder: Path) -> Path | None:
    """Where a VOC folder has its lists: ImageSets/Main, or ImageSets itself; in any case."""
    image_sets = folder_in_any_case(folder, "ImageSets")
    main = folder_in_any_case(image_sets, "Main") if image_sets else None
    return image_sets if text_files(image_sets) and not text_files(main) else main


def is_voc(data_folder: Path) -> bool:
    return list_folder(data_folder) is not None


def sources(data_folder: Path) -> dict[str, Source]:
    """All splits, by name."""
    if (folder := list_folder(data_folder)) and (found := _of_lists(data_folder, folder)):
        return _by_split(found) if all(name.endswith(_OF_A_CLASS) for name in found) else found
    for devkit in (data_folder, data_folder / "VOCdevkit"):
        if years := [inner for inner in _folders_in(devkit) if is_voc(inner)]:
            return _of_years(devkit, [year.name for year in years])
    return _of_lists_beside(data_folder) or _without_lists(data_folder)


def _of_lists(data_folder: Path, folder: Path) -> dict[str, Source]:
    """folder: of the lists."""
    files = text_files(folder)
    files = [file for file in files if not file.stem.endswith(_OF_A_CLASS)] or files
    return {file.stem: source for file in files if (source := _of_list(data_folder, file))}


def _by_split(found: dict[str, Source]) -> dict[str, Source]:
    """VoTT writes the lists of the classes alone. Each names all images of its split, so together they are it."""
    splits: dict[str, list[Source]] = {}
    for name, source in found.items():
        splits.setdefault(name.rpartition("_")[2], []).append(source)
    return {
        split: of[0]._replace(split=split, lists=tuple(source.file for source in of)) for split, of in splits.items()
    }


def _of_lists_beside(data_folder: Path) -> dict[str, Source]:
    """Of lists that lie in the data folder itself, where the name of one says that it is of a split."""
    lists = [file for file in text_files(data_folder) if is_split_name(file.stem)]
    return {split: source for file in lists for split, source in sources_of_list(data_folder, file).items()}


def sources_of_list(data_folder: Path, file: Path) -> dict[str, Source]:
    """The split of a list that lies anywhere; {} where none of its first lines names an XML file."""
    source = _of_list(data_folder, file) if file.suffix.lower() == ".txt" else None
    if source is None or source.label_folder is None:
        return {}
    stems = [Path(_FIRST_COLUMN.sub("", line)).stem for line in read_lines(file)[:5]]
    known = any(in_any_case(source.label_folder, f"{stem}.xml") for stem in stems)
    return {source.split: source} if known else {}


_FIRST_COLUMN = re.compile(r"[ \t,;]+[+-]?[01]$")


def _of_years(devkit: Path, years: list[str]) -> dict[str, Source]:
    """A split of the devkit is that of all years that have one of its name; the classes are those of all years."""
    having: dict[str, list[str]] = {}
    for year in years:
        for split in _of_lists(devkit / year, _lists_of(devkit / year)):
            having.setdefault(split, []).append(year)
    classes = tuple(folder for year in years if (folder := folder_in_any_case(devkit / year, "Annotations")))
    return {
        split: Source(
            split, Form.VOC, _lists_of(devkit / of[0]) / f"{split}.txt", devkit,
            years=tuple((year, split) for year in of), class_folders=classes,
        )
        for split, of in having.items()
    }  # fmt: skip


def _lists_of(year: Path) -> Path:
    return list_folder(year) or year / "ImageSets" / "Main"


def list_of_year(devkit: Path, year: str, split: str) -> Path:
    return _lists_of(devkit / year) / f"{split}.txt"


def names_years(split: str) -> bool:
    return all(_YEAR_AND_SPLIT.fullmatch(part) for part in split.split("+"))


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
    files = [_lists_of(devkit / year) / f"{name}.txt" for year, name in years]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such list, which the split {split!r} needs; pass a split that is there")
    classes = tuple(
        folder for year in _folders_in(devkit) if is_voc(year) and (folder := folder_in_any_case(year, "Annotations"))
    )
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


def _image_folder(folder: Path) -> Path | None:
    return next((place for name in ("JPEGImages", *IMAGE_FOLDERS) if (place := folder_in_any_case(folder, name))), None)


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
    return any(e.name.lower().endswith(suffixes) and not e.name.startswith(".") for e in os.scandir(folder))
