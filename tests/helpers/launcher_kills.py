"""torchrun, to be killed without its ranks, and a journal of which process writes into the run's folder, and when."""

import itertools
import subprocess
from pathlib import Path
from types import TracebackType

import psutil
from forked import Forked
from runs import ENVIRONMENT

# slow_main.py, with a line in the journal for each file that the process opens for writing in the folder, or renames,
# links or removes there. Lines of several processes are in the order in which these things happened.
_JOURNALLED = """
import os, sys

folder, journal = os.path.abspath(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def note(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, (str, os.PathLike)) or not flags & WRITES:
            return
    elif event in ("os.rename", "os.link", "os.remove"):
        path = arguments[0]
    else:
        return
    path = os.path.abspath(os.fspath(path))
    if path.startswith(folder + os.sep) and os.path.basename(path) != ".lock":
        os.write(journal, f"{os.getpid()} {event} {path}\\n".encode())


sys.addaudithook(note)
sys.path.insert(0, os.path.join(os.getcwd(), "tests", "helpers"))
import slow_main

sys.exit(slow_main.main(sys.argv[3:]))
"""


class Launcher:
    """torchrun with two ranks that run this command line; nothing of it is left at the end.

    output: the run's folder, as it stands in the command. journal: see `assert_one_writer_at_a_time`. step_s: how many
    seconds each step takes at least, so that there is time to kill the run in.
    """

    def __init__(self, command: list[str], output: Path, journal: Path, step_s: float = 0) -> None:
        program = journal.with_name("journalled.py")
        program.write_text(_JOURNALLED)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = {**ENVIRONMENT, "SECONDS_A_STEP": str(step_s)}
        self._process = Forked(*torchrun, program, output, journal, *command, environment=environment)
        self.ranks: list[psutil.Process] = []
        """Those that were left by `kill_alone`, by rank if they had been started."""

    def said(self) -> str:
        return self._process.said()

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill_alone(self) -> None:
        self.ranks = psutil.Process(self._process.pid).children() if self._process.poll() is None else []
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = [each for each in self.ranks if each.is_running()]
        if self._process.poll() is None:
            family.append(psutil.Process(self._process.pid))
        for each in family:
            for process in [each, *each.children(recursive=True)]:
                process.kill()
        self._process.wait()


def assert_one_writer_at_a_time(journal: Path, at_least: int) -> None:
    """No process has written again after another one has. at_least: so many have written in all."""
    pids = [line.split()[0] for line in journal.read_text().splitlines()]
    writers = [pid for pid, _ in itertools.groupby(pids)]
    assert len(writers) == len(set(writers)) >= at_least, writers
