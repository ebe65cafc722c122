"""main.py that, before one of its steps, sends signals to itself, to its group or to its launcher, once.

    python mortal_main.py MARKER STEP RANK WHOM SIGNAL command line ...

MARKER: a folder that the signal leaves behind, which keeps the next attempt from it. STEP: so many have been taken.
RANK: the one that does it, or "any". WHOM: "itself", "group" (the process's), "launcher", which is to hand it on before
the step is taken, or "both" (launcher and itself, in this order, as when a machine is lost). SIGNAL: its number. So the
moment is a step, and no test has to catch a run in time.
"""

import os
import signal
import sys
import time
from typing import Any

import main
from ssd.training import loop

MARKER, STEP, RANK, WHOM, SIGNAL = sys.argv[1:6]
_build_step = loop.build_step


def _send() -> None:
    os.mkdir(MARKER)
    number = signal.Signals(int(SIGNAL))
    if WHOM == "group":
        os.killpg(0, number)
    if WHOM in ("launcher", "both"):
        os.kill(os.getppid(), number)
    if WHOM in ("itself", "both"):
        os.kill(os.getpid(), number)
    if WHOM == "launcher":
        request: Any = signal.getsignal(signal.SIGTERM)  # the method of a StopRequest
        while not request.__self__.received:
            time.sleep(0.01)


def _build_mortal_step(training: Any) -> Any:
    take_step = _build_step(training)

    def take_or_die(*arguments: Any) -> Any:
        if training.step == int(STEP) and RANK in ("any", os.environ.get("RANK", "0")) and not os.path.exists(MARKER):
            _send()
        return take_step(*arguments)

    return take_or_die


if __name__ == "__main__":
    loop.build_step = _build_mortal_step
    sys.exit(main.main(sys.argv[6:]))
