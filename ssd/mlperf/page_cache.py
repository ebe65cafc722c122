"""Forgetting the data before a run: the page cache of its files."""

import os
from collections.abc import Iterable
from pathlib import Path


def clear_page_cache(places: Iterable[Path]) -> bool:
    """Has the kernel forget what it holds of files and of all files in folders. Nothing is read, and unlike the usual
    way, which forgets everything on the machine, it needs no root. Returns False where there is no such call, or a
    file cannot be opened."""
    if not hasattr(os, "posix_fadvise"):
        return False
    cleared = True
    os.sync()  # it forgets no page that is not on the disk yet
    for place in places:
        for path in [place, *place.rglob("*")]:
            if path.is_file():
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except OSError:  # what that means to the run, the reader of the data will say
                    cleared = False
                    continue
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
    return cleared
