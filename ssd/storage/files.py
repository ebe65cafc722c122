"""Files that are whole whatever happens: the old one or the new one, never a part."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def written_whole(file: Path, *, durable: bool = False, temporary_name: str | None = None) -> Iterator[Path]:
    """Gives a path beside `file` to write to. What is there takes the place of `file` when the block ends; if the block
    fails, it is removed and `file` is as it was.

    durable: wait until the disk has it, so that it also survives a power cut. temporary_name: of the path, for files
    whose names change: what a killed process leaves there is then written over by the next.
    """
    temporary = file.with_name(temporary_name or f".{file.name}.unfinished")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(file.parent)  # the new name too must survive a power cut


@contextmanager
def interruption_held() -> Iterator[None]:
    """Lets Ctrl-C take effect at the end of the block, and not in a callback of a library that can take no exception
    there: torch's writer of files ends the process. Holds nothing in another thread, which Ctrl-C does not reach."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


def sync(path: Path) -> None:
    """Waits until the disk has the file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
