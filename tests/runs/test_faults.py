"""Ranks, agents and disks that fail: the run goes on, and ends with the weights it would have had."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
from forked import Forked
from runs import (
    ENVIRONMENT,
    MORTAL,
    ROOT,
    WITHIN_S,
    assert_equal_runs,
    free_ports,
    last_of,
    log_of,
    run_all,
    run_ranks,
    settings,
    write_small_data,
)

from ssd.training.interruption import EXIT_PREEMPTED

pytestmark = pytest.mark.slow

EPOCHS = 3
Process = subprocess.Popen[str] | Forked


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


def command(data: Path, output: Path, *flags: object) -> list[str]:
    """What follows `python`: a run of the torch path that goes on by itself."""
    fixed = ["--data", data, "--output", output, "--data_pipeline", "no_dali", "--epochs", EPOCHS, *settings()]
    return [*map(str, [*fixed, "--checkpoint-every", "1 step", "--resume", "auto", *flags])]


MAIN = str(ROOT / "main.py")


@contextmanager
def started(
    *arguments: object, environment: Mapping[str, str] | None = None, before: Callable[[], object] | None = None
) -> Iterator[Forked]:
    """A Python process with these arguments; nothing of it is left at the end."""
    process = Forked(*arguments, environment={**ENVIRONMENT, **(environment or {})}, before=before)
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [process, *family]:
            each.kill()
        process.wait()


def finish(process: Process) -> str:
    """What it said by its end."""
    return "".join(filter(None, process.communicate(timeout=WITHIN_S)))


def torchrun(*flags: object) -> list[object]:
    return ["-m", "torch.distributed.run", *flags]


ALONE = torchrun("--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run on so many ranks that nothing happened to."""
    folders: dict[int, Path] = {}

    def of(ranks: int) -> Path:
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("undisturbed") / str(ranks)
            run_all([[*command(data, folders[ranks])]], ranks)
        return folders[ranks]

    return of


def wait_until(condition: Callable[[], object], processes: Sequence[Process]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, finish(process)
        time.sleep(0.02)


def steps_done(output: Path) -> int:
    return max((line["step"] for line in log_of(output, "train")), default=0)


def world_size_of(output: Path) -> int:
    file = output / "config.json"
    return json.loads(file.read_text())["world_size"] if file.exists() else 0


def assert_whole(output: Path) -> None:
    """Only whole checkpoints, and nothing unfinished beside them."""
    names = {path.name for path in (output / "checkpoints").iterdir()}
    assert names >= {"last.pt", "best.pt"} and all(not name.startswith(".") for name in names)


def two_agents(port: int, *flags: object, nnodes: str = "2", last_call_s: int = 2) -> list[object]:
    """An agent of one rank, of a job of two on this machine."""
    endpoint = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    conf = f"--rdzv-conf=last_call_timeout={last_call_s},keep_alive_interval=1,keep_alive_max_attempt=3"
    return torchrun(f"--nnodes={nnodes}", "--nproc_per_node=1", *endpoint, conf, "--local-addr=127.0.0.1", *flags)


def test_a_killed_worker_of_two_agents(data: Path, undisturbed: Callable[[int], Path], tmp_path: Path) -> None:
    """At a random step, a random one of them: both start anew, and go on from the last checkpoint."""
    output, died, (port,) = tmp_path / "run", tmp_path / "died", free_ports(1)
    step, victim = random.randint(2, 4), random.randint(0, 1)
    program = [MORTAL, died, step, victim, "itself", signal.SIGKILL]
    agent = [*two_agents(port, "--max-restarts=3"), *program, *command(data, output)]
    with started(*agent) as first, started(*agent) as second:
        agents = [first, second]
        said = [finish(each) for each in agents]
        assert [each.returncode for each in agents] == [0, 0], "\n".join(said)
    resumed = log_of(output, "resumed")
    assert died.exists() and resumed
    # Rank 1 may die while rank 0 still writes the checkpoint of the step before.
    assert all(line["step"] >= step - 1 and line["world_size"] == 2 for line in resumed)
    assert_equal_runs(last_of(output), last_of(undisturbed(2)))
    assert_whole(output)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_killed_agent_of_an_elastic_job(data: Path, tmp_path: Path) -> None:
    """With its rank, as when a machine is lost: the other goes on alone, by the rule for another number of ranks."""
    output, died, (port,), epochs = tmp_path / "run", tmp_path / "died", free_ports(1), 6
    run = command(data, output, "--epochs", epochs)
    agent = two_agents(port, "--max-restarts=3", nnodes="1:2", last_call_s=20)
    # The first agent holds the rendezvous, so the second is the one that can go.
    with started(*agent, MAIN, *run) as host:
        wait_until(lambda: is_listening(port), [host])
        # Before the third step, so the first one's checkpoint is written.
        with started(*agent, MORTAL, died, 2, "any", "both", signal.SIGKILL, *run) as other:
            said = finish(host)
            assert host.returncode == 0, said
            assert other.wait(timeout=WITHIN_S) == -signal.SIGKILL
    assert "world_size was 2 and is 1" in said
    assert log_of(output, "resumed")[-1]["world_size"] == 1
    content = last_of(output)
    assert content["epoch"] == epochs and content["step"] == 3 * epochs and content["data"]["world_size"] == 1
    assert_whole(output)


MORTAL_EVALUATION = """
import os, signal, sys
import main
from ssd.evaluation import detect

_detect_split = detect.detect_split

def _detect_or_die(*arguments):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return _detect_split(*arguments)

detect.detect_split = _detect_or_die
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_rank_that_dies_in_an_evaluation_leaves_no_figures(
    data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """Those would be of half of the split. Without torchrun, which would end rank 0 itself."""
    program, figures = tmp_path / "mortal_evaluation.py", tmp_path / "figures.json"
    program.write_text(MORTAL_EVALUATION)
    evaluate = ["evaluate", "--checkpoint", undisturbed(1) / "checkpoints" / "last.pt", "--data", data]
    flags = ["--data_pipeline", "no_dali", "--num-workers", 1, "--device", "cpu", "--json", figures]
    rank_0, rank_1 = run_ranks([*evaluate, *flags], 2, program)
    assert rank_1.code == -signal.SIGKILL and rank_0.code == 3, rank_0.said
    assert "error: rank 0 waited in vain for another one, which died" in rank_0.said and not figures.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_that_can_go_on(
    number: signal.Signals, data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """Sent to the whole process group, as clusters do: the workers that load data must outlive it."""
    output = tmp_path / "run"
    program = [MORTAL, tmp_path / "sent", 2, 0, "group", number]
    every = ["--checkpoint-every", "9 epochs"]
    with started(*program, *command(data, output, *every), before=os.setsid) as process:
        said = finish(process)
        assert process.returncode == EXIT_PREEMPTED, said
        assert "as it was asked to" in said and "--resume auto" in said and "Traceback" not in said
    content = last_of(output)
    assert 2 < content["step"] == steps_done(output)
    assert "resuming after epoch" in run_all([[*command(data, output)]], 1)
    assert_equal_runs(last_of(output), last_of(undisturbed(1)))


def test_a_signal_ends_a_job_that_can_go_on(data: Path, undisturbed: Callable[[int], Path], tmp_path: Path) -> None:
    """torchrun hands SIGTERM to its ranks, which agree on the step to save after."""
    output = tmp_path / "run"
    program = [MORTAL, tmp_path / "sent", 1, 0, "launcher", signal.SIGTERM]
    with started(*ALONE, *program, *command(data, output, "--checkpoint-every", "9 epochs")) as process:
        said = finish(process)
        assert process.returncode != 0 and "as it was asked to" in said, said
    assert 1 < last_of(output)["step"] < 2 * EPOCHS
    run_all([[*command(data, output)]], 2)
    assert_equal_runs(last_of(output), last_of(undisturbed(2)))


DIES_WRITING = """
import os, signal, sys
import torch
import main

count, save = 0, torch.save


def half(content, stream):
    global count
    count += 1
    if count < 3:
        return save(content, stream)
    stream.write(b"PK" + bytes(1000))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)


torch.save = half
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_kill_within_the_writing_of_a_checkpoint(
    data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    program, output = tmp_path / "dies_writing.py", tmp_path / "run"
    program.write_text(DIES_WRITING)
    with started(program, *command(data, output)) as process:
        assert finish(process) is not None and process.returncode == -signal.SIGKILL
    run_all([[*command(data, output)]], 1)
    assert [line["step"] for line in log_of(output, "resumed")] == [2]
    assert_equal_runs(last_of(output), last_of(undisturbed(1)))
    assert_whole(output)


def test_a_full_disk(data: Path, undisturbed: Callable[[int], Path], tmp_path: Path) -> None:
    """The system refuses files of more than 1 MB; a checkpoint has two."""
    output = Path(shutil.copytree(undisturbed(1), tmp_path / "run"))
    for name in ("last.pt", "best.pt", f"step-{3 * EPOCHS:08}.pt"):
        (output / "checkpoints" / name).unlink()
    before = {path: path.read_bytes() for path in (output / "checkpoints").iterdir()}
    assert [path.name for path in before] == [f"step-{3 * EPOCHS - 1:08}.pt"]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with started(MAIN, *command(data, output), before=limit) as process:
        said = finish(process)
        assert process.returncode == 2, said
        assert "error: " in said and "cannot be written" in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in (output / "checkpoints").iterdir()} == before

    run_all([[*command(data, output)]], 1)
    assert_equal_runs(last_of(output), last_of(undisturbed(1)))
