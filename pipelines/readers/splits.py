"""Where the splits of a data folder are, and what they hold, whether it is laid out as COCO or as VOC.

A folder with ImageSets/Main is VOC's, any other COCO's.
"""

from pathlib import Path
from typing import Any

from pipelines.annotations import Annotations
from pipelines.readers import coco, voc


def find_split(data_folder: Path, split: str) -> tuple[Path, Path]:
    """The image folder of a split, and the file that says what is in it: COCO's JSON, or VOC's list.

    Raises InputError that says where it looked.
    """
    return (voc if voc.is_voc(data_folder) else coco).find_split(data_folder, split)


def read_document(file: Path) -> dict[str, Any]:
    """The tables 'images', 'annotations' and 'categories' of a split, as `coco.annotations_of` takes them; file: that
    of `find_split`. Raises InputError where it cannot be read."""
    return (voc if file.suffix == ".txt" else coco).read_document(file)


def annotation_files(file: Path) -> list[Path]:
    """All that `read_document` reads for this file of `find_split`."""
    return [file, *voc.object_files(file)] if file.suffix == ".txt" else [file]


def read_annotations(data_folder: Path, split: str) -> Annotations:
    """Reads and checks one split; every image exists, every number is in range.

    Raises InputError, one line that names the file, the entry and the remedy, for anything else.
    """
    image_folder, file = find_split(data_folder, split)
    return coco.annotations_of(read_document(file), file, image_folder)
