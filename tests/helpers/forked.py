"""Programs in processes forked from one that has imported all and computed nothing: the imports are most of a short
run's time."""

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
# One thread, because sums over several come in no fixed order.
OWN = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see launch/slurm.sh
}
IMPORTED = (
    *("torchvision", "torch.distributed.run", "torch._dynamo", "main", "ssd.cli.training_run", "psutil"),
    *("nvidia.dali.fn", "nvidia.dali.plugin.pytorch"),  # where it is installed
)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ssd-tests-")


def temporary_folder() -> Path:
    """For files of one process's tests, and gone with it. A forked program, which imports this too and ends without
    cleaning up, makes none."""
    return Path(_temporary().name)


@functools.cache
def context() -> ForkServerContext:
    """Of `multiprocessing`, whose server has imported what a run needs. It ends with this process."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([*IMPORTED])
    with mock.patch.dict(os.environ, OWN):
        forkserver.ensure_running()
    return made


class Forked:
    """`subprocess.Popen` for a Python program, as far as tests ask for it.

    arguments: what follows `python`: a file or -m and a module, then the program's own. before: called in the process
    before all else. As torchrun, it forks its ranks, which have all imported too.
    """

    def __init__(self, *arguments: object, environment: dict[str, str], before: Callable[[], object] | None = None):
        words = [*map(str, arguments)]
        if words[:2] == ["-m", "torch.distributed.run"]:
            words[2:2] = ["--run_path", "--start_method=fork"]
        self._said = [Path(tempfile.mkstemp(dir=temporary_folder(), suffix=suffix)[1]) for suffix in (".out", ".err")]
        told = (words, [*map(str, self._said)], environment, before)
        self._process: Any = context().Process(target=_become, args=told)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, and minus the signal that ended it."""
        code: int | None = self._process.exitcode
        return code

    def said(self) -> str:
        """So far, on stdout and then on stderr."""
        return "".join(file.read_text(errors="replace") for file in self._said)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it and all that it started said on stdout and on stderr, once it has ended."""
        self.wait(timeout)
        out, err = (file.read_text(errors="replace") for file in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def quicken_rendezvous() -> None:
    """An agent lists its stack, with the source of each frame, to name a method in a record that nobody reads; among
    so many modules this takes half a second, each second."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    dynamic_rendezvous.get_method_name = lambda depth=2: "unknown"


def _become(
    words: list[str], said: list[str], environment: dict[str, str], before: Callable[[], object] | None
) -> None:
    for stream, file in zip((1, 2), said, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    # As in a program of its own: its own workers would else begin with a server that imports all once more.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.fsync = lambda descriptor: None
    if before is not None:
        before()
    if words[0] == "-m":
        quicken_rendezvous()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
