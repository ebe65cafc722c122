"""A run's folder has one writer: another is refused by name, and the lock goes with its holder, however that ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from forked import Forked
from launcher_kills import Launcher, assert_one_writer_at_a_time
from runs import ENVIRONMENT, ROOT, assert_equal_runs, last_of, log_of, losses_of, run_all, settings, write_small_data

from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.run import lock as run_lock
from ssd.run.folder import run_folder
from ssd.run.lock import LOCK, only_writer

HERE = Ranks(0, 0, 1, torch.device("cpu"))

HOLDS = """
import os, sys, time
from pathlib import Path
from ssd.run.lock import only_writer

with only_writer(Path(sys.argv[1])):
    if "forks" in sys.argv and os.fork() == 0:
        time.sleep(600)
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0.3)


@contextmanager
def holder(folder: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until it gets a line; it is the leader of a group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder), *how],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_the_second_writer_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with holder(folder) as first:
        with pytest.raises(InputError) as refused, only_writer(folder):
            pytest.fail("two writers")
        with only_writer(tmp_path / "other"):  # another folder is not concerned
            pass
        assert folder.is_dir() and not (tmp_path / "other").exists()
    name = f"process {first.pid} on {os.uname().nodename}, since "
    said = str(refused.value)
    assert said.startswith(f"--output {folder}: another run writes there, {name}") and "\n" not in said
    assert said.endswith("within 0.3 s; end that process, or pass another --output")
    assert re.fullmatch(
        f"waiting up to 0.3 s for the end of the run in {folder}, {name}[-0-9 :]+\n", capsys.readouterr().out
    )


@pytest.mark.parametrize("how", [(), ("forks",)], ids=["alone", "with a worker that lives on"])
def test_the_lock_goes_with_a_kill(how: tuple[str, ...], tmp_path: Path) -> None:
    with holder(tmp_path, *how) as first:
        first.kill()
        first.wait()
        with only_writer(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()


def test_a_holder_that_ends_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that wrote nothing takes its folder away, lock and all; who waited for it has another one then."""
    monkeypatch.setattr(run_lock, "WAIT_S", 600)
    folder = tmp_path / "a" / "run"
    with holder(folder) as first:

        def end_it(seconds: float, stdin=first.stdin) -> None:
            if first.poll() is None:
                stdin.write("end\n")
                stdin.flush()
                first.wait()

        monkeypatch.setattr(time, "sleep", end_it)
        with only_writer(folder):
            assert [path.name for path in folder.iterdir()] == [LOCK]
        with only_writer(folder):
            (folder / "config.json").touch()
    assert (folder / LOCK).read_text() == ""  # nobody's


def test_a_lock_whose_name_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before its holder took the file away, and locked after: the next run would not meet it."""
    lockf, files = run_lock.fcntl.lockf, []

    def too_late(descriptor: int, how: int) -> None:
        lockf(descriptor, how)
        files.append(os.fstat(descriptor).st_ino)
        if len(files) == 1:
            (tmp_path / LOCK).unlink()
            (tmp_path / "keeps-the-inode").touch()

    monkeypatch.setattr(run_lock.fcntl, "lockf", too_late)
    monkeypatch.setattr(run_lock, "_POLL_S", 0.0)
    with only_writer(tmp_path):
        assert len(files) == 2 and (tmp_path / LOCK).exists()


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", none)
    with only_writer(tmp_path):
        pass
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: its file system has no locks") and said.count("\n") == 1


def test_what_another_run_wrote_while_this_one_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints are those that are there once the folder is this run's."""
    output, newest = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.pt"
    (output / "checkpoints").mkdir(parents=True)
    make = run_lock._make

    def write_first(folder: Path) -> list[Path]:
        newest.touch()
        return make(folder)

    monkeypatch.setattr(run_lock, "_make", write_first)
    with run_folder("coco", str(output), "auto", HERE) as found:
        assert found == (output, [newest])


# Whole runs


def command(data: Path, output: Path, *flags: object) -> list[str]:
    fixed = ["--data", data, "--output", output, "--data_pipeline", "no_dali", "--epochs", 3, *settings()]
    return [*map(str, [*fixed, "--checkpoint-every", "1 step", "--resume", "auto", *flags])]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


@pytest.mark.slow
def test_a_run_beside_another_is_refused(data: Path, tmp_path: Path, refusal) -> None:
    output = tmp_path / "run"
    first = Forked(ROOT / "main.py", *command(data, output, "--epochs", 99999), environment=ENVIRONMENT)
    try:
        while len(log_of(output, "train")) < 2:
            assert first.poll() is None, first.said()
            time.sleep(0.05)
        assert f"another run writes there, process {first.pid} on " in refusal(*command(data, output))
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_kills_of_torchrun_alone(data: Path, tmp_path: Path) -> None:
    """Its ranks live on for a moment; the run that is started at once waits for them, and loses and adds nothing."""
    undisturbed, output, journal = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "journal.txt"
    run_all([[*command(data, undisturbed)]], 2)
    with Launcher(command(data, output), output, journal, step_s=0.5) as launcher:
        while len(log_of(output, "train")) < 2:
            assert launcher.wait(0.02) is None, launcher.said()
        launcher.kill_alone()
        assert any(rank.is_running() for rank in launcher.ranks)
        with Launcher(command(data, output), output, journal) as resumed:
            assert resumed.wait(600) == 0, resumed.said()
        # They end by themselves; one that does not write may do so after a short run that was waiting for the other.
        psutil.wait_procs(launcher.ranks, timeout=60)
        assert not any(rank.is_running() for rank in launcher.ranks)
    (line,) = log_of(output, "resumed")
    assert line["step"] >= 2
    assert_one_writer_at_a_time(journal, at_least=2)
    assert_equal_runs(last_of(output), last_of(undisturbed))
    assert losses_of(output) == losses_of(undisturbed)
