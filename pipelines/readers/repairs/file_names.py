"""Images that are there under a name written in another way, or in another of the folders where they may be.

One folder is chosen for all images of a split, that in which most are found. In it, a name that is not there means the
file that its other spellings lead to, in this order:

1. with '/' for backslashes, without './', a drive, a server, a server's parameters or folders above;
2. with %20 and the like resolved, and with spaces for '+';
3. without leading folders that all names share, or without all of them where the last parts differ;
4. in another case, with accents composed or decomposed, or with another suffix of an image.

Where no folder has any of the images so, they may lie in folders that the names do not state: then a name means the
only file of its last part in a folder or below it, but for the folders of other splits, which may have files of that
name.

No two names may lead to one file, and a spelling that fits two files leads to none: then the name stays as it is, and
the strict reader says that it is missing.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, unquote_plus

from pipelines.readers.rows import Document, place_of
from ssd.images import SUFFIXES

_IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
_SERVER = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://[^/]*")
_DRIVE = re.compile(r"[a-zA-Z]:(?=/)")

_PARAMETERS = re.compile(r"\?(?=[\w.-]+=)")
_SPLITS = {
    **dict.fromkeys(("train", "training"), {"train"}),
    "trainval": {"train", "val"},
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "minival", "holdout"), {"val"}),
    **dict.fromkeys(("test", "testing", "testdev"), {"test"}),
}
"""By the words in names of folders: whose images lie there."""

WHAT = "file names in another spelling found"
WHAT_ELSEWHERE = "images found in folders that are not stated"


def repair_file_names(document: Document, folders: Iterable[Path], split: str = "") -> None:
    """Sets the folder and the names of the images that are there. folders: where they may be, the likeliest first.
    split: whose they are."""
    folders = list(dict.fromkeys(folders))
    rows = [(i, row) for i, row in document.rows("images") if type(row.get("file_name")) is str and row["file_name"]]
    names = [row["file_name"] for _, row in rows]
    if not names:
        return
    document.image_folder, found = find_file_names(names, folders)
    what = WHAT
    if not any(found):
        what, most, listed = WHAT_ELSEWHERE, 0, _Listing()
        for folder in folders:
            spelled = _resolve_in_any_folder(names, listed.files_below(folder), split)
            number = sum(name is not None for name in spelled)
            if number > most:
                most, found, document.image_folder = number, spelled, folder
    places = []
    for (i, row), name in zip(rows, found, strict=True):
        if name is not None and name != row["file_name"]:
            row["file_name"] = name
            places.append(place_of("images", i, row))
    document.note(what, places)


def find_file_names(names: list[str], folders: Iterable[Path]) -> tuple[Path, list[str | None]]:
    """The folder in which most of the names lead to a file, and what file each of them means there, if any.

    folders: at least one, the likeliest first.
    """
    best: tuple[int, int] = (-1, -1)
    found: list[str | None] = []
    listed = _Listing()
    for folder in dict.fromkeys(folders):
        files = listed.files_below(folder)
        spelled = _resolve(names, files)
        # That all are found as they are written says more than that all are found.
        score = (sum(name is not None for name in spelled), sum(name in files for name in names))
        if score > best:
            best, found, chosen = score, spelled, folder
        if best == (len(names), len(names)):
            break
    return chosen, found


class _Listing:
    """The image files below folders; each folder of the disk is listed once."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[list[str], list[str]]] = {}

    def files_below(self, folder: Path) -> set[str]:
        """Relative to the folder, '/' between."""
        found: set[str] = set()
        pending = [""]
        while pending:
            at = pending.pop()
            folders, files = self._list(os.path.join(folder, at) if at else str(folder))
            found.update(f"{at}/{name}" if at else name for name in files)
            pending += [f"{at}/{name}" if at else name for name in folders]
        return found

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._entries:
            folders: list[str] = []
            files: list[str] = []
            try:
                for entry in os.scandir(folder):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif os.path.splitext(entry.name)[1].lower() in _IMAGE_SUFFIXES and entry.is_file():
                        files.append(entry.name)
            except OSError:  # the strict reader tells of it
                pass
            self._entries[folder] = folders, files
        return self._entries[folder]


def _resolve(names: list[str], files: set[str]) -> list[str | None]:
    """For each name the file that it means, or None."""
    plain = [_plain(name) for name in names]
    drops = _shared_folders(plain)
    by_last_part = len({posixpath.basename(name) for name in plain}) == len(plain)
    by_key = _unique(files, _key)
    by_stem = _unique(files, lambda name: os.path.splitext(_key(name))[0])
    found = [
        next(
            (
                file
                for spelling in _spellings(name, as_plain, drops, by_last_part)
                if (file := spelling if spelling in files else by_key.get(_key(spelling)))
            ),
            None,
        )
        for name, as_plain in zip(names, plain, strict=True)
    ]
    for index, file in enumerate(found):
        if file is None:
            for spelling in _spellings(names[index], plain[index], drops, by_last_part):
                stem, suffix = os.path.splitext(_key(spelling))
                if found[index] is None:
                    # 'v1.2' has no suffix, so all of it may be the stem.
                    found[index] = by_stem.get(stem if suffix in _IMAGE_SUFFIXES else _key(spelling))
    taken: dict[str, int] = {}
    for file in found:
        if file is not None:
            taken[file] = taken.get(file, 0) + 1
    # A file that two names lead to is that of the one that states it as it is.
    return [file if file is None or taken[file] == 1 or file == name else None
            for file, name in zip(found, names, strict=True)]  # fmt: skip


def _resolve_in_any_folder(names: list[str], files: set[str], split: str) -> list[str | None]:
    """As `_resolve`, whatever folders the files are in that are not those of another split."""
    own = _splits_in(split)
    strange = {folder for folder in map(posixpath.dirname, files) if own and not own & (_splits_in(folder) or own)}
    file_of = _unique((file for file in files if posixpath.dirname(file) not in strange), posixpath.basename)
    return [None if found is None else file_of[found] for found in _resolve(names, set(file_of))]


def _splits_in(text: str) -> set[str]:
    """Of which splits a name or a path speaks: 'val_images/b0' -> {'val'}."""
    words = re.findall(r"[a-z]+", text.lower())
    return {split for word in words for split in _SPLITS.get(word, ())}


def _spellings(name: str, plain: str, drops: int, by_last_part: bool) -> Iterator[str]:
    decoded = [*([unquote(plain)] if "%" in plain else []), *([unquote_plus(plain)] if "+" in plain else [])]
    for each in (name, plain, *decoded):
        yield each
        if each is not name:
            parts = each.split("/")
            if drops and len(parts) > drops:
                yield "/".join(parts[drops:])
            if by_last_part and len(parts) > 1:
                yield parts[-1]


def _plain(name: str) -> str:
    """As a path in the folder: '..\\\\images\\\\.\\\\a.jpg' -> 'images/a.jpg', 'C:\\\\x\\\\a.jpg' -> 'x/a.jpg'."""
    name = _without_parameters(name)
    name = _DRIVE.sub("", _SERVER.sub("", name.strip().replace("\\", "/")))
    parts = posixpath.normpath(f"/{name.lstrip('/')}").split("/")
    return "/".join(part.strip() if part is parts[-1] else part for part in parts[1:])


def _without_parameters(name: str) -> str:
    """'im.jpg?key=1' -> 'im.jpg'; of Label Studio's '/data/local-files/?d=set/im.jpg' the path that it states."""
    start = _PARAMETERS.search(name)
    if start is None:
        return name
    stated = parse_qs(name[start.end() :]).get("d")
    return stated[0] if stated else name[: start.start()]


def _shared_folders(plain: list[str]) -> int:
    """How many leading folders all names share."""
    if not plain:
        return 0
    folders = [name.split("/")[:-1] for name in (min(plain), max(plain))]
    shared = os.path.commonprefix(folders)
    return len(shared)


def _unique(files: Iterable[str], key_of: Callable[[str], str]) -> dict[str, str]:
    """File by key, for the keys that one file only has."""
    found: dict[str, str | None] = {}
    for file in files:
        key = key_of(file)
        found[key] = None if key in found else file
    return {key: file for key, file in found.items() if file is not None}


def _key(name: str) -> str:
    """What spellings of one name share: no case, accents composed."""
    return unicodedata.normalize("NFC", name).casefold()
