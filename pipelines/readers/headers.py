"""The heads of image files: what size an image is, and how EXIF turns it, without its pixels."""

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipelines.readers.image_files import BadImage, open_image, orientation_of

FILE_THREADS = 8  # waiting for a disk or a network, mostly


class Header(NamedTuple):
    """What an image file's head says."""

    size_px: tuple[int, int]
    """(width, height), as stored."""
    orientation: int
    """EXIF's, 1..8; 1 is upright, and from 5 on width and height are exchanged."""

    @property
    def upright_size_px(self) -> tuple[int, int]:
        width, height = self.size_px
        return (height, width) if self.orientation >= 5 else self.size_px


def read_header(path: Path) -> Header:
    """Raises BadImage, or OSError where the file cannot be opened."""
    with open_image(path) as image:
        return Header(image.size, orientation_of(image))


def read_headers(paths: Iterable[Path]) -> Iterator[Header | BadImage | OSError]:
    """In the order of the paths; the error in place of a header that could not be read."""

    def header_of(path: Path) -> Header | BadImage | OSError:
        if not _can_be_there(path):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        try:
            return read_header(path)
        except (BadImage, OSError) as error:
            return error

    pool = ThreadPoolExecutor(FILE_THREADS)
    try:
        yield from pool.map(header_of, paths)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # as the garbage collector may close what was left


def _can_be_there(path: Path) -> bool:
    """JSON can state NULs and halves of surrogate pairs, which no file's name has."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
