"""main.py with steps that sleep first, for as many seconds as the environment variable SECONDS_A_STEP says: so there is
time to interrupt a run, and meanwhile others have the processor."""

import os
import sys
import time
from typing import Any

from ssd.cli.commands import main
from ssd.training import loop

_build_step = loop.build_step


def _build_slow_step(training: Any) -> Any:
    take_step, seconds = _build_step(training), float(os.environ.get("SECONDS_A_STEP", 0))

    def take_time(*arguments: Any) -> Any:
        time.sleep(seconds)
        return take_step(*arguments)

    return take_time


loop.build_step = _build_slow_step
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
