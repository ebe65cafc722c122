"""What lies in a folder, and what is there under a name whose case, or way to write accents, is another."""

import os
import unicodedata
from pathlib import Path

from ssd.images import SUFFIXES

_READ_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
IMAGE_SUFFIXES = (*_READ_SUFFIXES, ".heic", ".heif", ".avif", ".jxl", ".psd")
"""Also of formats that no reader here takes: who has such images is to be told so."""


def key_of(name: str) -> str:
    """What the spellings of one name share: no case, accents composed."""
    return unicodedata.normalize("NFC", name).casefold()


def in_any_case(folder: Path, *parts: str) -> Path | None:
    """What is there below the folder under these names, or the only thing that is under them in another case."""
    for part in parts:
        if not os.path.exists(folder / part):
            try:
                names = [name for name in os.listdir(folder) if key_of(name) == key_of(part)]
            except OSError:
                return None
            if len(names) != 1:
                return None
            (part,) = names
        folder = folder / part
    return folder


def folder_in_any_case(folder: Path, *parts: str) -> Path | None:
    place = in_any_case(folder, *parts)
    return place if place is not None and place.is_dir() else None


def text_files(folder: Path | None) -> list[Path]:
    """In order of their names, without hidden ones."""
    return _files(folder, (".txt",)) if folder else []


def images_in(folder: Path) -> list[Path]:
    """In order of their names, without hidden ones such as macOS's "._a.jpg". One that no reader takes is none where
    one that a reader takes has its name."""
    files = _files(folder, IMAGE_SUFFIXES)
    taken = {file.stem for file in files if file.name.lower().endswith(_READ_SUFFIXES)}
    return [file for file in files if file.stem not in taken or file.name.lower().endswith(_READ_SUFFIXES)]


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
