"""What the tests of interrupted runs share: the smallest runs there are, and what is equal of two of them."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch

from ssd.checkpoints import checkpoint

ROOT = Path(__file__).parents[1]
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
