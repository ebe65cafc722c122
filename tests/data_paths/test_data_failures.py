"""What befalls the data paths while they run: each ends the command with the cause and the remedy, none hangs it."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from runs import log_of, small_checkpoint

from pipelines.no_dali.workers import plain_errors
from pipelines.readers.coco import read_annotations
from ssd.errors import InputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


@contextmanager
def training(data: Path, output: Path, pipeline: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on for ever."""
    flags = ["--checkpoint", str(small_checkpoint()), "--epochs", "1000000", "--evaluation"]
    machine = ["--bs", "4", "--num-workers", "1", "--device", "cpu", "--log-interval", "1"]
    process = subprocess.Popen(
        [*prefix, sys.executable, str(ROOT / "main.py"), "--data", str(data), "--data_pipeline", pipeline]
        + [*flags, *machine, "--output", str(output)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_steps(output: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not log_of(output, "train"):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)


def refusal(process: subprocess.Popen[str]) -> str:
    """The last line on stderr, after asserting that it is the error and that the process exited with 2."""
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: "), said
    return last


def test_a_worker_is_killed(demo_data: Path, tmp_path: Path) -> None:
    with training(demo_data, tmp_path / "run", "no_dali") as process:
        wait_for_steps(tmp_path / "run", process)
        (worker,) = psutil.Process(process.pid).children()
        os.kill(worker.pid, signal.SIGKILL)
        message = refusal(process)
    assert "killed" in message and "--num-workers" in message and "memory" in message


def test_an_error_keeps_nothing_alive_that_its_callers_hold() -> None:
    """As an evaluation's would the workers of training, which then end half a minute after the interpreter."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def spoilt() -> Iterator[int]:
        yield 1
        raise InputError("5.jpg: cannot be read")

    def caller() -> None:
        own = Held()
        held.append(weakref.ref(own))
        list(plain_errors(spoilt()))

    gc.disable()
    try:
        with pytest.raises(InputError, match=r"5\.jpg"):
            caller()
        assert held[0]() is None
    finally:
        gc.enable()


def test_shared_memory_is_full(demo_data: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own with half a MiB of /dev/shm: a batch of 4 images is 1 MiB."""
    prefix = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    small = "mount -t tmpfs -o size=512k tmpfs /dev/shm && exec"
    if not shutil.which("unshare") or subprocess.run([*prefix, f"{small} true"], capture_output=True).returncode:
        pytest.skip("this user may not mount in a namespace of its own")
    with training(demo_data, tmp_path / "run", "no_dali", *prefix, f'{small} "$@"', "sh") as process:
        message = refusal(process)
    assert "/dev/shm" in message and "--num-workers" in message and "--shm-size" in message


@pytest.mark.parametrize("pipeline", ["dali", "no_dali"])
def test_an_image_is_cut_short_during_the_run(pipeline: str, data_copy: Path, tmp_path: Path) -> None:
    """Whole when the run began, so that no check of the headers finds it."""
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    split = read_annotations(data_copy, "train2017")
    spoilt = split.image_folder / split.file_names[int(split.trainable_indices()[-1])]
    with training(data_copy, tmp_path / "run", pipeline) as process:
        wait_for_steps(tmp_path / "run", process)
        # In place, as a failing disk or a copy in progress would have it.
        os.truncate(spoilt, spoilt.stat().st_size // 2)
        message = refusal(process)
    assert message.startswith(f"error: {spoilt}: cannot be read as an image")
