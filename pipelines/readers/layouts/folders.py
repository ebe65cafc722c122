"""Names of files and folders whose case, or way to write accents, is another than asked for."""

import os
import unicodedata
from pathlib import Path


def key_of(name: str) -> str:
    """What the spellings of one name share: no case, accents composed."""
    return unicodedata.normalize("NFC", name).casefold()


def in_any_case(folder: Path, *parts: str) -> Path | None:
    """What is there below the folder under these names, or the only thing that is under them in another case."""
    for part in parts:
        if not (folder / part).exists():
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
    try:
        names = sorted(os.listdir(folder)) if folder else []
    except OSError:
        return []
    return [Path(folder or "", name) for name in names if name.lower().endswith(".txt") and not name.startswith(".")]
