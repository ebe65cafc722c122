"""A split as it lies in a data folder: which files say what is in it, and where its images are."""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Form(StrEnum):
    """In what form annotations are written."""

    COCO = "COCO"
    VOC = "VOC"
    YOLO = "YOLO"


TRAIN_NAMES = ("train2017", "train", "training", "trainval", "train2014", "train2012", "train2007")
VAL_NAMES = (
    "val2017", "val", "valid", "validation", "dev", "eval", "evaluation", "minival", "holdout", "testdev",
    "val2014", "val2012", "val2007", "test", "testing", "test2007",
)  # fmt: skip
"""What splits to train on and to judge by are called, the likeliest first; case does not count."""


def is_split_name(name: str) -> bool:
    return name.lower() in (*TRAIN_NAMES, *VAL_NAMES)


class Source(NamedTuple):
    """One split, found and not read yet."""

    split: str
    form: Form
    file: Path
    """What messages name: COCO's JSON; VOC's list, or the folder of its XML; YOLO's list, or folder of images."""
    image_folder: Path
    """Where the images should be."""
    other_image_folders: tuple[Path, ...] = ()
    """Where else they may be: looked at where `image_folder` lacks some."""
    label_folder: Path | None = None
    """Of VOC's XML files. None: beside the images, or as the form has it."""
    years: tuple[tuple[str, str], ...] = ()
    """Of VOC: the folders of `image_folder` and their splits that are put together, such as (("VOC2007", "trainval"),
    ("VOC2012", "trainval"))."""
    class_folders: tuple[Path, ...] = ()
    """Of VOC: the folders of XML, of all splits, whose objects name the classes."""
    lists: tuple[Path, ...] = ()
    """Of YOLO: folders of images, and files that list them. Of VOC: the lists that are put together, where it has those
    of classes alone."""
    names_file: Path | None = None
    """Of YOLO: what lists the classes, data.yaml or a text file with a name a line."""
    data_folder: Path | None = None
    """Of YOLO: in which the labels of the images are looked for."""
    moved: tuple[str, ...] = ()
    """Of YOLO: the paths of its folders and lists that lead elsewhere, and whose last parts are in the data folder."""
    lacking: str = ""
    """Of YOLO: why the split cannot be read, of whose folders and lists some are not there, or ""."""
    part: str = ""
    """"train" or "val" for the part of a split that is held out or not, "" for all of it."""

    @property
    def name(self) -> str:
        """What --train-split and --val-split call it."""
        return f"{self.split}:{self.part}" if self.part else self.split

    @property
    def image_folders(self) -> tuple[Path, ...]:
        return (self.image_folder, *self.other_image_folders)
