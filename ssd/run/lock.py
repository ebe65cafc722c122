"""One writer a run's folder: a lock on a file in it, which the kernel drops when its holder dies, however it dies.

A POSIX record lock (fcntl), for two reasons. NFS knows it in all its versions. And it is the process's own, where
flock's is also that of every process forked from the holder: a data path's worker that outlives a killed rank would
keep it. In return, closing any descriptor of the file drops it, so nothing else in the holder may open that file; a
second run in the same process meets no lock.

Not covered: NFS that is mounted with nolock or local_lock, where hosts do not see each other's locks; a file system
that has no locks at all, of which the run is told; and a host that loses power, whose locks NFS keeps for its lease.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssd.console import say, say_on_stderr
from ssd.errors import InputError

LOCK = ".lock"
WAIT_S = 60.0
"""For the holder to end: twice what torchrun leaves its ranks after SIGTERM."""
_POLL_S = 0.1
_HELD = (errno.EACCES, errno.EAGAIN)
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder. It is made if there is none, and then removed in the end if nothing was written into it.

    Waits up to WAIT_S for another holder to end. Raises InputError that names it, or a folder that cannot be written.
    """
    made = _make(folder)
    descriptor = _wait_for(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            else:  # Not its name: who waits for it would lock what has none, beside the next run.
                os.ftruncate(descriptor, 0)
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for each in made:
                each.rmdir()


def _make(folder: Path) -> list[Path]:
    """The folders that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be a folder ({error.strerror}); pass another") from error
    return missing


def _wait_for(folder: Path) -> int:
    """The lock's open descriptor."""
    deadline, has_said = time.monotonic() + WAIT_S, False
    while True:
        descriptor = _try(folder)
        if descriptor is not None:
            return descriptor
        holder = _holder(folder)
        if time.monotonic() >= deadline:
            raise InputError(
                f"--output {folder}: another run writes there, {holder}, and has not ended within {WAIT_S:g} s; "
                "end that process, or pass another --output"
            )
        if not has_said:
            say(f"waiting up to {WAIT_S:g} s for the end of the run in {folder}, {holder}")
            has_said = True
        time.sleep(_POLL_S)


def _try(folder: Path) -> int | None:
    """The descriptor of the file, locked; None while another process has it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # a run that had nothing to write has just taken the folder away
        folder.mkdir(parents=True, exist_ok=True)
        return None
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written to ({error.strerror}); pass another") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HAS_NO_LOCKS:
            say_on_stderr(
                f"warning: {folder}: its file system has no locks ({error.strerror}); "
                "take care that no other run writes there"
            )
            return descriptor
        os.close(descriptor)
        if error.errno in (*_HELD, errno.ESTALE):
            return None
        raise InputError(f"--output {folder}: cannot be locked ({error.strerror}); pass another") from error
    if not _is_named(descriptor, folder / LOCK):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _own_name().encode(), 0)
    os.fsync(descriptor)  # so that other hosts can read it
    return descriptor


def _is_named(descriptor: int, file: Path) -> bool:
    """Whether the name is still this file's."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"


def _holder(folder: Path) -> str:
    with suppress(OSError):
        # This process holds no lock, so closing the file drops none.
        if text := (folder / LOCK).read_text(errors="replace").strip():
            return text.splitlines()[0]
    return "a process that has not yet said its name"
