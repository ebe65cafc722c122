"""The torch path's worker processes: how they outlast a signal, and what is said when one dies."""

import re
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from ssd.errors import InputError

_T = TypeVar("_T")


_SECONDS_AFTER_STOP = 35  # torchrun and most clusters kill after 30


# How torch's reports of a full /dev/shm begin, in a worker's traceback or by themselves.
_SHARED_MEMORY = re.compile(r"^(RuntimeError: )?unable to (allocate shared memory|mmap|resize|write)")


def outlast_stop_signals(worker: int) -> None:
    """The end of a job is signalled to all of its processes, but a run still needs batches up to its last step. So the
    workers go on, but not for ever: the interpreter ends them by such a signal too when it exits over an error."""

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.alarm(_SECONDS_AFTER_STOP)

    signal.signal(signal.SIGTERM, end_later)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.excepthook = _say_what_counts


def _say_what_counts(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Python's hook, but not for the thread that hands a worker's batches over, where a run that ends amid that is told
    as an error."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def plain_errors(batches: Iterable[_T]) -> Iterator[_T]:
    """The batches. A worker's InputError comes without DataLoader's traceback; a worker's failure is one too."""
    iterator = iter(batches)
    try:
        yield from iterator
        return
    except InputError as error:
        failure = InputError(_message_of(error))
        error.__traceback__ = None
    except RuntimeError as error:
        found = worker_failure(error)
        if found is None:
            raise
        failure = found
        error.__traceback__ = None
    # Without a reference to it, in a traceback either, the iterator ends its workers now, and not with the interpreter.
    # So do others that the frames above hold: the error's traceback holds this frame, which must not hold the error.
    del iterator
    try:
        raise failure
    finally:
        del failure


def _message_of(error: InputError) -> str:
    """What was wrong, also where DataLoader has put a worker's traceback before it."""
    text = str(error.args[0])  # str(error) is one line, with the traceback in it
    if not text.startswith("Caught InputError in DataLoader worker"):
        return text
    return text.strip().splitlines()[-1].removeprefix("ssd.errors.InputError: ")


def worker_failure(error: Exception) -> InputError | None:
    """What the user should read if the error is torch's report of a worker that died or found no shared memory.

    torch raises the former by a signal, wherever the main thread is.
    """
    lines = str(error).splitlines()
    cause = next((line for line in lines if line.startswith("DataLoader worker") or _SHARED_MEMORY.search(line)), None)
    if cause is None:
        return None
    return InputError(
        f"--num-workers: {cause.strip()} Was it killed for its memory, or is /dev/shm full? "
        "Pass fewer workers, or give more shared memory (docker run --ipc=host or --shm-size)"
    )
