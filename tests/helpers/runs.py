"""What the tests of interrupted runs share: the smallest runs there are, and what is equal of two of them."""

import contextlib
import functools
import io
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd.checkpoints import checkpoint

ROOT = Path(__file__).parents[2]
MORTAL, SLOW = (Path(__file__).with_name(f"{name}_main.py") for name in ("mortal", "slow"))
# One thread, because sums over several come in no fixed order.
_OWN = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see launch/slurm.sh
}
ENVIRONMENT = {**os.environ, **_OWN}
SETTINGS = [
    *("--bs", "2", "--lr", "0.05", "--seed", "3"),
    *("--device", "cpu", "--num-workers", "1", "--log-interval", "1", "--no-plots"),
]
WHOLE_DETECTOR = ["--backbone", "resnet18", "--backbone-weights", "none"]
WITHIN_S = 1200  # a hang; beside much other work the rest may take minutes
_FOLDER = tempfile.TemporaryDirectory(prefix="ssd-tests-")


@functools.cache
def small_checkpoint(detector: Any = None) -> Path:
    """A thinned detector with an eighth of its channels, untrained, of one category.

    detector: its settings, by default those of an SSD300-R18. A run that starts from that one takes a sixth of the time
    that one of the whole detector takes, and writes checkpoints of 2 MB in the place of 58. On other categories its
    class heads are fresh, drawn by the run's seed.
    """
    from ssd.detectors.channels import Plan, thinned
    from ssd.detectors.ssd300.settings import SSD300Settings
    from ssd.detectors.table import detector_of, to_dict

    detector = detector or SSD300Settings("resnet18")
    record = detector_of(detector)
    torch.manual_seed(0)
    model = record.build(detector, 2)
    assert record.streams is not None
    layers: dict[str, Any] = dict(model.named_modules())
    streams = [(stream.writers, stream.readers) for stream in record.streams(model)]
    for part in ("mask", "keypoint"):  # which main.py thin leaves as they are; the last one's own reader is fixed
        names = [name for name in layers if name.startswith(f"roi_heads.{part}_head.")]
        convolutions = [name for name in names if isinstance(layers[name], torch.nn.Conv2d)]
        streams += [([(writer, "")], [reader]) for writer, reader in itertools.pairwise(convolutions)]
    plan: Plan = {}
    for writers, readers in streams:
        for layer, norm in writers:
            for name in filter(None, (layer, norm)):
                plan.setdefault(name, {})["out"] = layers[layer].weight.shape[0] // 8
        for layer in readers:
            plan.setdefault(layer, {})["in"] = layers[layer].weight.shape[1] // 8
    file = Path(_FOLDER.name) / f"{detector.name}.pt"
    content = {
        "format": checkpoint.FORMAT,
        "detector": to_dict(detector),
        "categories": [(1, "thing")],
        "model": thinned(model, plan).state_dict(),
        "channels": plan,
    }
    checkpoint.save(file, content)
    return file


def settings() -> list[str]:
    """Of a small run; on the data of `write_small_data`, epochs of three steps on one rank and of two steps on two.
    With `WHOLE_DETECTOR` and `SETTINGS` in their place, a step takes about a second."""
    return ["--checkpoint", str(small_checkpoint()), *SETTINGS]


# Runs programs in processes forked from one that has imported all and computed nothing: the imports are most of a short
# run's time. An order has what each of its processes says in `said`, and is answered by their exit codes.
_FORKING = """
import json, os, runpy, sys, traceback
sys.path.append(sys.argv[1])
import torchvision
import main, ssd.cli.training_run
try:
    import nvidia.dali
except ImportError:
    pass
os.fsync = lambda descriptor: None

def run(said, environment, program, arguments):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    code = 1
    try:
        runpy.run_path(program, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

for line in sys.stdin:
    order = json.loads(line)
    children = []
    for said, environment in zip(order["said"], order["environments"]):
        if (child := os.fork()) == 0:
            run(said, environment, order["program"], order["arguments"])
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@functools.cache
def _forking() -> subprocess.Popen[str]:
    """It ends with this process, which closes its stdin."""
    command = [sys.executable, "-c", _FORKING, str(ROOT / "tests" / "helpers")]
    return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Ended(NamedTuple):
    """How a rank's process ended."""

    code: int
    said: str


def run_ranks(command: list[object], ranks: int, program: Path = ROOT / "main.py") -> list[Ended]:
    """The program with this command line on so many ranks of one host, as torchrun would start them."""
    (port,) = free_ports(1)
    said = [tempfile.NamedTemporaryFile("r", dir=_FOLDER.name, errors="replace") for _ in range(ranks)]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    ids = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    order = {
        "said": [file.name for file in said],
        "environments": [{**os.environ, **_OWN, **job, **own} for own in ids],  # with what the test has set
        "program": str(program),
        "arguments": [*map(str, command)],
    }
    forking = _forking()
    assert forking.stdin is not None and forking.stdout is not None
    forking.stdin.write(json.dumps(order) + "\n")
    forking.stdin.flush()
    assert select.select([forking.stdout], [], [], WITHIN_S)[0], [file.read() for file in said]
    return [Ended(code, file.read()) for code, file in zip(json.loads(forking.stdout.readline()), said, strict=True)]


def write_small_data(folder: Path) -> Path:
    """Five images to train on, of which one has no box, and two to judge by."""
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(folder, train_images=6, val_images=2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run_script_on_two_ranks(script: str, folder: Path) -> None:
    """The text of a program whose argument is the folder."""
    program = folder / "script_of_a_rank.py"
    program.write_text(script)
    ended = run_ranks([folder], 2, program)
    assert [each.code for each in ended] == [0, 0], ended


def run_all(commands: list[list[object]], ranks: int) -> str:
    """Each command on this number of ranks, one after the other; what the ranks said. One rank is this process."""
    said = []
    for command in commands:
        if ranks == 1:
            done = run_here(*command)
            ended = [Ended(done.returncode, done.stdout + done.stderr)]
        else:
            ended = run_ranks(command, ranks)
        assert not any(each.code for each in ended), ended
        said += [each.said for each in ended]
    return "".join(said)


def run_here(*command: object) -> subprocess.CompletedProcess[str]:
    """The command line in this process, on one thread as `ENVIRONMENT` has it: what a process of its own would have
    said and ended with, without the seconds that imports take."""
    import main

    threads, out, err = torch.get_num_threads(), io.StringIO(), io.StringIO()
    words = [*map(str, command)]
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(words)
    finally:
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def last_of(folder: Path) -> dict[str, Any]:
    return checkpoint.load_run(folder / "checkpoints" / "last.pt")


def log_of(folder: Path, event: str) -> list[dict[str, Any]]:
    """The lines of this event; none before the run has written any."""
    file = folder / "log.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if line["event"] == event]


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["box_loss"], line["class_loss"]) for line in log_of(folder, "train")]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_equal(left, right, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_equal_runs(a: dict[str, Any], b: dict[str, Any]) -> None:
    """All of two checkpoints, but their settings and what is a matter of time."""
    a, b = ({**content, "tally": {**content["tally"], "elapsed_s": 0, "seconds": 0}} for content in (a, b))
    for key in a.keys() - {"settings"}:
        assert_equal(a[key], b[key], key)
