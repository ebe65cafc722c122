"""The images of a split of YOLO: those of a folder, or those of a list with a path a line.

A tool that wrote a path of another machine, or one that begins in another folder, is not taken at its word: the path's
last parts are looked for in the data folder.
"""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.readers.layouts.coco import folders_below
from pipelines.readers.layouts.folders import IMAGE_SUFFIXES, images_in, in_any_case
from pipelines.readers.repairs.file_names import WHAT, find_file_names
from pipelines.readers.text import Note, no_note, read_lines

MOVED = "paths of another place found in the data folder"
_COLUMN = re.compile(r"[ \t,;]+[+-]?[01]$")


def images_of(place: Path, data_folder: Path, note: Note = no_note, most: int | None = None) -> list[Path]:
    """The images of a folder, with those in folders below it, or of a list. note: is told of lines that lead to them
    in another way than they are written. most: of so many lines of a list, the first. Raises InputError where a list
    cannot be read."""
    if place.is_dir():
        return [image for folder in folders_below(place, depth=4) for image in images_in(folder)]
    lines = [line for line in read_lines(place, note) if not line.startswith("#")]
    return _images_of_lines(lines[:most], place.parent, data_folder, note)


def is_list(file: Path, data_folder: Path) -> bool:
    """Whether one of its first lines leads to an image."""
    lines = [line for line in read_lines(file) if not line.startswith("#")][:5]
    images = _images_of_lines(lines, file.parent, data_folder, no_note)
    return any(image.name.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(image) for image in images)


def _images_of_lines(lines: list[str], beside: Path, data_folder: Path, note: Note) -> list[Path]:
    """One that is not there has a path where the last part would be."""
    found = [as_stated(data_folder, beside, None, line) for line in lines]
    moved = [i for i, path in enumerate(found) if path is None]
    for i in moved:
        found[i] = by_last_parts(data_folder, beside, lines[i])
    note(MOVED, [lines[i] for i in moved if found[i] is not None])
    unknown = [i for i, path in enumerate(found) if path is None]
    if unknown:
        # Where some are found as they are, an image of the same name elsewhere is another.
        folders = [data_folder] if len(unknown) < len(lines) else list(folders_below(data_folder, depth=3))
        folder, names = find_file_names([_COLUMN.sub("", lines[i].strip("\"'")) for i in unknown], folders)
        note(WHAT, [lines[i] for i, name in zip(unknown, names, strict=True) if name is not None])
        for i, name in zip(unknown, names, strict=True):
            found[i] = folder / name if name is not None else data_folder / Path(lines[i]).name
    return [path for path in found if path is not None]


def as_stated(data_folder: Path, beside: Path, base: Any, stated: str) -> Path | None:
    """The folder or file in the data folder that a path leads to from its base, from beside the file that states it,
    or from the data folder. base: data.yaml's 'path', or None."""
    if "\0" in stated:
        return None
    folders = [beside / base] if isinstance(base, str) and base else [beside, data_folder]
    places = (_in_data_folder(data_folder, folder / stated.replace("\\", "/")) for folder in folders)
    return next((place for place in places if place is not None and os.path.exists(place)), None)


def _in_data_folder(data_folder: Path, place: Path) -> Path | None:
    """The place as a path that begins with the data folder's, None where it is not in it."""
    for plain in (os.path.abspath, os.path.realpath):  # also behind a link to a folder elsewhere, or by one to here
        at, root = plain(place), _plain(data_folder, plain)
        if at == root or at.startswith(root.rstrip(os.sep) + os.sep):
            return data_folder / os.path.relpath(at, root)
    return None


@functools.lru_cache(maxsize=16)
def _plain(folder: Path, plain: Callable[[Path], str]) -> str:
    return plain(folder)


def by_last_parts(data_folder: Path, beside: Path, stated: str) -> Path | None:
    """The folder or file in the data folder that the last parts of a path lead to."""
    parts = [part for part in stated.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    places = (folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in (beside, data_folder))
    return next((place for place in places if os.path.exists(place)), None)


def resolve(data_folder: Path, beside: Path, base: Any, stated: str) -> tuple[Path | None, bool]:
    """The folder or file that a path means, in any case, and whether that is where the path leads."""
    if place := as_stated(data_folder, beside, base, stated):
        return place, True
    if place := by_last_parts(data_folder, beside, stated):
        return place, False
    parts = [part for part in stated.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    found = (in_any_case(folder, *parts[start:]) for start in range(len(parts)) for folder in (beside, data_folder))
    return next((place for place in found if place is not None), None), False
