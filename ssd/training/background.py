"""A function's value, computed in a process of its own while this one goes on."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ssd.training.interruption import STOP_SIGNALS


class ProcessLostError(RuntimeError):
    """The process ended without a value; it has said why on stderr, unless it was killed."""


class Background:
    """A call of function(*arguments) in another process, for which all of them are pickled.

    The other process ends when the value is there, when `end` is called, or when this process ends or is killed.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")  # a fork would have the locks of threads that it does not have
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        # In a thread, because the process takes nothing before it has started up.
        threading.Thread(target=self._send, args=(function, arguments), daemon=True).start()

    def _send(self, *task: Any) -> None:
        try:
            self._connection.send(task)
        except OSError:  # it is gone, as `value` will say
            pass

    def is_done(self) -> bool:
        """Whether `value` need not wait."""
        return self._connection.poll()

    def value(self) -> Any:
        """Waits for it. Raises ProcessLostError; to be called once."""
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ProcessLostError(f"it ended with exit code {self._process.exitcode}") from None
        self._process.join()
        return found

    def end(self) -> None:
        """Does without the value, if there is none yet."""
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    # What ends a job is signalled to all of its processes; the one that waits for this one decides when it ends.
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, arguments = connection.recv()
    connection.send(function(*arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
