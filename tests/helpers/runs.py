"""What the tests of interrupted runs share: the smallest runs there are, and what is equal of two of them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ssd.checkpoints import checkpoint

ROOT = Path(__file__).parents[2]
# One thread, because sums over several come in no fixed order.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see launch/slurm.sh
}
# On the data of `write_small_data`, epochs of three steps on one rank and of two steps on two.
SETTINGS = [
    *("--backbone", "resnet18", "--backbone-weights", "none", "--bs", "2", "--lr", "0.05", "--seed", "3"),
    *("--device", "cpu", "--num-workers", "1", "--log-interval", "1", "--no-plots"),
]

# Runs one command line after the other in one process, whose imports are most of a short run's time.
DRIVER = """
import json, os, sys
os.fsync = lambda descriptor: None
import main
for port, command in json.loads(sys.stdin.read()):
    os.environ["MASTER_PORT"] = str(port)
    if code := main.main(command):
        sys.exit(code)
"""


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


def run_all(commands: list[list[object]], ranks: int, driver: str = DRIVER) -> str:
    """Each command on this number of ranks, one after the other; what rank 0 said. driver: a rank's program."""
    ports = free_ports(len(commands))
    orders = json.dumps([(port, [*map(str, command)]) for port, command in zip(ports, commands, strict=True)])
    processes = []
    for rank in range(ranks):
        own = {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", driver],
                env={**ENVIRONMENT, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        stdin = processes[-1].stdin
        assert stdin is not None
        stdin.write(orders)
        stdin.close()
        processes[-1].stdin = None
    said = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)
    return said[0]


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
