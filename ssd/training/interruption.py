"""How a run ends before its time: asked to by a signal, or because it stalls."""

import ctypes
import faulthandler
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM is what clusters, torchrun and Docker send some seconds before they kill; SIGUSR1 is what Slurm's --signal is
# commonly set to.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_PREEMPTED = 75
# A rank that stalls ends this many seconds after its timeout. By then the ranks that wait for it have timed out, and
# said so, and this rank says where its threads stand.
_GRACE_S = 10
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Preempted(RuntimeError):
    """The run was asked to end, and has saved its state."""


class StopRequest:
    """Whether a signal has asked this process to end. A handler may do no more than take note of it: the other ranks
    take part in whatever comes next, so all end at the same step."""

    def __init__(self) -> None:
        self.received = False

    def take(self, number: int, frame: FrameType | None) -> None:
        self.received = True


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns STOP_SIGNALS into a request while it is open. For the main thread."""
    request = StopRequest()
    before = {number: signal.signal(number, request.take) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Lets the end of torchrun, if it started this process, ask the process to end, as SIGTERM does.

    A torchrun that is killed leaves its ranks training, beside those of the run that is started in its place. Before
    this is called, that can still happen; then the lock of the run's folder keeps the two apart. Other parents may end
    while the run goes on, as a shell does from which it was started.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:  # not Linux: a rank notices nothing, and the lock alone keeps runs apart
        return
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)  # no matter where it is refused
    if os.getppid() != launcher:  # it ended before it was asked for
        signal.raise_signal(signal.SIGTERM)


class Watchdog:
    """Ends the process with exit code 1, and says where each thread stands, once `timeout_s` and a little more have
    passed without a call of `is_alive`. It needs neither the interpreter nor the device to react."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s

    def is_alive(self) -> None:
        faulthandler.dump_traceback_later(self._timeout_s + _GRACE_S, exit=True, file=2)

    def end(self) -> None:
        faulthandler.cancel_dump_traceback_later()
