"""Which folder a run writes to, and which checkpoints of it to go on from."""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.keep import FOLDER, kept


@contextmanager
def run_folder(name: str, output: str | None, resume: str | None, ranks: Ranks) -> Iterator[tuple[Path, list[Path]]]:
    """The run's folder and the checkpoints to resume from, the one to prefer first, none to start anew; on all ranks.

    name: of the data. output: the folder if given; otherwise runs/<name>-<time>, which is no other run's and goes again
    if nothing was written into it. resume: None, "auto" (the checkpoints of the folder, or of the newest
    runs/<name>-<time> if no folder is given; none is no error) or a file.
    Raises InputError rather than write over another run.
    """
    folder, files = broadcast_object(_choose(name, output, resume, ranks), ranks)
    try:
        yield folder, files
    finally:
        if ranks.is_main and output is None:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _choose(name: str, output: str | None, resume: str | None, ranks: Ranks) -> tuple[Path, list[Path]]:
    if resume == "auto":
        for folder in [Path(output)] if output else _runs_of(name):
            if files := kept(folder):
                return folder, files
        return (Path(output) if output else _new_folder(name, None, ranks)), []
    if resume is None:
        return _new_folder(name, output, ranks), []
    file = Path(resume)
    own = file.parent.parent if file.parent.name == FOLDER else None
    if own is not None and (output is None or Path(output).resolve() == own.resolve()):
        return own, [file]
    return _new_folder(name, output, ranks), [file]


def _runs_of(name: str) -> list[Path]:
    """The folders that `_new_folder` has given to this data, newest first."""
    pattern = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?")
    folders = Path("runs").iterdir() if Path("runs").is_dir() else ()
    return sorted((folder for folder in folders if pattern.fullmatch(folder.name)), reverse=True)


def _new_folder(name: str, output: str | None, ranks: Ranks) -> Path:
    if output is not None:
        folder = Path(output)
        if any((folder / file).exists() for file in (FOLDER, "config.json", "log.jsonl")):
            raise InputError(f"--output {folder}: holds a run; pass --resume auto to go on with it, or another folder")
        return folder
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not ranks.is_main:  # rank 0's is the one that counts
        return first
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], numbered) if _makes(folder))


def _makes(folder: Path) -> bool:
    """False if it is there: another run may have begun in this second."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
