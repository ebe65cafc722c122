"""Which folder a run writes to, and which checkpoints of it to go on from."""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ssd.checkpoints.retention import FOLDER, kept
from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.run.lock import only_writer


@contextmanager
def run_folder(name: str, output: str | None, resume: str | None, ranks: Ranks) -> Iterator[tuple[Path, list[Path]]]:
    """The run's folder and the checkpoints to resume from, the one to prefer first, none to start anew; on all ranks.

    name: of the data. output: the folder; None makes a new one, such as runs/demo-20260102-030405. resume: None, a
    file, or "auto", which takes the checkpoints of output, or without output those of the newest runs/<name>-<time>; it
    is no error if there are none. No other run can write to the folder until the end, see `lock.only_writer`. A new
    folder into which nothing was written is removed. Raises InputError, on all ranks, if another run has the folder.
    """
    with ExitStack() as stack:
        found, problem = None, None
        if ranks.is_main:
            try:
                found = stack.enter_context(_own_folder(name, output, resume))
            except InputError as error:
                problem = str(error)
        found, problem = broadcast_object((found, problem), ranks)
        if problem is not None:
            raise InputError(problem)
        yield found


@contextmanager
def _own_folder(name: str, output: str | None, resume: str | None) -> Iterator[tuple[Path, list[Path]]]:
    chosen, files = _choose(output, resume, _runs_of(name))
    folder = chosen or _new_folder(name)
    try:
        with only_writer(folder):
            if chosen:  # anew, because its last writer may have ended since
                _, files = _choose(str(folder), resume, [])
            yield folder, files
    finally:
        if not chosen:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _choose(output: str | None, resume: str | None, runs: list[Path]) -> tuple[Path | None, list[Path]]:
    """The folder, None for a new one, and the checkpoints. runs: those of this data, newest first."""
    if resume == "auto":
        for folder in [Path(output)] if output else runs:
            if files := kept(folder):
                return folder, files
        return (Path(output) if output else None), []
    files = [Path(resume)] if resume else []
    own = [file.parents[1] for file in files if file.parent.name == FOLDER]
    if own and (output is None or Path(output).resolve() == own[0].resolve()):
        return own[0], files
    if output is None:
        return None, files
    folder = Path(output)
    if any((folder / file).exists() for file in (FOLDER, "config.json", "log.jsonl")):
        raise InputError(f"--output {folder}: holds a run; pass --resume auto to go on with it, or another folder")
    return folder, files


def _runs_of(name: str) -> list[Path]:
    """The folders that `_new_folder` has given to this data, newest first."""
    pattern = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?")
    folders = Path("runs").iterdir() if Path("runs").is_dir() else ()
    return sorted((folder for folder in folders if pattern.fullmatch(folder.name)), reverse=True)


def _new_folder(name: str) -> Path:
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    try:
        first.parent.mkdir(exist_ok=True)
        return next(folder for folder in itertools.chain([first], numbered) if _makes(folder))
    except OSError as error:
        raise InputError(f"{first}: cannot be made ({error.strerror}); pass --output with another folder") from error


def _makes(folder: Path) -> bool:
    """False if it is there: another run may have begun in this second."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True
