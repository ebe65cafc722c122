"""Which text file has the boxes of an image: the one of its name in a folder of labels, or else beside it.

images/train/a.jpg -> labels/train/a.txt; train/images/a.jpg -> train/labels/a.txt; pictures/a.jpg -> labels/a.txt.
Folders are looked at in the data folder alone: what the folders above it are called says nothing.
"""

import math
import os
from collections.abc import Container, Iterable
from pathlib import Path

from pipelines.readers.layouts.coco import IMAGE_FOLDERS, folders_below
from pipelines.readers.layouts.folders import images_in, key_of
from pipelines.readers.text import decode

_LABEL_FOLDERS = ("labels", "label", "annotations")
_IMAGE_FOLDERS = {name.lower() for name in IMAGE_FOLDERS}
_BEGINNING_BYTES = 2**16
_MOST_OTHER_TEXTS = 20
"""So many texts of something else, beside as many images, are enough to see that they are no labels."""


class LabelFiles:
    """The text files of a data folder, by the images that they are of. Each folder is listed once."""

    def __init__(self, data_folder: Path) -> None:
        self._data_folder = data_folder
        self._entries: dict[Path, dict[str, str]] = {}
        self._places: dict[Path, list[Path]] = {}
        self._texts: dict[Path, dict[str, str]] = {}
        self._image_stems: dict[Path, set[str]] = {}

    def of(self, image: Path) -> Path | None:
        """The image's label file, None where there is none. One in another case counts where no other is there, and
        no other image has its name."""
        for name in (image.stem, key_of(image.stem)):
            for place in self.places(image.parent):
                if file := self._texts_in(place).get(name):
                    stem = Path(file).stem
                    return place / file if stem == image.stem or not self._has_image(image.parent, stem) else None
        return None

    def _has_image(self, folder: Path, stem: str) -> bool:
        if folder not in self._image_stems:
            self._image_stems[folder] = {image.stem for image in images_in(folder)}
        return stem in self._image_stems[folder]

    def places(self, image_folder: Path, *, with_parents: bool = False) -> list[Path]:
        """The folders in which the labels of a folder's images may be, the likeliest first; all exist.

        with_parents: behind them those that they are in, as far as these are in the data folder.
        """
        if image_folder not in self._places:
            is_inside = self._data_folder in (image_folder, *image_folder.parents)
            # Of a data folder that is a folder of images itself, the labels are beside it.
            is_of_images = self._data_folder.name.lower() in _IMAGE_FOLDERS
            top = self._data_folder.parent if is_of_images else self._data_folder
            root = top if is_inside else image_folder.parent
            parts = image_folder.relative_to(root).parts
            # In place of the last folder that is named as one of images, or else of any.
            order = sorted(reversed(range(len(parts))), key=lambda at: parts[at].lower() not in _IMAGE_FOLDERS)
            found = [
                place
                for at in order
                for folder in self._label_folders(root.joinpath(*parts[:at]))
                if (place := self._below(folder, parts[at + 1 :]))
            ]
            found += [*self._label_folders(image_folder), image_folder]
            self._places[image_folder] = list(dict.fromkeys(found))
        places = self._places[image_folder]
        if not with_parents:
            return places
        above = [
            parent for place in places for parent in place.parents if self._data_folder in (parent, *parent.parents)
        ]
        return list(dict.fromkeys([*places, *above]))

    def has_labels(self, images: Iterable[Path], *, are_classes_listed: bool) -> bool:
        """Whether the images' text files hold boxes: one does, or all that are there are empty. are_classes_listed: by
        a file; then their lines may begin with names."""
        empty = other = 0
        for image in images:
            if (file := self.of(image)) is None:
                continue
            line = _first_line(file)
            if line and (numbers_of(line) or (are_classes_listed and _is_named_box(line))):
                return True
            empty, other = empty + (not line), other + bool(line)
            if other == _MOST_OTHER_TEXTS:
                break
        return empty > 0 and other == 0

    def without_image(self, label_folders: Iterable[Path]) -> list[Path]:
        """The files with boxes in these folders that no image of the data folder has the name of."""
        images = (image for folder in folders_below(self._data_folder, depth=4) for image in images_in(folder))
        stems = {key_of(image.stem) for image in images}
        files = [place / name for place in label_folders for name in sorted(set(self._texts_in(place).values()))]
        return [file for file in files if key_of(file.stem) not in stems and numbers_of(_first_line(file))]

    def _label_folders(self, folder: Path) -> list[Path]:
        return [place for name in _LABEL_FOLDERS if (place := self._below(folder, [name]))]

    def _below(self, folder: Path, parts: Iterable[str]) -> Path | None:
        """The folder below a folder, its parts in any case."""
        for part in parts:
            entries = self._listed(folder)
            if (name := entries.get(part) or entries.get(key_of(part))) is None:
                return None
            folder = folder / name
        return folder if folder.is_dir() else None

    def _texts_in(self, folder: Path) -> dict[str, str]:
        """The names of the text files, by their names without suffix as they are and without case."""
        if folder not in self._texts:
            names = [name for name in self._listed(folder).values() if name.lower().endswith(".txt")]
            names = [name for name in names if not name.startswith("._")]
            by_stem = {Path(name).stem: name for name in names}
            self._texts[folder] = {key_of(stem): name for stem, name in by_stem.items()} | by_stem
        return self._texts[folder]

    def _listed(self, folder: Path) -> dict[str, str]:
        """The names of what is in the folder, by themselves and without case."""
        if folder not in self._entries:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            self._entries[folder] = {key_of(name): name for name in names} | {name: name for name in names}
        return self._entries[folder]


def numbers_of(line: str) -> list[float] | None:
    """A class from 0 on and four numbers or more, all finite; None for any other line."""
    try:
        numbers = [float(part) for part in line.replace(",", " ").split()]
    except ValueError:
        return None
    is_box = len(numbers) >= 5 and all(map(math.isfinite, numbers)) and numbers[0] >= 0 and numbers[0].is_integer()
    return numbers if is_box else None


def named_box_of(line: str, names: Container[tuple[str, ...]] = ()) -> tuple[tuple[str, ...], list[float]] | None:
    """The words of a class that a line begins with, and four numbers or more behind them, all finite; None for a line
    that begins with a number, and any other. names: words of known ones, of which the longest that fits counts, for
    they may end in a number; of others all words up to the first number."""
    parts = line.replace(",", " ").split()
    if not parts or _is_number(parts[0]):
        return None
    unknown = next((at for at, part in enumerate(parts) if _is_number(part)), len(parts))
    length = max((k for k in range(1, len(parts) - 3) if tuple(parts[:k]) in names), default=unknown)
    words, numbers = tuple(parts[:length]), parts[length:]
    is_box = len(numbers) >= 4 and all(map(_is_number, numbers))
    return (words, [float(part) for part in numbers]) if is_box else None


def _is_named_box(line: str) -> bool:
    """Of fractions, which is not what other texts have, such as KITTI's labels."""
    found = named_box_of(line)
    return found is not None and all(0 <= number <= 1 for number in found[1])


def _is_number(text: str) -> bool:
    """Of a finite one."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _first_line(file: Path) -> str:
    """The first that is not empty, '' where none is."""
    try:
        with file.open("rb") as stream:
            text, _ = decode(stream.read(_BEGINNING_BYTES))
    except (OSError, UnicodeDecodeError):
        return "?"
    return next((line for line in map(str.strip, text.splitlines()) if line), "")
